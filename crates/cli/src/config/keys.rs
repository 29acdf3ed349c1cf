//! Every key of `lifeboat.toml`, declared once: parser, reference and sample come from here.

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Its dotted name, as `--set` takes it.
    pub name: &'static str,
    /// What holds when it is not set, as it would be written; empty when that needs words.
    pub default: &'static str,
    /// A value as somebody would write it.
    pub example: &'static str,
    /// What it does: one or two sentences for the reference.
    pub help: &'static str,
}

macro_rules! keys {
    ($($constant:ident = $name:literal, $default:literal, $example:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(crate) const $constant: Key =
                Key { name: $name, default: $default, example: $example, help: $help };
        )*
        /// All keys, in the order of the reference.
        pub(crate) const ALL: &[&Key] = &[$(&$constant),*];
    };
}

keys! {
    CLUSTER = "cluster", "main", "main",
        "Name of the database cluster in the repository: 1 to 64 of a-z, 0-9, `-` and `_`. One repository can hold many clusters.";
    CONNINFO = "postgres.conninfo", "", "host=/run/postgresql port=5432 user=lifeboat dbname=postgres",
        "How to connect, as libpq reads it. What is left out comes from the PG… variables and libpq's defaults.";
    DATA_DIRECTORY = "postgres.data-directory", "", "/var/lib/postgresql/18/main",
        "The data directory as lifeboat sees it [default: what the server says].";
    PRIMARY = "postgres.primary", "", "host=db1.example.org user=lifeboat dbname=postgres",
        "For backups from a standby: how to reach its primary, to finish segments there [default: among the hosts of `postgres.conninfo`, then where the standby receives WAL from].";
    BINARIES = "postgres.binaries", "", "/usr/lib/postgresql/18/bin",
        "Directory of `postgres` and `pg_ctl` [default: where packages put them, then the PATH].";
    URL = "repository.url", "", "file:///srv/lifeboat",
        "Where the repository is: `file:///absolute/path`. Needed by every command.";
    COMPRESSION = "repository.compression", "auto", "zstd:3",
        "How new data are compressed: `auto`, `zstd:1` to `zstd:19`, `lz4` or `none`.";
    KEY_FILE = "repository.key-file", "", "/etc/lifeboat/lifeboat.key",
        "The unlocked key of this host, made by `lifeboat init`; only its owner may read it [default: `lifeboat.key` beside the configuration].";
    PASSPHRASE_FILE = "repository.passphrase-file", "", "/etc/lifeboat/passphrase",
        "A file whose first line is the repository's passphrase. `LIFEBOAT_PASSPHRASE` goes before it.";
    PASSPHRASE_COMMAND = "repository.passphrase-command", "", "pass show lifeboat/main",
        "A command for the shell that prints the passphrase; used when there is no passphrase file.";
    JOBS = "backup.jobs", "", "4",
        "Threads of a backup [default: one per processor, at most 4].";
    ARCHIVE_TIMEOUT = "backup.archive-timeout", "60s", "5m",
        "How long a backup or a check waits for a WAL segment to arrive in the repository.";
    SWEEP_SHARE = "backup.sweep-share", "1/14", "1/7",
        "Share of the data that a backup compares by hashes although the server says that it did not change: with `1/14`, fourteen backups look at everything once.";
    WIRE_COMPRESSION = "backup.wire-compression", "auto", "zstd:1",
        "How the server compresses a backup that it sends: `auto` (lz4 over a network, else not at all), `none`, `lz4` or `zstd:1` to `zstd:19`. It costs the server's processors; what the repository holds does not depend on it.";
    RESTORE_JOBS = "restore.jobs", "", "8",
        "Threads of a restore [default: one per processor].";
    WAL_PUSH = "wal.push", "async", "sync",
        "How `wal push` works: `async` has a background process look ahead and push in parallel, `sync` pushes each file by itself.";
    WAL_PUSH_JOBS = "wal.push-jobs", "", "4",
        "Threads of the background process [default: one per processor, at most 4].";
    WAL_PUSH_TIMEOUT = "wal.push-timeout", "60s", "2m",
        "How long one `wal push` waits for the background process before it tells PostgreSQL to try again.";
    WAL_BACKLOG_MAX = "wal.backlog-max", "", "50GiB",
        "How much WAL may wait in pg_wal before the oldest of it is given up so that the server can go on: PostgreSQL is told that it is archived, a gap is recorded, and a new backup is taken. Moments in between cannot be restored [default: no limit].";
    WAL_PREFETCH = "wal.prefetch", "16", "64",
        "How many WAL segments `lifeboat wal get` fetches ahead of a recovering server, at most; they lie in `lifeboat.prefetch` in its data directory until the server asks for them. 0 turns it off.";
    WAL_PREFETCH_JOBS = "wal.prefetch-jobs", "", "4",
        "Threads that fetch ahead [default: one per processor, at most 4].";
    WAL_SHIP_EVERY = "wal.ship-every", "5s", "2s",
        "How often `lifeboat wal receive` stores what it received of the segment under way: what a lost server can cost, unless it is synchronous.";
    WAL_SLOT = "wal.slot", "lifeboat", "lifeboat_main",
        "The replication slot through which `lifeboat wal receive` streams, and which `lifeboat check` looks at: a-z, 0-9 and `_`.";
    KEEP_BACKUPS = "retention.keep-backups", "", "14",
        "How many backups `lifeboat expire` keeps at least [default: no rule by count].";
    KEEP_WINDOW = "retention.keep-window", "", "30d",
        "How far back any moment stays reachable: `30d`, `12h`, `4w` [default: no rule by time].";
}

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    ALL.iter().find(|key| key.name == name).copied()
}

/// The known name that an unknown one most likely stands for.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    let last = |text: &str| text.rsplit('.').next().unwrap_or("").replace('_', "-");
    let likeness = |known: &str| {
        let whole = strsim::jaro_winkler(known, &name.replace('_', "-"));
        // The right key in the wrong section is as likely as a misspelt one.
        let leaf = strsim::jaro_winkler(&last(known), &last(name)) - 0.02;
        whole.max(leaf)
    };
    let best = ALL.iter().map(|key| (likeness(key.name), key.name));
    let (score, name) = best.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score > 0.8).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour_and_nonsense_finds_none() {
        assert_eq!(nearest("repository.compresion"), Some("repository.compression"));
        assert_eq!(nearest("keep_window"), Some("retention.keep-window"));
        assert_eq!(nearest("backup.url"), Some("repository.url"));
        assert_eq!(nearest("zzz.qqq"), None);
    }
}
