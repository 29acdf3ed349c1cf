//! From an address to a store.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::contract::Store;
use crate::error::StoreError;
use crate::local::LocalStore;

/// Opens the store at an address: `file:///absolute/path`, or an absolute path.
///
/// - Errors: [`StoreError::BadUrl`] for an address that cannot be understood, those of the back
///   end when nothing is there.
pub fn open(url: &str) -> Result<Box<dyn Store>, StoreError> {
    Ok(Box::new(LocalStore::open(&local_path(url)?)?))
}

/// Makes what an address needs, such as its directory, and opens the store there.
///
/// - Errors: as [`open`].
pub fn create(url: &str) -> Result<Box<dyn Store>, StoreError> {
    Ok(Box::new(LocalStore::create(&local_path(url)?)?))
}

/// An address as it may be shown: what may be a user name, a password or a signed query is
/// replaced. Rather too much than too little: a password may hold any character.
pub fn redact(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("[redacted]@", rest),
        None => ("", rest),
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, _)) => (rest, "?[redacted]"),
        None => (rest, ""),
    };
    format!("{scheme}{user}{rest}{query}")
}

fn local_path(url: &str) -> Result<PathBuf, StoreError> {
    let bad = |problem| StoreError::BadUrl { url: redact(url), problem };
    if url.contains('\0') {
        return Err(bad("it holds a zero byte"));
    }
    if url.starts_with('/') {
        return Ok(PathBuf::from(url));
    }
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(bad("a path must be absolute"));
    };
    if !scheme.eq_ignore_ascii_case("file") {
        return Err(bad("this kind of store is not supported"));
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(bad("`file:` is followed by `//`"));
    };
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(bad("a third `/` must follow: the path is absolute, and on this machine"));
    }
    if path.contains(['?', '#']) {
        return Err(bad("write %3F for `?` and %23 for `#`"));
    }
    match decode(path) {
        Some(bytes) if !bytes.contains(&0) => Ok(PathBuf::from(OsString::from_vec(bytes))),
        _ => Err(bad("two hex digits, not both zero, must follow each `%`")),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lifeboat_units::Explain;

    use super::{create, local_path, open, redact};
    use crate::{Key, StoreError};

    #[test]
    fn an_address_means_the_path_that_it_encodes() {
        for (url, path) in [
            ("/srv/backup", "/srv/backup"),
            ("/srv/100%", "/srv/100%"),
            ("file:///srv/backup", "/srv/backup"),
            ("FILE:///srv/backup", "/srv/backup"),
            ("file://localhost/srv", "/srv"),
            ("file:///srv/my%20backup%2f%3F", "/srv/my backup/?"),
            ("file:///srv/b\u{e9}", "/srv/b\u{e9}"),
            ("file:///srv/b%C3%A9", "/srv/b\u{e9}"),
        ] {
            assert_eq!(local_path(url).unwrap(), Path::new(path), "{url}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_help() {
        for url in [
            "",
            "srv",
            "./srv",
            "file:",
            "file:/srv",
            "file://",
            "file://srv",
            "file://host/srv",
            "file://localhostile/srv",
            "file:///a?b",
            "file:///a#b",
            "file:///%",
            "file:///%2",
            "file:///%zz",
            "file:///%+1",
            "file:///%00",
            "/a\0",
            "s3://bucket/x",
            "sftp://h/p",
        ] {
            let error = open(url).err().unwrap_or_else(|| panic!("{url:?} was accepted"));
            assert!(matches!(error, StoreError::BadUrl { .. }), "{url:?}: {error}");
            assert!(error.help().unwrap().contains("file:///"), "{url:?}");
        }
    }

    #[test]
    fn no_password_is_ever_echoed() {
        for (url, shown) in [
            ("s3://user:hunter2@host/b", "s3://[redacted]@host/b"),
            ("s3://user:hun/ter2@host/b", "s3://[redacted]@host/b"),
            ("s3://user:hunter2@x@host/b", "s3://[redacted]@host/b"),
            ("user:hunter2@host:/b", "[redacted]@host:/b"),
            ("s3://host/b?password=hunter2", "s3://host/b?[redacted]"),
            ("s3://u:hunter2?@host/b", "s3://[redacted]@host/b"),
            ("file:///srv/x", "file:///srv/x"),
        ] {
            assert_eq!(redact(url), shown);
            if !url.starts_with("file") {
                assert!(!format!("{}", open(url).err().unwrap()).contains("hunter2"), "{url}");
            }
        }
    }

    #[test]
    fn what_was_created_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}/a%20b/c", directory.path().display());
        assert!(matches!(open(&url), Err(StoreError::Unreachable { .. })));
        let key = Key::new("x/y").unwrap();
        create(&url).unwrap().put(&key, b"body").unwrap();
        create(&url).unwrap(); // a second time does no harm
        assert_eq!(open(&url).unwrap().get(&key, 10).unwrap(), b"body");
        assert!(directory.path().join("a b/c/x/y").is_file());
    }
}
