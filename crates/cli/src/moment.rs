//! Times as people write them.
//!
//! Pure: a text, now and the local zone in; a moment or a reason out. A guess would be a restore
//! to the wrong moment, so whatever can be read in two ways is refused.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Span, Timestamp, Zoned};
use lifeboat_units::{Code, Explain, Retry};

/// A text that is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MomentError {
    /// Not understood.
    #[error("`{text}` is not a time that lifeboat understands")]
    Unknown {
        /// As written.
        text: String,
    },
    /// A date without a time of day.
    #[error("`{text}` names a day but no time of day")]
    NoTime {
        /// As written.
        text: String,
    },
    /// The clocks were set back: this local time came twice.
    #[error("`{text}` was twice in {zone}: the clocks were set back")]
    Twice {
        /// As written.
        text: String,
        /// The zone it was read in.
        zone: String,
        /// Both moments, in UTC.
        either: [Timestamp; 2],
    },
    /// The clocks were set forward: this local time never was.
    #[error("`{text}` never was in {zone}: the clocks were set forward")]
    Never {
        /// As written.
        text: String,
        /// The zone it was read in.
        zone: String,
    },
    /// Later than now.
    #[error("`{text}` is in the future: {at}")]
    Future {
        /// As written.
        text: String,
        /// What was understood.
        at: Timestamp,
    },
}

impl Explain for MomentError {
    fn code(&self) -> Code {
        // All are mistakes in an argument, like any other.
        Code("LB-CLI-001")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn help(&self) -> Option<String> {
        let forms = "write '2026-11-22 12:15', with +01:00, Z or a zone such as Europe/Berlin \
                     behind it if it is not local time; or 'yesterday 12:15', '20 minutes ago'";
        Some(match self {
            Self::Unknown { .. } | Self::NoTime { .. } => forms.to_owned(),
            Self::Twice { either: [first, second], .. } => {
                format!("write {first} for the first or {second} for the second")
            }
            Self::Never { .. } => "write it with its offset, such as +01:00, or in UTC".to_owned(),
            Self::Future { .. } => "only the past can be restored; is the zone right?".to_owned(),
        })
    }
}

/// Reads a moment. Without a zone in the text it is read in that of `now`.
pub(crate) fn parse(text: &str, now: &Zoned) -> Result<Timestamp, MomentError> {
    let text = text.trim();
    let at = understand(text, now)?;
    if at > now.timestamp() {
        return Err(MomentError::Future { text: text.to_owned(), at });
    }
    Ok(at)
}

/// A moment with its zone, and in UTC: what was understood, to be repeated.
pub(crate) fn repeated(at: Timestamp, zone: &TimeZone) -> String {
    let local = at.to_zoned(zone.clone());
    let name = zone.iana_name().unwrap_or("local time");
    let fraction = if at.subsec_nanosecond() == 0 { "" } else { "%.f" };
    let local = local.strftime(&format!("%Y-%m-%d %H:%M:%S{fraction} %:z")).to_string();
    let utc = at.strftime(&format!("%Y-%m-%d %H:%M:%S{fraction}")).to_string();
    if matches!(name, "UTC" | "Etc/UTC") {
        format!("{utc} UTC")
    } else {
        format!("{local} ({name}) = {utc} UTC")
    }
}

fn understand(text: &str, now: &Zoned) -> Result<Timestamp, MomentError> {
    let unknown = || MomentError::Unknown { text: text.to_owned() };
    let lower = text.to_ascii_lowercase();
    if lower == "now" {
        return Ok(now.timestamp());
    }
    if lower.ends_with(" ago") {
        let span: Span = lower.parse().map_err(|_| unknown())?;
        return now.checked_add(span).map(|then| then.timestamp()).map_err(|_| unknown());
    }
    let (body, zone) = split_zone(text, now.time_zone());
    let zone = zone.ok_or_else(unknown)?;
    let civil = civil(&body, &now.with_time_zone(zone.clone())).ok_or_else(|| {
        if plain_date(&body).is_some() {
            MomentError::NoTime { text: text.to_owned() }
        } else {
            unknown()
        }
    })?;
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    let zone_name = || zone.iana_name().unwrap_or("this zone").to_owned();
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { offset } => {
            offset.to_timestamp(civil).map_err(|_| unknown())
        }
        AmbiguousOffset::Gap { .. } => {
            Err(MomentError::Never { text: text.to_owned(), zone: zone_name() })
        }
        AmbiguousOffset::Fold { before, after } => {
            let at = |offset: Offset| offset.to_timestamp(civil).map_err(|_| unknown());
            let either = [at(before)?, at(after)?];
            Err(MomentError::Twice { text: text.to_owned(), zone: zone_name(), either })
        }
    }
}

