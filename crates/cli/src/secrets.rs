//! Where the passphrase comes from. It is never an argument and never printed.

use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_units::Secret;

use crate::config::Settings;
use crate::error::Trouble;

/// Holds the passphrase.
pub(crate) const VARIABLE: &str = "LIFEBOAT_PASSPHRASE";

/// The passphrase from the variable, the file or the command; `None` when none of them is set.
pub(crate) fn configured(settings: &Settings) -> Result<Option<Secret>, Trouble> {
    match at_hand(settings)? {
        None => settings.passphrase_command.as_deref().map(from_command).transpose(),
        found => Ok(found),
    }
}

/// The passphrase from the variable or the file: without running anything that may ask somebody.
pub(crate) fn at_hand(settings: &Settings) -> Result<Option<Secret>, Trouble> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => return Ok(Some(Secret::new(text))),
        Err(std::env::VarError::NotUnicode(_)) => {
            let problem = "it is not UTF-8".to_owned();
            return Err(Trouble::Passphrase { from: VARIABLE.to_owned(), problem });
        }
        _ => {}
    }
    settings.passphrase_file.as_deref().map(from_file).transpose()
}

/// The first line of a file.
pub(crate) fn from_file(path: &Path) -> Result<Secret, Trouble> {
    let failed =
        |problem: String| Trouble::Passphrase { from: format!("`{}`", path.display()), problem };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    first_line(&text).ok_or_else(|| failed("its first line is empty".to_owned()))
}

/// Whether a file can be read by everybody.
pub(crate) fn is_public(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

fn from_command(command: &str) -> Result<Secret, Trouble> {
    let failed = |problem: String| Trouble::Passphrase {
        from: "repository.passphrase-command".to_owned(),
        problem,
    };
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("it ended with {}", output.status)));
    }
    let text =
        String::from_utf8(output.stdout).map_err(|_| failed("it is not UTF-8".to_owned()))?;
    first_line(&text).ok_or_else(|| failed("it printed nothing".to_owned()))
}

fn first_line(text: &str) -> Option<Secret> {
    let line = text.split('\n').next().unwrap_or("").trim_end_matches('\r');
    (!line.is_empty()).then(|| Secret::new(line.to_owned()))
}

/// Whether a person can be asked.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks at the terminal; twice when the passphrase is a new one.
pub(crate) fn ask(what: &str, twice: bool) -> Result<Secret, Trouble> {
    if !can_ask() {
        return Err(Trouble::NoPassphrase);
    }
    let read = |prompt: String| {
        let failed =
            |problem: String| Trouble::Passphrase { from: "the terminal".to_owned(), problem };
        let text = rpassword::prompt_password(prompt).map_err(|error| failed(error.to_string()))?;
        first_line(&text).ok_or_else(|| failed("it is empty".to_owned()))
    };
    let first = read(format!("{what}: "))?;
    if twice && read(format!("{what}, again: "))? != first {
        return Err(Trouble::PassphrasesDiffer);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_line_is_cut_off() {
        assert_eq!(first_line(" a b \r\nc\n").unwrap().expose(), " a b ");
        assert!(first_line("\nx").is_none());
        assert_eq!(from_command("printf 'x y'").unwrap().expose(), "x y");
        assert!(from_command("exit 3").unwrap_err().to_string().contains("exit status: 3"));
    }
}
