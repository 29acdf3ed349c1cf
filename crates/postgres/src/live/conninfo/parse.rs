//! Splits a connection string into its settings, in libpq's two spellings.
//!
//! Source: PostgreSQL documentation, "Connection Strings" (libpq), and
//! `src/interfaces/libpq/fe-connect.c` (`conninfo_parse`, `conninfo_uri_parse_options`).

use std::collections::BTreeMap;

use super::ConninfoError;

/// Settings as written: key to value, nothing interpreted.
pub(super) type Raw = BTreeMap<String, String>;

/// Reads `key=value …` or `postgresql://…`; an empty text gives no settings.
pub(super) fn split(text: &str) -> Result<Raw, ConninfoError> {
    let text = text.trim();
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return uri(rest);
        }
    }
    keyed(text)
}

fn keyed(text: &str) -> Result<Raw, ConninfoError> {
    let mut settings = Raw::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(value) = after.trim_start().strip_prefix('=') else {
            // The word may be (part of) a password, so it is not shown.
            return Err(ConninfoError::NoValue { position: text.len() - rest.len() + 1 });
        };
        let (value, after) = keyed_value(value.trim_start())?;
        settings.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(settings)
}

/// Takes one value, bare or in single quotes, with backslash escapes.
fn keyed_value(text: &str) -> Result<(String, &str), ConninfoError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut letters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, next)| next)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(ConninfoError::OpenQuote) } else { Ok((value, "")) }
}

/// Reads what follows `postgresql://`: `[user[:password]@][hosts][/dbname][?key=value&…]`.
fn uri(rest: &str) -> Result<Raw, ConninfoError> {
    let mut settings = Raw::new();
    let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = main.split_once('/').unwrap_or((main, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        insert_nonempty(&mut settings, "user", decode(user)?);
        insert_nonempty(&mut settings, "password", decode(password)?);
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = split_port(host)?;
        names.push(decode(name)?);
        ports.push(decode(port)?);
    }
    if names.iter().any(|n| !n.is_empty()) {
        settings.insert("host".into(), names.join(","));
    }
    if ports.iter().any(|p| !p.is_empty()) {
        settings.insert("port".into(), ports.join(","));
    }
    insert_nonempty(&mut settings, "dbname", decode(database)?);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(ConninfoError::UriQuery)?;
        let (key, value) = (decode(key)?, decode(value)?);
        if key == "ssl" && value == "true" {
            settings.insert("sslmode".into(), "require".into());
        } else {
            settings.insert(key, value);
        }
    }
    Ok(settings)
}

fn insert_nonempty(settings: &mut Raw, key: &str, value: String) {
    if !value.is_empty() {
        settings.insert(key.into(), value);
    }
}

/// Splits `host:port`, where the host may be an IPv6 address in brackets.
fn split_port(host: &str) -> Result<(&str, &str), ConninfoError> {
    if let Some(inner) = host.strip_prefix('[') {
        let (address, after) = inner.split_once(']').ok_or(ConninfoError::UriBracket)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if after.is_empty() => Ok((address, "")),
            None => Err(ConninfoError::UriBracket),
        };
    }
    Ok(host.split_once(':').unwrap_or((host, "")))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) if high + low > 0 => bytes.push((high * 16 + low) as u8),
            _ => return Err(ConninfoError::Percent),
        }
    }
    String::from_utf8(bytes).map_err(|_| ConninfoError::Percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        split(text).unwrap().into_iter().collect()
    }

    fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn both_spellings_say_the_same() {
        let expected = owned(&[
            ("dbname", "my db"),
            ("host", "/run/pg,db.example"),
            ("password", "p@ss'w"),
            ("port", "5433,5434"),
            ("sslmode", "disable"),
            ("user", "al"),
        ]);
        let keyed = r"host = /run/pg,db.example port=5433,5434 user=al dbname='my db' password='p@ss\'w' sslmode=disable";
        assert_eq!(pairs(keyed), expected);
        let uri =
            "postgresql://al:p%40ss'w@%2Frun%2Fpg:5433,db.example:5434/my%20db?sslmode=disable";
        assert_eq!(pairs(uri), expected);
    }

    #[test]
    fn addresses_in_brackets_keep_their_colons() {
        assert_eq!(pairs("postgres://[::1]:5433"), owned(&[("host", "::1"), ("port", "5433")]));
        assert_eq!(pairs("postgres://[fe80::1]"), owned(&[("host", "fe80::1")]));
        assert_eq!(pairs(""), []);
        assert_eq!(pairs("postgres:///db"), owned(&[("dbname", "db")]));
    }

    #[test]
    fn what_is_malformed_is_refused_and_not_repeated() {
        for text in [
            "host",
            "host=a hunter2",
            "password='hunter2",
            "postgres://u:hunter2%@h",
            "postgres://[::1",
            "postgres://h?hunter2",
            "postgres://h/%00",
        ] {
            let error = split(text).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
