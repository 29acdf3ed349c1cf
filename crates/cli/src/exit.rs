//! The only place that turns errors into words and numbers.

use std::ffi::OsString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lifeboat_units::{Cancel, Explain};
use serde_json::json;

use crate::error::{CliError, Trouble, usage};

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// Done, with findings that somebody should look at.
    Findings,
    /// `wal get`: the file is certainly not there.
    NotThere,
}

/// One number that lifeboat ends with, and its meaning.
pub(crate) struct Row {
    /// The number.
    pub number: u8,
    /// What it means.
    pub meaning: &'static str,
    /// Codes of errors that end with it; a code that ends in `-` stands for all that begin so.
    pub codes: &'static [&'static str],
}

/// Unknown codes must be treated as failure.
pub(crate) const TABLE: &[Row] = &[
    Row { number: 0, meaning: "done", codes: &[] },
    Row { number: 1, meaning: "failed; for `wal get`: certainly not there", codes: &[] },
    Row {
        number: 2,
        meaning: "wrong arguments or configuration",
        codes: &[
            "LB-CLI-001",
            "LB-CLI-002",
            "LB-CONF-",
            "LB-STORE-009",
            "LB-REPO-007",
            "LB-PG-001",
            "LB-PG-002",
            "LB-PG-003",
            "LB-PG-004",
            "LB-PG-005",
            "LB-PG-006",
            "LB-PG-007",
        ],
    },
    Row {
        number: 3,
        meaning: "done, with findings (`verify`, `check`; `backup`: damaged pages in the data directory; \
                  `init --apply`: a setting that the role may not make)",
        codes: &[],
    },
    Row {
        number: 10,
        meaning: "the repository is missing or cannot be reached",
        codes: &["LB-REPO-001", "LB-REPO-014", "LB-STORE-006"],
    },
    Row {
        number: 11,
        meaning: "busy: another lifeboat works on this cluster",
        codes: &["LB-REPO-010"],
    },
    Row {
        number: 12,
        meaning: "wrong, missing or unsafe key",
        codes: &[
            "LB-REPO-004",
            "LB-REPO-005",
            "LB-REPO-006",
            "LB-REPO-013",
            "LB-CLI-003",
            "LB-CLI-004",
            "LB-CLI-005",
            "LB-CLI-006",
        ],
    },
    Row {
        number: 13,
        meaning: "damage found in the repository",
        codes: &["LB-REPO-008", "LB-STORE-003", "LB-STORE-004"],
    },
    Row {
        number: 20,
        meaning: "the database cannot be reached",
        codes: &["LB-PG-020", "LB-PG-021", "LB-PG-022", "LB-PG-036", "LB-PG-039"],
    },
    Row {
        number: 126,
        meaning: "`wal get` only: could not find out, so PostgreSQL must stop and not promote",
        codes: &[],
    },
    Row { number: 130, meaning: "interrupted", codes: &[] },
];

/// The number for a code of the table; 1 for all others.
fn number_of(code: &str) -> u8 {
    let fits = |known: &&str| known.ends_with('-') && code.starts_with(*known) || **known == *code;
    TABLE.iter().find(|row| row.codes.iter().any(&fits)).map_or(1, |row| row.number)
}

/// Commands whose exit codes PostgreSQL interprets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `restore_command`: 1 is "not there", everything else must be above 125.
    WalGet,
    /// `archive_command`: a failure must be 1 to 125, or the archiver process dies.
    WalPush,
    /// All others.
    Other,
}

/// What follows `wal` apart from `get` and `push`.
const OTHER_WAL_COMMANDS: [&str; 6] =
    ["receive", "list", "prefetch", "pusher", "recovered", "help"];

impl Role {
    /// Told from the words alone, because wrong arguments have exit codes too.
    fn of(arguments: &[OsString]) -> Self {
        let mut words = arguments.iter().skip_while(|word| *word != "wal").skip(1);
        match words.clone().find(|word| *word == "get" || *word == "push") {
            Some(word) if word == "get" => Self::WalGet,
            Some(_) => Self::WalPush,
            None if words
                .clone()
                .any(|word| OTHER_WAL_COMMANDS.iter().any(|other| word == other)) =>
            {
                Self::Other
            }
            // A slip in `restore_command` must not be taken for the end of the archive.
            None if words.any(|word| !word.to_string_lossy().starts_with('-')) => Self::WalGet,
            None => Self::Other,
        }
    }

