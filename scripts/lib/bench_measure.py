"""Runs commands as the user who owns the database, and measures them."""

import os
import pwd
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one command took.

    CPU seconds are user and system time of the command and of its children that it waited for;
    work that the PostgreSQL server does for it is not in. Peak memory is that of the largest
    single process among them, not their sum.
    """

    wall_s: float
    cpu_s: float
    rss_bytes: int


# Room for a copy of the data and a repository.
WARM_BYTES = 3 << 30


class Runner:
    """Runs commands as `postgres` when started by root, otherwise as the caller."""

    def __init__(self, work: Path, tools: Path):
        self.work = work
        self.log = work / "log"
        self.identity = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self.identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.environment = {
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{tools}/pg/18/bin:/usr/local/bin:/usr/bin:/bin",
            "PGHOST": str(work),
            "PGDATABASE": "postgres",
        }
        self.give(work)

    def give(self, path: Path):
        """Hands a file or directory to the user who runs the commands."""
        if self.identity:
            os.chown(path, self.identity["user"], self.identity["group"])

    def make_dir(self, name: str) -> Path:
        """Makes an empty directory below the work directory, removing what was there."""
        path = self.work / name
        subprocess.run(["rm", "-rf", str(path)], check=True)
        path.mkdir(mode=0o700)
        self.give(path)
        return path

    def spawn(self, command, **options):
        """Starts a command as that user, in the work directory."""
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.work, env=self.environment, **self.identity, **options,
        )

    def run(self, *command, stdin=None) -> str:
        """Runs a command that is not measured and returns what it printed."""
        with open(self.log, "ab") as log:
            process = self.spawn(
                command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
            output = process.communicate()[0].decode()
        if process.returncode != 0:
            raise SystemExit(self._failure(command, process.returncode))
        return output

    def warm_memory(self):
        """Writes and removes a file as large as what is about to be written.

        The host of a virtual machine takes back memory that is not in use, and giving it again
        costs several times what the writing costs. After this, every tool writes to memory that
        the machine holds already.
        """
        ballast = self.work / "ballast"
        piece = bytes(1 << 24)
        with open(ballast, "wb") as file:
            for _ in range(WARM_BYTES >> 24):
                file.write(piece)
        ballast.unlink()

    def measure(self, *command) -> Cost:
        """Runs a command and returns what it took."""
        self.warm_memory()
        with open(self.log, "ab") as log:
            began = time.monotonic()
            process = self.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(self._failure(command, process.returncode))
        return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def _failure(self, command, code) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"bench: exit code {code}: {' '.join(map(str, command))}", *tail])


def size_bytes(directory: Path, without: str = "") -> int:
    """Sums the apparent sizes of all files, leaving out directories called `without`."""
    total = 0
    for path, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name != without]
        total += sum(os.lstat(os.path.join(path, name)).st_size for name in files)
    return total
