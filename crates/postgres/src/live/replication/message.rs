//! The bodies of the server's messages, taken apart. Pure; nothing in here trusts a length.

use std::fmt;

use super::error::WireError;

/// What a server says in an error or a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// `ERROR`, `FATAL`, `WARNING`, …, never translated.
    pub severity: String,
    /// SQLSTATE: five letters or digits.
    pub code: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nHINT: {hint}")?;
        }
        Ok(())
    }
}

impl ServerReport {
    /// Reads the fields of an ErrorResponse or NoticeResponse.
    /// Source: "Error and Notice Message Fields".
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut report = Self::default();
        let mut fields = Fields(body);
        loop {
            let text = match fields.byte()? {
                0 => return Ok(report),
                kind => (kind, fields.text()?),
            };
            match text {
                // 'S' may be translated, 'V' is not and comes after it.
                (b'S' | b'V', text) => report.severity = text,
                (b'C', text) => report.code = text,
                (b'M', text) => report.message = text,
                (b'D', text) => report.detail = Some(text),
                (b'H', text) => report.hint = Some(text),
                _ => {}
            }
        }
    }
}

/// Takes a body apart from the front.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn i16(&mut self) -> Result<i16, WireError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string that a zero byte ends.
    pub(super) fn text(&mut self) -> Result<String, WireError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(SHORT)?;
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        Ok(text)
    }
}

const SHORT: WireError = WireError::Malformed { what: "a message is shorter than its fields" };

/// One column of a row: its bytes, or NULL.
pub type Cell = Option<Vec<u8>>;

/// Reads a DataRow.
pub(super) fn row(body: &[u8]) -> Result<Vec<Cell>, WireError> {
    let mut fields = Fields(body);
    let count = fields.i16()?;
    (0..count)
        .map(|_| match fields.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| SHORT)?;
                Ok(Some(fields.take(length)?.to_vec()))
            }
        })
        .collect()
}

/// The number that a `server_version` stands for: 180006 for `18.6 (Debian 18.6-3)`, 190000 for
/// `19beta1`.
pub(super) fn version_num(text: &str) -> Option<u32> {
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        (text[..end].parse::<u32>().ok(), end)
    };
    let (major, end) = digits(text);
    let minor = text[end..].strip_prefix('.').and_then(|rest| digits(rest).0).unwrap_or(0);
    major?.checked_mul(10_000)?.checked_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_numbers() {
        assert_eq!(version_num("18.6 (Debian 18.6-3)"), Some(180_006));
        assert_eq!(version_num("19beta1"), Some(190_000));
        assert_eq!(version_num("15.19"), Some(150_019));
        assert_eq!(version_num("x"), None);
        assert_eq!(version_num("4294967295.1"), None);
    }

    #[test]
    fn errors_keep_their_untranslated_severity() {
        let body = b"SFEHLER\0VERROR\0C42704\0Mno slot\0Hmake one\0Qwhat\0\0";
        let report = ServerReport::parse(body).unwrap();
        assert_eq!(report.code, "42704");
        assert_eq!(report.to_string(), "ERROR: no slot\nHINT: make one");
        for cut in 0..body.len() {
            assert!(ServerReport::parse(&body[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn rows_are_as_long_as_they_say() {
        let body = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(row(body).unwrap(), [Some(b"a".to_vec()), None, Some(Vec::new())]);
        for cut in 0..body.len() {
            assert!(row(&body[..cut]).is_err(), "{cut}");
        }
        assert!(row(b"\0\x01\x7f\xff\xff\xff").is_err());
        assert!(row(b"\0\x01\xff\xff\xff\xfe").is_err());
    }
}
