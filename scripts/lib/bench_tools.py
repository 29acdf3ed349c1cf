"""The tools that are compared. Each knows how to start afresh, back up and restore."""

import os
import shutil
import subprocess
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
compress-type={compression}
process-max={jobs}
start-fast=y
archive-async={asynchronous}
log-path={work}
lock-path={work}
spool-path={spool}
log-level-console=warn
log-level-file=off

[main]
pg1-path={data}
pg1-socket-path={work}
pg1-port={port}
pg1-user=postgres
"""
PGBACKREST_MODES = {
    "sync": ("n", "zst\ncompress-level=3"),
    "async": ("y", "zst\ncompress-level=3"),
    "async lz4": ("y", "lz4"),
}
LIFEBOAT_MODES = {
    "sync": ["wal.push=sync"],
    "async": ["wal.push=async"],
    "async lz4": ["wal.push=async", "repository.compression=lz4"],
    "no prefetch": ["wal.prefetch=0"],
    "prefetch": [],  # its default: 16 segments
}


class Tool:
    name = ""
    can_restore = True
    can_add = False  # a later backup that costs less than the first

    def __init__(self, runner: Runner, server: Server):
        self.runner, self.server = runner, server

    def begin(self):
        """Makes an empty repository. Not measured."""

    def push_command(self) -> str | None:
        """What archives one segment; `None` for who archives nothing."""

    def take_over(self):
        """Makes the server archive to this tool. Not measured."""
        if command := self.push_command():
            self.server.archive_to(command)

    def measure(self, *command) -> Cost:
        running = (self.server.data / "postmaster.pid").exists()
        return self.runner.measure(*command, server_pid=self.server.pid() if running else None)

    def backup(self, work: str) -> Cost | None:
        """Takes a backup in the way that this work is about; `None` when it is not this tool's."""
        raise NotImplementedError

    def restore(self, into: Path, delta: bool = False) -> Cost | None:
        """Restores the newest backup; `None` when the tool cannot."""
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
        self.repo = runner.work / f"pgbackrest-repo-{server.data.name}"
        self.spool = runner.work / f"pgbackrest-spool-{server.data.name}"
        self.program = tools / "bin/pgbackrest"
        for mode, (asynchronous, compression) in PGBACKREST_MODES.items():
            self._conf(mode).write_text(PGBACKREST_CONF.format(
                repo=self.repo, work=runner.work, data=server.data, jobs=JOBS, port=server.port,
                spool=self.spool, asynchronous=asynchronous, compression=compression))
            runner.give(self._conf(mode))

    def _conf(self, mode):
        return self.runner.work / f"pgbackrest-{self.server.data.name}-{mode.replace(' ', '-')}.conf"

    def command(self, *words, mode="sync"):
        return [self.program, f"--config={self._conf(mode)}", "--stanza=main", *words]

    def wal_command(self, words: str, mode: str, data: Path | None = None) -> str:
        """What PostgreSQL would be given, for the server's own or for a restored directory."""
        where = [f"--pg1-path={data}"] if data else []
        return " ".join(map(str, self.command(*where, mode=mode))) + " archive-" + words

    def begin(self):
        self.runner.make_dir(self.repo.name)
        self.clear_spool()
        self.runner.run(*self.command("--no-online", "stanza-create"))

    def clear_spool(self):
        self.runner.make_dir(self.spool.name)

    def push_command(self):
        return self.wal_command("push %p", "sync")

    def backup(self, work):
        if "remote" in work:
            return None
        kind = "full" if work == "first backup" else "incr"
        return self.measure(*self.command(f"--type={kind}", "backup"))

    def restore(self, into, delta=False, mode="sync"):
        words = ["--delta"] if delta else []
        return self.measure(
            *self.command(f"--pg1-path={into}", "--archive-mode=off", *words, "restore", mode=mode))

    def repository_bytes(self):
        return size_bytes(self.repo / "backup")

    def archive_bytes(self):
        return size_bytes(self.repo / "archive")

    def version(self):
        return self.runner.run(self.program, "version").split()[-1]


