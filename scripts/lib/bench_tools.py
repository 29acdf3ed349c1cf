"""The tools that are compared. Each knows how to start afresh, back up and restore."""

import os
import shutil
from pathlib import Path

from bench_measure import Cost, Runner, size_bytes
from bench_server import Server

JOBS = 2

PGBACKREST_CONF = """
[global]
repo1-path={repo}
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=only for this measurement
repo1-bundle=y
repo1-block=y
repo1-retention-full=9
compress-type=zst
compress-level=3
process-max={jobs}
start-fast=y
log-path={work}
lock-path={work}
spool-path={work}
log-level-console=warn
log-level-file=off

[main]
pg1-path={data}
pg1-socket-path={work}
pg1-user=postgres
"""


class Tool:
    name = ""
    can_restore = True
    can_add = False  # a later backup that costs less than the first

    def __init__(self, runner: Runner, server: Server):
        self.runner, self.server = runner, server

    def begin(self):
        """Makes an empty repository. Not measured."""

    def take_over(self):
        """Makes the server archive to this tool. Not measured."""

    def backup(self, first: bool) -> Cost:
        raise NotImplementedError

    def restore(self, into: Path) -> Cost:
        raise NotImplementedError

    def repository_bytes(self) -> int:
        """Size of the stored backups, without archived WAL."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError


class PgBackRest(Tool):
    name = "pgBackRest"
    can_add = True

    def __init__(self, runner, server, tools: Path):
        super().__init__(runner, server)
        self.repo = runner.work / "pgbackrest-repo"
        conf = runner.work / "pgbackrest.conf"
        conf.write_text(PGBACKREST_CONF.format(
            repo=self.repo, work=runner.work, data=server.data, jobs=JOBS))
        runner.give(conf)
        self.program = tools / "bin/pgbackrest"
        self.command = [self.program, f"--config={conf}", "--stanza=main"]

    def begin(self):
        self.runner.make_dir(self.repo.name)
        self.runner.run(*self.command, "--no-online", "stanza-create")

    def take_over(self):
        self.server.archive_to(" ".join(map(str, self.command)) + " archive-push %p")

    def backup(self, first):
        kind = "full" if first else "incr"
        return self.runner.measure(*self.command, f"--type={kind}", "backup")

    def restore(self, into):
        return self.runner.measure(
            *self.command, f"--pg1-path={into}", "--archive-mode=off", "restore")

    def repository_bytes(self):
        return size_bytes(self.repo / "backup")

    def version(self):
        return self.runner.run(self.program, "version").split()[-1]


class Lifeboat(Tool):
    name = "lifeboat"
    can_add = True
    host = "lifeboat-host"  # where settings and keys lie
    flags = []  # of a backup

    def __init__(self, runner, server, program: Path):
        super().__init__(runner, server)
        self.repo = runner.work / f"{self.host}-repo"
        self.passphrase = runner.work / "passphrase"
        self.passphrase.write_text("only for this measurement\n")
        self.passphrase.chmod(0o600)
        runner.give(self.passphrase)
        # A copy, because the user of the database may not be able to read the build directory.
        self.program = runner.work / "lifeboat"
        shutil.copy(program, self.program)
        self.program.chmod(0o755)

    def command(self, *words):
        # Settings, keys and caches of one repository live and go together.
        return [self.program, "--config", self.runner.work / self.host / "lifeboat.toml", *words]

    def begin(self):
        self.runner.make_dir(self.host)
        self.runner.make_dir(self.repo.name).rmdir()
        self.runner.run(*self.command(
            "init", "--name", "main", "--pg", f"host={self.runner.work} port=5432 user=postgres",
            "--repo", f"file://{self.repo}", "--passphrase-file", self.passphrase))

    def take_over(self):
        self.server.archive_to(" ".join(map(str, self.command("wal", "push", "%p"))))

    def backup(self, first):
        return self.runner.measure(*self.command("backup", "--jobs", JOBS, *self.flags))

    def restore(self, into):
        return self.runner.measure(*self.command("restore", "--into", into, "--latest", "--jobs", JOBS))

    def repository_bytes(self):
        return size_bytes(self.repo, without="wal")

    def version(self):
        return self.runner.run(self.program, "--version").split()[-1]


class LifeboatByHashes(Lifeboat):
    """Reads everything, as before PostgreSQL 17 or without WAL summaries."""

    name = "lifeboat, all read"
    can_restore = False
    host = "lifeboat-hashes"
    flags = ["--full-read"]


class PgBaseBackupIncremental(Tool):
    """Plain files: only what changed since the backup before, by WAL summaries. Nothing is compressed or encrypted."""

    name = "pg_basebackup -i"
    can_restore = False
    can_add = True

    def begin(self):
        self.targets = []

    def backup(self, first):
        before = [] if first else [f"--incremental={self.targets[-1] / 'backup_manifest'}"]
        self.targets.append(self.runner.make_dir(f"incremental-{len(self.targets)}"))
        return self.runner.measure(
            "pg_basebackup", "-U", "postgres", "-D", self.targets[-1], "--checkpoint=fast",
            "--wal-method=none", *before)

    def repository_bytes(self):
        return sum(size_bytes(target) for target in self.targets)

    def version(self):
        return self.runner.run("pg_basebackup", "--version").split()[2]


class PgBaseBackup(Tool):
    name = "pg_basebackup"
    can_restore = False

    def backup(self, first):
        self.target = self.runner.make_dir("basebackup")
        return self.runner.measure(
            "pg_basebackup", "-U", "postgres", "-D", self.target, "-Ft", "--checkpoint=fast",
            "--wal-method=none", f"--compress=client-zstd:level=3,workers={JOBS}")

    def repository_bytes(self):
        return size_bytes(self.target)

    def version(self):
        return self.runner.run("pg_basebackup", "--version").split()[2]


class TarZstd(Tool):
    name = "tar | zstd -3"  # the version is that of zstd
    can_restore = False

    def backup(self, first):
        self.target = self.runner.make_dir("tar")
        return self.runner.measure(
            "bash", "-ec", f"set -o pipefail; tar -C '{self.server.data}' --exclude=./pg_wal -cf - . |"
            f" zstd -q -3 -T{JOBS} -o '{self.target}/all.tar.zst'; sync -f '{self.target}'")

    def repository_bytes(self):
        return size_bytes(self.target)

    def version(self):
        return self.runner.run("zstd", "--version").split(" v")[-1].split(",")[0]


class Copy(Tool):
    name = "cp and sync"

    def _copy(self, into):
        # Synced as one file system, which is cheaper than file by file.
        return self.runner.measure(
            "bash", "-ec", f"cp -a --reflink=never '{self.server.data}/.' '{into}'; sync -f '{into}'")

    def backup(self, first):
        self.target = self.runner.make_dir("copy")
        return self._copy(self.target)

    def restore(self, into):
        return self._copy(into)

    def repository_bytes(self):
        return size_bytes(self.target, without="pg_wal")

    def version(self):
        return self.runner.run("cp", "--version").split()[3]


def different_relation(one: Path, other: Path) -> Path | None:
    """Compares all relation files of two data directories byte by byte. Returns the first that differs."""
    for path, _, files in os.walk(one / "base"):
        for name in files:
            if name.startswith("pg_internal.init"):
                continue
            first = Path(path, name)
            second = other / first.relative_to(one)
            if not second.is_file() or not same_bytes(first, second):
                return first
    return None


def same_bytes(first: Path, second: Path) -> bool:
    with open(first, "rb") as one, open(second, "rb") as other:
        while True:
            a, b = one.read(1 << 20), other.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True
