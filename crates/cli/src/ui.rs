//! Output: one report, as text for people or as JSON for programs.

use std::cell::OnceCell;
use std::io::{IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::error::{CliError, Trouble};

/// When to colour.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Also into a pipe.
    Always,
    /// Never.
    Never,
}

/// Something to be shown.
pub(crate) trait Report: Serialize {
    /// Writes it for people.
    fn text(&self, page: &mut Page);
}

/// How to show things.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    /// For programs.
    pub json: bool,
    /// Only what was asked for.
    pub quiet: bool,
    color: bool,
    /// Looked up when it is needed first: that reads a directory of a hundred names.
    zone: OnceCell<TimeZone>,
}

impl Ui {
    /// Decides about colours by looking at the terminal.
    pub fn new(json: bool, quiet: bool, color: Color) -> Self {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stdout().is_terminal() && crate::config::variable("NO_COLOR").is_none()
            }
        };
        Self { json, quiet, color, zone: OnceCell::new() }
    }

    /// Shows a report: text or JSON from the same value.
    pub fn emit<R: Report>(&self, report: &R) -> Result<(), CliError> {
        if self.json {
            let text = serde_json::to_string_pretty(report)
                .map_err(|error| Trouble::Bug(error.to_string()))?;
            return self.print(&format!("{text}\n"));
        }
        let mut page = self.page();
        report.text(&mut page);
        self.print(&page.text)
    }

    /// An empty page in this style.
    pub fn page(&self) -> Page {
        Page { text: String::new(), color: self.color, zone: self.zone.clone() }
    }

    /// A line for people, left out for programs and with `--quiet`.
    pub fn say(&self, line: &str) -> Result<(), CliError> {
        if self.json || self.quiet { Ok(()) } else { self.print(&format!("{line}\n")) }
    }

    /// Writes to standard output at once.
    pub fn print(&self, text: &str) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        Ok(written.map_err(|source| Trouble::Output { source })?)
    }

    /// A warning on standard error.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    /// The zone in which moments are shown.
    pub fn zone(&self) -> &TimeZone {
        self.zone.get_or_init(TimeZone::system)
    }
}

/// Text that grows.
pub(crate) struct Page {
    text: String,
    color: bool,
    zone: OnceCell<TimeZone>,
}

impl Page {
    /// Adds a line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// Adds lines of a name and a value, the values below each other.
    pub fn pairs(&mut self, pairs: &[(&str, String)]) {
        let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in pairs {
            let value = value.replace('\n', &format!("\n{:width$}  ", ""));
            self.line(format!("{name:width$}  {value}").trim_end());
        }
    }

    /// Adds a table: no frame, numbers (columns named in `right`) to the right.
    pub fn table(&mut self, header: &[&str], right: &[usize], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.iter().map(|name| name.to_uppercase()));
        table.add_rows(rows);
        let last = header.len().saturating_sub(1);
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if at == last { 0 } else { 2 }));
            if right.contains(&at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.lines() {
            self.line(line.trim_end());
        }
    }

    /// Good.
    pub fn tick(&self) -> String {
        self.paint("32", "✓")
    }

    /// Bad.
    pub fn cross(&self) -> String {
        self.paint("31", "✗")
    }

    /// Worth knowing.
    pub fn note(&self) -> String {
        self.paint("33", "!")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A moment in the local zone.
    pub fn time(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.get_or_init(TimeZone::system).clone())
            .strftime("%Y-%m-%d %H:%M:%S %Z")
            .to_string()
    }
}

/// A duration as people say it.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=9 => format!("{seconds:.1} s"),
        10..=119 => format!("{whole} s"),
        120..=7199 => format!("{} min {} s", whole / 60, whole % 60),
        7200..=172_799 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A number and its noun: `1 backup`, `2 backups`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Seconds between two moments, never negative.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}
