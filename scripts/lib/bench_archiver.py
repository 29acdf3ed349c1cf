"""Calls archive_command and restore_command as PostgreSQL does, and measures them.

The commands may leave processes behind that go on working. The process that runs `measure` becomes
their parent when the command that started them ends, waits for all of them, and so counts their
CPU time as well.
"""

import ctypes
import os
import resource
import shlex
import signal
import statistics
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LINGER_S_MAX = 60  # a process that is left behind is through within this
IDLE_S = 1.0  # one that takes no CPU time for so long has nothing to do
FAILURES_MAX = 5
RESTORED = "pg_wal/RECOVERYXLOG"  # where PostgreSQL has its restore_command put a file


def shell(command, segment, path):
    """One call, through a shell as PostgreSQL makes it. Returns the exit code."""
    line = command.replace("%f", segment).replace("%p", path)
    process = os.posix_spawn("/bin/sh", ["sh", "-c", line], os.environ)
    return os.waitstatus_to_exitcode(wait_for(process)[1])


def wait_for(process):
    """Waits for this child; meanwhile others may end, and are counted as well."""
    while True:
        found, status, usage = os.wait4(-1, 0)
        if found == process:
            return found, status, usage


def wait_for_all(end: bool):
    """Waits until what was left behind has ended, or does nothing; then ends it if so wished."""
    deadline, before = time.monotonic() + LINGER_S_MAX, None
    while time.monotonic() < deadline:
        try:
            while os.wait4(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        now = cpu_of_children()
        if sum(now.values()) == before:
            if not end:
                return
            for process in now:
                os.kill(process, signal.SIGTERM)
        before = sum(now.values())
        time.sleep(IDLE_S)
    raise SystemExit("what a command left behind does not end")


def cpu_of_children():
    """CPU time of each child so far, in ticks."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == os.getpid():
            found[int(entry.parent.name)] = sum(map(int, fields[11:15]))
    return found


def ready():
    return sorted(path.name.removesuffix(".ready") for path in Path("pg_wal/archive_status").glob("*.ready"))


def mark_done(segment):
    status = Path("pg_wal/archive_status")
    os.rename(status / f"{segment}.ready", status / f"{segment}.done")


def push(segments, command):
    """The archiver's loop: oldest first; a failure is tried again a second later."""
    failures = 0
    for segment in segments:
        while (code := shell(command, segment, f"pg_wal/{segment}")) != 0:
            failures += 1
            if failures > FAILURES_MAX:
                raise SystemExit(f"archiving {segment} ends with {code}: {command}")
            time.sleep(1)
        mark_done(segment)
    return {"failures": failures}


def acknowledged(segments, command):
    """Lets the first call bring all to the repository, then measures calls that only have to say so."""
    push(segments[:1], command)
    wait_for_all(end=False)
    walls, cpus = [], []
    for segment in segments[1:]:
        words = shlex.split(command.replace("%p", f"pg_wal/{segment}"))
        began = time.monotonic()
        process = os.posix_spawn(words[0], words, os.environ)
        _, status, usage = wait_for(process)
        walls.append(time.monotonic() - began)
        cpus.append(usage.ru_utime + usage.ru_stime)
        if status != 0:
            raise SystemExit(f"archiving {segment} ends with {os.waitstatus_to_exitcode(status)}")
        mark_done(segment)
    return {"call_wall_s": statistics.median(walls), "call_cpu_s": statistics.median(cpus)}


def get(segments, command):
    """Recovery's requests, one after the other, without the replay between them."""
    os.makedirs("fetched", exist_ok=True)
    for segment in segments:
        if (code := shell(command, segment, RESTORED)) != 0:
            raise SystemExit(f"fetching {segment} ends with {code}: {command}")
        os.rename(RESTORED, f"fetched/{segment}")
    return {}


WORKS = {"push": push, "acknowledged": acknowledged, "get": get}


def measure(work: str, data: Path, count: int, command: str) -> dict:
    """Carries out one of `WORKS` in a data directory. To be called once in a process of its own."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.chdir(data)
    segments = Path("segments").read_text().split() if work == "get" else ready()
    segments = segments[:count]
    if len(segments) < count:
        raise SystemExit(f"{data} has {len(segments)} segments instead of {count}")
    began = time.monotonic()
    found = WORKS[work](segments, command)
    wall_s = time.monotonic() - began
    wait_for_all(end=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.update(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, rss_bytes=usage.ru_maxrss * 1024)
    return found
