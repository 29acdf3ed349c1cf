//! The files that lifeboat writes: the short one of `init`, and the sample with every key.

use std::fmt::Write;

use super::keys;

/// A file with every key, each with its explanation and an example.
pub(crate) fn sample() -> String {
    let mut text =
        String::from("# Every key of lifeboat.toml. What is commented out is optional.\n");
    let mut section = "";
    for key in keys::ALL {
        let (table, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if table != section {
            section = table;
            let _ = write!(text, "\n[{table}]\n");
        } else if !text.ends_with("\n\n") {
            text.push('\n');
        }
        for line in wrapped(key.help, 96) {
            let _ = writeln!(text, "# {line}");
        }
        let value = if key.default.is_empty() { key.example } else { key.default };
        let mark = if key.name == keys::URL.name { "" } else { "# " };
        let _ = writeln!(text, "{mark}{name} = {}", quoted(value));
    }
    text
}

/// What `init` writes.
pub(crate) struct Written<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Connection string.
    pub conninfo: &'a str,
    /// Whether the server is reached only through the network.
    pub far: bool,
    /// Whether it is a standby.
    pub standby: bool,
    /// Where the server's programs are, when they are in none of the usual places.
    pub binaries: Option<&'a str>,
    /// Address of the repository.
    pub url: &'a str,
    /// The file that holds the passphrase.
    pub passphrase_file: Option<&'a str>,
}

impl Written<'_> {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "# lifeboat: every key is explained in docs/reference/config.md\n\
             cluster = {}\n\n[postgres]\n",
            quoted(self.cluster),
        );
        if self.far {
            text.push_str(
                "# Its data directory cannot be read here: the server sends its files.\n",
            );
        }
        let _ = writeln!(text, "conninfo = {}", quoted(self.conninfo));
        if self.standby {
            text.push_str(
                "# How to reach the primary, when it is not where the standby receives WAL from:\n\
                 # primary = \"host=db1.example.org user=lifeboat dbname=postgres\"\n",
            );
        }
        if let Some(path) = self.binaries {
            let _ = writeln!(text, "binaries = {}", quoted(path));
        }
        let _ = write!(text, "\n[repository]\nurl = {}\n", quoted(self.url));
        match self.passphrase_file {
            Some(path) => {
                let _ = writeln!(text, "passphrase-file = {}", quoted(path));
            }
            None => text.push_str(
                "# passphrase-file = \"/etc/lifeboat/passphrase\"   # or LIFEBOAT_PASSPHRASE\n",
            ),
        }
        text.push_str("# compression = \"auto\"\n\n");
        if self.far {
            text.push_str(
                "[backup]\n# wire-compression = \"auto\"   # how the server compresses\n\n",
            );
        }
        text.push_str(
            "[retention]\n\
             # What `lifeboat expire` keeps; without a rule it keeps everything.\n\
             # keep-backups = 14\n# keep-window = \"30d\"\n",
        );
        text
    }
}

/// A value as TOML: numbers as they are, everything else as a text.
fn quoted(value: &str) -> String {
    match value.parse::<u32>() {
        Ok(number) => number.to_string(),
        Err(_) => toml::Value::String(value.to_owned()).to_string(),
    }
}

/// Breaks a sentence into lines of at most `width` characters.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always one");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Settings, raw::Raw};
    use super::*;

    #[test]
    fn the_sample_parses_also_with_every_key_set() {
        let file = Path::new("/etc/lifeboat/lifeboat.toml");
        let commented = sample();
        let all: String = commented
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        for text in [commented, all.clone()] {
            Settings::check(&Raw::parse(&text, file).unwrap(), file, true).unwrap();
        }
        let raw = Raw::parse(&all, file).unwrap();
        for key in keys::ALL {
            assert!(raw.get(key).is_some(), "{} is missing in\n{all}", key.name);
        }
    }

    #[test]
    fn what_init_writes_reads_back_whatever_the_values() {
        let file = Path::new("/etc/lifeboat/lifeboat.toml");
        let written = Written {
            cluster: "main",
            binaries: Some("/opt/pg/bin"),
            far: true,
            standby: true,
            conninfo: "host='/run/my \\'pg\\'' user=\"x\"",
            url: "file:///srv/a%20b",
            passphrase_file: Some("/a \"b\"/c\\d"),
        };
        let settings =
            Settings::check(&Raw::parse(&written.text(), file).unwrap(), file, true).unwrap();
        assert_eq!(settings.conninfo, written.conninfo);
        assert_eq!(settings.url.as_deref(), Some(written.url));
        assert_eq!(settings.passphrase_file.as_deref(), written.passphrase_file.map(Path::new));
    }
}