/// Splits off a zone behind the time: `Z`, an offset, an IANA name, bare or in brackets.
/// `None` for a zone that does not exist.
fn split_zone(text: &str, local: &TimeZone) -> (String, Option<TimeZone>) {
    if let Some((body, name)) = text.strip_suffix(']').and_then(|text| text.rsplit_once('[')) {
        return (body.trim().to_owned(), TimeZone::get(name).ok());
    }
    if let Some((body, last)) = text.rsplit_once(' ')
        && last.starts_with(|c: char| c.is_ascii_alphabetic())
        && body.contains(':')
    {
        let zone = if last == "Z" { Some(TimeZone::UTC) } else { TimeZone::get(last).ok() };
        return (body.trim().to_owned(), zone);
    }
    if let Some(body) = text.strip_suffix(['Z', 'z']) {
        return (body.to_owned(), Some(TimeZone::UTC));
    }
    // A sign behind the first colon belongs to an offset; one before it, to the date.
    let colon = text.find(':').unwrap_or(text.len());
    if let Some(at) = text[colon..].rfind(['+', '-']) {
        let (body, offset) = text.split_at(colon + at);
        return (body.trim().to_owned(), parse_offset(offset).map(TimeZone::fixed));
    }
    (text.to_owned(), Some(local.clone()))
}

/// `+01`, `+0130`, `+01:30`.
fn parse_offset(text: &str) -> Option<Offset> {
    let (sign, digits) = (text.get(..1)?, text.get(1..)?.replace(':', ""));
    if !matches!(digits.len(), 2 | 4 | 6) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |at: usize| digits.get(at..at + 2).map_or(Some(0), |d| d.parse::<i32>().ok());
    let (hours, minutes, seconds) = (part(0)?, part(2)?, part(4)?);
    if minutes > 59 || seconds > 59 {
        return None;
    }
    let seconds = (hours * 60 + minutes) * 60 + seconds;
    Offset::from_seconds(if sign == "-" { -seconds } else { seconds }).ok()
}

/// A date and a time of day, both given.
fn civil(body: &str, now: &Zoned) -> Option<DateTime> {
    let body = body.trim();
    // A date has ten bytes; behind them may stand a `T` instead of a blank.
    let (date, time) = match body.split_at_checked(10) {
        Some((date, rest)) if rest.starts_with(['T', 't']) => (date, &rest[1..]),
        _ => body.split_once(' ')?,
    };
    let date = match date.to_ascii_lowercase().as_str() {
        "today" => now.date(),
        "yesterday" => now.date().yesterday().ok()?,
        _ => plain_date(date)?,
    };
    let time = time.trim().strip_prefix("at ").unwrap_or(time).trim();
    Some(date.to_datetime(plain_time(time)?))
}

/// `2026-11-22` and nothing else.
fn plain_date(text: &str) -> Option<Date> {
    let shape = text.len() == 10 && text.bytes().filter(|b| *b == b'-').count() == 2;
    if shape { text.parse().ok() } else { None }
}

