//! The files that libpq reads for a connection: passwords and services.
//!
//! Source: PostgreSQL documentation, "The Password File" and "The Connection Service File".

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lifeboat_units::Secret;

use super::ConninfoError;
use super::parse::Raw;

/// What a password file gave.
pub(super) enum Passwords {
    /// There is none.
    Absent,
    /// Others may read it, so it is not used.
    TooOpen,
    /// Its text.
    Text(Secret),
}

/// Reads a password file, unless others than its owner may read it.
pub(super) fn read_passwords(path: &Path) -> Result<Passwords, ConninfoError> {
    let cannot = |source| ConninfoError::File { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Passwords::Absent),
        Err(error) => return Err(cannot(error)),
    };
    if !metadata.is_file() {
        return Ok(Passwords::Absent);
    }
    if metadata.mode() & 0o077 != 0 {
        return Ok(Passwords::TooOpen);
    }
    fs::read_to_string(path).map(|text| Passwords::Text(Secret::new(text))).map_err(cannot)
}

/// Finds the first line `host:port:database:user:password` that fits; `*` fits anything.
pub(super) fn find_password(text: &str, wanted: [&str; 4]) -> Option<Secret> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for want in wanted {
            let (field, after) = take_field(rest)?;
            if field != "*" && unescape(field) != want {
                return None;
            }
            rest = after;
        }
        // The password ends at the next bare colon or the line's end.
        let password = take_field(rest).map_or(rest, |(field, _)| field);
        Some(Secret::new(unescape(password)))
    })
}

/// Splits at the first colon that no backslash precedes.
fn take_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            other => plain.push(other),
        }
    }
    plain
}

/// Takes the settings of `[name]` out of a service file; `None` when it has no such service.
pub(super) fn find_service(path: &Path, name: &str) -> Result<Option<Raw>, ConninfoError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConninfoError::File { path: path.to_owned(), source }),
    };
    Ok(service_section(&text, name))
}

fn service_section(text: &str, name: &str) -> Option<Raw> {
    let header = format!("[{name}]");
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != header);
    lines.next()?;
    let settings = lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
    Some(settings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        let text = "# comment\n\
                    db:5432:*:al:one\n\
                    *:*:shop:al:two\\:and\\\\half\n\
                    *:*:*:*:last:rest\n";
        let find = |wanted| find_password(text, wanted).map(|s| s.expose().to_owned());
        assert_eq!(find(["db", "5432", "any", "al"]).as_deref(), Some("one"));
        assert_eq!(find(["db", "5433", "shop", "al"]).as_deref(), Some("two:and\\half"));
        assert_eq!(find(["x", "1", "y", "z"]).as_deref(), Some("last"));
        assert!(find_password("a:b:c", ["a", "b", "c", "d"]).is_none());
    }

    #[test]
    fn a_service_ends_where_the_next_begins() {
        let text = "[one]\nhost=a\n# no\nport = 5433\n[two]\nhost=b\n";
        let one = service_section(text, "one").unwrap();
        assert_eq!(one.get("host").map(String::as_str), Some("a"));
        assert_eq!(one.get("port").map(String::as_str), Some("5433"));
        assert!(service_section(text, "three").is_none());
    }
}
