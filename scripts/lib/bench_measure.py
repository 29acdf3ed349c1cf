"""Runs commands as the user who owns the database, and measures them."""

import json
import os
import pwd
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one command took.

    CPU seconds are user and system time of the command and of its children that it waited for;
    what the PostgreSQL server's processes that ended meanwhile (those that served it) took is
    apart. Peak memory is that of the largest single process among them, not their sum. Bytes read
    are what went through `read` calls of the command and of those server processes, whether from
    a disk, from memory or from a pipe.
    """

    wall_s: float
    cpu_s: float
    rss_bytes: int
    read_bytes: int = 0
    server_cpu_s: float = 0.0


# Room for a copy of the data and a repository.
WARM_BYTES = 3 << 30


class Runner:
    """Runs commands as `postgres` when started by root, otherwise as the caller."""

    def __init__(self, work: Path, tools: Path, warm_share: float = 1.0):
        self.work = work
        self.warm_bytes = round(warm_share * WARM_BYTES)
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
            for _ in range(self.warm_bytes >> 24):
                file.write(piece)
        ballast.unlink()

    def measure(self, *command, server_pid: int | None = None) -> Cost:
        """Runs a command and returns what it took, it and the server whose first process that is."""
        self.warm_memory()
        before = children_of(server_pid)
        with open(self.log, "ab") as log:
            began = time.monotonic()
            process = self.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall_s = time.monotonic() - began
            read_bytes = bytes_read(process.pid)  # while it can still be asked
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(self._failure(command, process.returncode))
        time.sleep(0.1)  # the server's process ends a little after its client
        after = children_of(server_pid)
        return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024,
                    read_bytes + after[0] - before[0], after[1] - before[1])

    def measure_apart(self, function, *arguments) -> dict:
        """Calls a function in a process of its own, as that user, and returns what it returns.

        The process is a copy of this one: the user may have no Python to start.
        """
        self.warm_memory()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reader)
                log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(log, stream)
                if self.identity:
                    os.setgroups([])
                    os.setgid(self.identity["group"])
                    os.setuid(self.identity["user"])
                os.environ.clear()
                os.environ.update(self.environment)
                os.write(writer, json.dumps(function(*arguments)).encode())
                code = 0
            except BaseException as error:  # whatever it is, the copy must not go on
                print(f"bench: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            found = answer.read()
        os.waitpid(child, 0)
        if not found:
            raise SystemExit(self._failure([function.__name__, *arguments], 1))
        return json.loads(found)

    def _failure(self, command, code) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"bench: exit code {code}: {' '.join(map(str, command))}", *tail])


def bytes_read(pid: int) -> int:
    """What a process, and its children that it waited for, took in by `read` calls."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, value = line.split(":")
        if name == "rchar":
            return int(value)
    return 0


def children_of(pid: int | None) -> tuple[int, float]:
    """Bytes read and CPU seconds of a process's children that have ended."""
    if pid is None:
        return 0, 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[13]) + int(fields[14])  # cutime and cstime
    return bytes_read(pid), ticks / os.sysconf("SC_CLK_TCK")


def size_bytes(directory: Path, without: str = "") -> int:
    """Sums the apparent sizes of all files, leaving out directories called `without`."""
    total = 0
    for path, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name != without]
        total += sum(os.lstat(os.path.join(path, name)).st_size for name in files)
    return total