/// `12:15`, `12:15:30`, `12:15:30.123456` and nothing else.
fn plain_time(text: &str) -> Option<Time> {
    let only = text.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.');
    if only && text.contains(':') { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sunday, 2026-11-22 20:00:00 in Berlin (+01:00).
    fn read(text: &str) -> Result<String, MomentError> {
        let now: Zoned = "2026-11-22T20:00:00[Europe/Berlin]".parse().unwrap();
        parse(text, &now).map(|at| at.to_string())
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, utc) in [
            ("2026-11-22 12:15", "2026-11-22T11:15:00Z"),
            ("2026-11-22T12:15:30", "2026-11-22T11:15:30Z"),
            (" 2026-11-22 12:15:00.123456 ", "2026-11-22T11:15:00.123456Z"),
            ("2026-11-22 12:15:00.123456+01", "2026-11-22T11:15:00.123456Z"),
            ("2026-11-22 12:15:00 +0530", "2026-11-22T06:45:00Z"),
            ("2026-11-22 12:15-03:30", "2026-11-22T15:45:00Z"),
            ("2026-11-22 12:15Z", "2026-11-22T12:15:00Z"),
            ("2026-11-22 12:15 Z", "2026-11-22T12:15:00Z"),
            ("2026-11-22 12:15 UTC", "2026-11-22T12:15:00Z"),
            ("2026-11-22 12:15 America/New_York", "2026-11-22T17:15:00Z"),
            ("2026-11-22T12:15[Asia/Kathmandu]", "2026-11-22T06:30:00Z"),
            ("2026-07-01 12:15", "2026-07-01T10:15:00Z"),
            ("yesterday 12:15", "2026-11-21T11:15:00Z"),
            ("Yesterday at 23:59:59", "2026-11-21T22:59:59Z"),
            ("today 08:00", "2026-11-22T07:00:00Z"),
            ("today 08:00 UTC", "2026-11-22T08:00:00Z"),
            ("20 minutes ago", "2026-11-22T18:40:00Z"),
            ("1 hour 30 minutes ago", "2026-11-22T17:30:00Z"),
            ("2h ago", "2026-11-22T17:00:00Z"),
            ("1 month ago", "2026-10-22T18:00:00Z"),
            ("now", "2026-11-22T19:00:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(utc), "{text}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        // The clocks went back on 2026-10-25 at 03:00 and forward on 2026-03-29 at 02:00.
        let Err(MomentError::Twice { either, .. }) = read("2026-10-25 02:30") else { panic!() };
        assert_eq!(
            either.map(|at| at.to_string()),
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]
        );
        assert!(read("2026-10-25 02:30+01").is_ok());
        assert!(matches!(read("2026-03-29 02:30"), Err(MomentError::Never { .. })));
        assert!(matches!(read("2026-11-22 20:00:01"), Err(MomentError::Future { .. })));
        assert!(matches!(read("today 23:00"), Err(MomentError::Future { .. })));
        assert!(matches!(read("2026-11-22"), Err(MomentError::NoTime { .. })));
        for text in [
            "",
            "12:15",
            "monday",
            "yesterday",
            "tomorrow 12:15",
            "22.11.2026 12:15",
            "11/22/2026 12:15",
            "2026-11-22 12:15 Nowhere/City",
            "2026-11-22 25:00",
            "2026-11-22 12:15+1",
            "20 minutes",
            "2026-02-30 12:00",
            "2026-11-22 12",
            "1732274100",
            "2026-11-22 12:15 +01:99",
            "ago",
            "2026-11-22 1215",
        ] {
            assert!(
                matches!(read(text), Err(MomentError::Unknown { .. })),
                "{text}: {:?}",
                read(text)
            );
        }
    }

    #[test]
    fn the_understood_moment_is_repeated_with_its_zone_and_in_utc() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let at = "2026-11-22T11:15:00Z".parse().unwrap();
        assert_eq!(
            repeated(at, &berlin),
            "2026-11-22 12:15:00 +01:00 (Europe/Berlin) = 2026-11-22 11:15:00 UTC"
        );
        assert_eq!(repeated(at, &TimeZone::UTC), "2026-11-22 11:15:00 UTC");
    }
}