    fn success(self, outcome: Outcome) -> u8 {
        match outcome {
            Outcome::Done => 0,
            Outcome::Findings => 3,
            Outcome::NotThere => 1,
        }
    }

    fn failure(self, number: u8) -> u8 {
        match self {
            Self::WalGet => number.max(126),
            Self::WalPush if !(1..=125).contains(&number) => 1,
            Self::WalPush | Self::Other => number,
        }
    }
}

/// Runs a command with everything that ends in an exit code: errors, wrong arguments, panics.
pub(crate) fn guarded(
    arguments: &[OsString],
    cancel: &Cancel,
    run: impl FnOnce() -> Result<Outcome, Ending>,
) -> u8 {
    let role = Role::of(arguments);
    let json = asks_for_json(arguments);
    // A panic is said below, in lifeboat's own form.
    let place = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let seen = place.clone();
    std::panic::set_hook(Box::new(move |info| {
        if let Ok(mut place) = seen.lock() {
            *place = info.to_string().replace('\n', " ");
        }
    }));
    let ending = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(outcome)) => return role.success(outcome),
        Ok(Err(ending)) => ending,
        Err(_) => {
            let what = place.lock().map(|place| place.clone()).unwrap_or_default();
            Ending::Error { error: crashed(what).into(), json }
        }
    };
    match ending {
        Ending::Arguments(error)
            if json && error.kind() == clap::error::ErrorKind::DisplayVersion =>
        {
            let version = json!({ "version": env!("CARGO_PKG_VERSION") });
            let _ = writeln!(std::io::stdout(), "{version:#}");
            0
        }
        Ending::Arguments(error) => {
            let _ = error.print();
            if json && error.exit_code() != 0 {
                let error = misunderstood(&error);
                object(&error, &[], error.help().as_deref());
            }
            match error.exit_code() {
                0 => 0,
                code => role.failure(u8::try_from(code).unwrap_or(2)),
            }
        }
        Ending::Error { error, json } => {
            if is_broken_pipe(error.0.as_ref()) {
                return role.failure(1); // whoever read our output has seen enough
            }
            let interrupted = cancel.is_cancelled();
            say(error.0.as_ref(), json, interrupted);
            role.failure(if interrupted { 130 } else { number_of(error.0.code().0) })
        }
    }
}

/// What a panic means. That of the standard library where the system refuses a thread is no mistake.
fn crashed(what: String) -> Trouble {
    match what.split_once("failed to spawn thread: ") {
        // As `Debug` writes an error of the system: its words are what is quoted.
        Some((_, why)) => Trouble::Threads(why.split('"').nth(1).unwrap_or(why).to_owned()),
        None => Trouble::Bug(what),
    }
}

/// Told from the words alone, because wrong arguments are told to programs too.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().skip(1).take_while(|word| *word != "--").any(|word| word == "--json")
}

/// Wrong arguments as an error of ours: what is wrong, and what may help.
fn misunderstood(error: &clap::Error) -> Trouble {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return usage("no command was given", "try '--help'");
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim();
    let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
    let help = (!help.is_empty()).then(|| help.trim().to_owned());
    Trouble::Usage { message: message.to_owned(), help }
}

/// Why a command did not end well.
pub(crate) enum Ending {
    /// The arguments are wrong, or help was asked for.
    Arguments(clap::Error),
    /// The command failed.
    Error {
        /// Why.
        error: CliError,
        /// Whether programs read the output.
        json: bool,
    },
}

fn is_broken_pipe(error: &dyn Explain) -> bool {
    causes(error).iter().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }) && error.code().0 == "LB-CLI-008"
}

fn causes<'a>(error: &'a dyn Explain) -> Vec<&'a (dyn std::error::Error + 'static)> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

/// Says an error: message and code, causes once each, help. With `--json` also as an object.
fn say(error: &dyn Explain, json: bool, interrupted: bool) {
    let message = error.to_string();
    let mut chain: Vec<String> = Vec::new();
    for cause in causes(error).iter().map(|cause| cause.to_string()) {
        let before = chain.last().unwrap_or(&message);
        if !before.contains(&cause) {
            chain.push(cause); // transparent errors repeat what was said
        }
    }
    let help = error.help().filter(|_| !interrupted);
    let _ = std::io::stderr()
        .write_all(text(&message, error.code().0, &chain, help.as_deref()).as_bytes());
    if json {
        object(error, &chain, help.as_deref());
    }
}