class Lifeboat(Tool):
    name = "lifeboat"
    can_add = True

    def __init__(self, runner, server, program: Path):
        super().__init__(runner, server)
        self.repo = runner.work / f"lifeboat-repo-{server.data.name}"
        self.host = runner.work / f"lifeboat-host-{server.data.name}"
        self.passphrase = runner.work / "passphrase"
        self.passphrase.write_text("only for this measurement\n")
        self.passphrase.chmod(0o600)
        runner.give(self.passphrase)
        # A copy, because the user of the database may not be able to read the build directory.
        self.program = runner.work / "lifeboat"
        if not self.program.exists():  # a pusher of another server may still run it
            shutil.copy(program, self.program)
            self.program.chmod(0o755)

    def command(self, *words, settings=()):
        # Settings, keys and caches of one repository live and go together.
        sets = [word for setting in settings for word in ("--set", setting)]
        return [self.program, "--config", self.host / "lifeboat.toml", *sets, *words]

    def knows(self, *words) -> bool:
        """Whether this program has what is to be measured: one of an earlier day may not."""
        *command, option = words
        return option in self.runner.run(self.program, *command, "--help")

    def accepts(self, mode: str) -> bool:
        process = self.runner.spawn(
            self.command("list", settings=LIFEBOAT_MODES[mode]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return process.wait() == 0

    def wal_command(self, words: str, mode: str, data: Path | None = None) -> str:
        """What PostgreSQL would be given; it runs in the data directory that is meant."""
        return " ".join(map(str, self.command("wal", words, settings=LIFEBOAT_MODES[mode])))

    def begin(self):
        self.runner.make_dir(self.host.name)
        self.runner.make_dir(self.repo.name).rmdir()
        self.runner.run(*self.command(
            "init", "--name", "main", "--pg",
            f"host={self.runner.work} port={self.server.port} user=postgres",
            "--repo", f"file://{self.repo}", "--passphrase-file", self.passphrase))

    def clear_spool(self):
        """Acknowledgements of one repository say nothing of another."""
        shutil.rmtree(self.server.data / "lifeboat.spool", ignore_errors=True)

    def push_command(self):
        return " ".join(map(str, self.command("wal", "push", "%p")))

    def backup(self, work):
        words = ["backup", "--jobs", JOBS]
        if "remote" in work:
            if not self.knows("backup", "--from"):
                return None
            words += ["--from", "remote"]
        elif "summaries" not in work and self.knows("backup", "--full-read"):
            words += ["--full-read"]
        return self.measure(*self.command(*words))

    def restore(self, into, delta=False, mode=None):
        words = ["restore", "--into", into, "--latest", "--jobs", JOBS]
        if delta:
            if not self.knows("restore", "--delta"):
                return None
            words += ["--delta"]
        return self.measure(*self.command(*words, settings=LIFEBOAT_MODES[mode] if mode else ()))

    def repository_bytes(self):
        return size_bytes(self.repo, without="wal")

    def archive_bytes(self):
        return size_bytes(self.repo) - self.repository_bytes()

    def version(self):
        return self.runner.run(self.program, "--version").split()[-1]


class PgBaseBackup(Tool):
    """Over the network, or what would be one: a socket. The server reads and may compress."""

    can_restore = False
    can_add = True

    def __init__(self, runner, server, compress: str):
        super().__init__(runner, server)
        self.compress = compress
        self.name = f"pg_basebackup {compress}"
        self.target = runner.work / f"basebackup-{compress}"

    def backup(self, work):
        words = ["pg_basebackup", "-U", "postgres", "-p", self.server.port, "--checkpoint=fast",
                 "--wal-method=none"]
        if work == "first backup" and self.compress == "client-zstd" or work == "first remote backup":
            self.runner.make_dir(self.target.name)
            return self.measure(
                *words, "-Ft", "-D", self.target, f"--compress={self.compress}:level=3,workers={JOBS}")
        if "summaries" in work and self.compress == "client-zstd":
            later = self.runner.make_dir(f"{self.target.name}/later")
            return self.measure(*words, "-D", later, "-i", self.target / "backup_manifest")
        return None

    def repository_bytes(self):
        return size_bytes(self.target) if self.target.exists() else 0

    def version(self):
        return self.runner.run("pg_basebackup", "--version").split()[2]


class TarZstd(Tool):
    name = "tar | zstd -3"  # the version is that of zstd
    can_restore = False

    def backup(self, work):
        if work != "first backup":
            return None
        self.target = self.runner.make_dir("tar")
        return self.measure(
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
        return self.measure(
            "bash", "-ec", f"cp -a --reflink=never '{self.server.data}/.' '{into}'; sync -f '{into}'")

    def backup(self, work):
        if work != "first backup":
            return None
        self.target = self.runner.make_dir("copy")
        return self._copy(self.target)

    def restore(self, into, delta=False):
        return None if delta else self._copy(into)

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
            if subprocess.run(["cmp", "-s", first, second]).returncode != 0:
                return first
    return None