/// An error for programs, on standard output.
fn object(error: &dyn Explain, causes: &[String], help: Option<&str>) {
    let object = json!({ "error": {
        "code": error.code().0, "message": error.to_string(), "causes": causes, "help": help,
    }});
    // Where each line is an object, the error is one too.
    let streams = std::env::args_os().any(|word| word == "receive");
    let _ = match streams {
        true => writeln!(std::io::stdout(), "{object}"),
        false => writeln!(std::io::stdout(), "{object:#}"),
    };
}

fn text(message: &str, code: &str, chain: &[String], help: Option<&str>) -> String {
    let mut text = String::new();
    let indent = |body: &str| body.trim_end().replace('\n', "\n       ");
    // The code stands behind the first line, whatever follows it.
    let (first, rest) = message.split_once('\n').unwrap_or((message, ""));
    text.push_str(&format!("error: {first}   [{code}]\n"));
    if !rest.is_empty() {
        text.push_str(&format!("       {}\n", indent(rest)));
    }
    for cause in chain {
        text.push_str(&format!("       {}\n", indent(cause)));
    }
    if let Some(help) = help {
        text.push_str(&format!("help:  {}\n", indent(help)));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn role(line: &str) -> Role {
        Role::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_thread_that_the_system_refuses_is_no_mistake() {
        let seen = "panicked at library/std/src/thread/scoped.rs:194:46: failed to spawn thread: \
                    Os { code: 11, kind: WouldBlock, message: \"Resource temporarily unavailable\" }";
        let told = crashed(seen.to_owned()).to_string();
        assert!(told.ends_with(": Resource temporarily unavailable"), "{told}");
        assert!(matches!(crashed("panicked at index".to_owned()), Trouble::Bug(_)));
    }

    #[test]
    fn no_failure_of_wal_get_means_not_there() {
        assert_eq!(role("lifeboat --config wal.toml wal get X Y"), Role::WalGet);
        assert_eq!(role("lifeboat wal --json get"), Role::WalGet);
        assert_eq!(role("lifeboat wal push get"), Role::WalPush);
        assert_eq!(role("lifeboat list"), Role::Other);
        assert_eq!(role("lifeboat wal list"), Role::Other);
        // Slips, one of which may be in `restore_command`.
        for slip in ["lifeboat wal gett X Y", "lifeboat --config c.toml wal fetch X Y"] {
            assert_eq!(role(slip), Role::WalGet, "{slip}");
        }
        assert_eq!(role("lifeboat wal --help"), Role::Other);
        // None of the program's own words is a slip.
        let mut cli = crate::args::Cli::command();
        cli.build();
        let wal = cli.find_subcommand("wal").expect("there is one");
        for word in wal.get_subcommands().map(clap::Command::get_name) {
            let expected = match word {
                "get" => Role::WalGet,
                "push" => Role::WalPush,
                _ => Role::Other,
            };
            assert_eq!(role(&format!("lifeboat wal {word} X")), expected, "{word}");
        }
        for row in TABLE.iter().filter(|row| row.number > 0) {
            assert!(Role::WalGet.failure(row.number) >= 126, "{}", row.number);
            assert!((1..=125).contains(&Role::WalPush.failure(row.number)), "{}", row.number);
        }
        assert_eq!(Role::WalGet.success(Outcome::NotThere), 1);
    }

    #[test]
    fn codes_find_their_numbers() {
        assert_eq!(number_of("LB-CONF-004"), 2);
        assert_eq!(number_of("LB-REPO-001"), 10);
        assert_eq!(number_of("LB-PG-020"), 20);
        assert_eq!(number_of("LB-PG-0200"), 1);
        assert_eq!(number_of("LB-RST-001"), 1);
    }

    #[test]
    fn an_error_is_said_in_three_parts() {
        let said = text("cannot do\nx\ny", "LB-A-1", &["because".into()], Some("try\nthis"));
        assert_eq!(
            said,
            "error: cannot do   [LB-A-1]\n       x\n       y\n       because\nhelp:  try\n       this\n"
        );
    }
}
