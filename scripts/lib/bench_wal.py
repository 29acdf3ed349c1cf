"""What is measured with real WAL of pgbench: push, acknowledgements, get, and replay after a restore."""

import shutil
import subprocess
import time
from dataclasses import dataclass

from bench_archiver import measure
from bench_measure import Cost
from bench_server import Server
from bench_tools import Lifeboat, PgBackRest

PORT = 5433
RESTORED_PORT = 5434
ACKNOWLEDGED = 33  # one call that brings them all, 32 that are measured
WAL_OPTIONS = "-c synchronous_commit=off"


@dataclass(frozen=True)
class Shape:
    """So much WAL: 1000 segments are small ones, because 16 GB would not fit in memory."""

    segments: int
    segment_mib: int

    @property
    def name(self):
        return f"{self.segments} x {self.segment_mib} MiB"


class WalBench:
    """A server with base backups in both tools and then a stretch of WAL that is not archived yet."""

    def __init__(self, runner, shape: Shape, scale: int, tools, program, chosen, note):
        self.runner, self.shape, self.chosen, self.note = runner, shape, chosen, note
        self.server = Server(runner, f"wal-{shape.segments}", PORT, shape.segment_mib)
        self.scale = scale
        self.tools = [PgBackRest(runner, self.server, tools)]
        if program:
            self.tools.append(Lifeboat(runner, self.server, program))

    def prepare(self):
        """Makes the server, its base backups and the WAL, and stops it."""
        server = self.server
        server.init()
        server.bench("-i", "-q", "-s", self.scale)
        for tool in self.tools:
            tool.begin()
        # Both have all WAL from their backup on: one that lacks a segment would replay nothing.
        server.archive_to(" && ".join(tool.push_command() for tool in self.tools))
        for tool in self.tools:
            tool.backup("first backup")
        for tool in self.tools:
            self.runner.run("cp", "-a", tool.repo, self._baseline(tool))
        server.sql("ALTER SYSTEM SET archive_command = ''")
        server.sql("SELECT pg_reload_conf()")
        self.runner.environment["PGOPTIONS"] = WAL_OPTIONS
        while len(self._ready()) < self.shape.segments:
            server.bench("-M", "prepared", "-c", 4, "-j", 2, "-T", 2)
        del self.runner.environment["PGOPTIONS"]
        server.stop("fast")
        status = server.data / "pg_wal/archive_status"
        self.segments = self._ready()[: self.shape.segments]
        for name in self._ready()[self.shape.segments :]:
            (status / f"{name}.ready").unlink()

    def clean(self):
        for tool in self.tools:
            shutil.rmtree(tool.repo, ignore_errors=True)
            shutil.rmtree(self._baseline(tool), ignore_errors=True)
        shutil.rmtree(self.server.data, ignore_errors=True)

    def round(self, number):
        """A command that does nothing, and each way to push, from the same repository; then get and
        replay from what was pushed."""
        ways = [(tool, mode) for mode in ("sync", "async", "async lz4") for tool in self.tools]
        ways = [(tool, mode) for tool, mode in ways if self._accepts(tool, mode)]
        shift = number % len(ways)
        if "push" in self.chosen:
            self._fresh(self.tools[0])
            found = self._loop("push", self.server.data, self.shape.segments, "/bin/true %p")
            self._note("push", "/bin/true", found, 0)
        for tool, mode in ways[shift:] + ways[:shift]:
            if mode != "async" and "push" not in self.chosen and self._accepts(tool, "async"):
                continue
            self._push(tool, mode, number)
            if mode == "async" or not self._accepts(tool, "async"):
                self._take_back(tool, number)

    def _push(self, tool, mode, number):
        self._fresh(tool)
        before = tool.archive_bytes()
        found = self._loop("push", self.server.data, self.shape.segments,
                           tool.wal_command("push %p", mode))
        if "push" in self.chosen:
            self._note("push", f"{tool.name} {mode}", found, tool.archive_bytes() - before)
        if mode == "async" and "ack" in self.chosen and self.shape.segment_mib == 16:
            self._acknowledged(tool, mode)

    def _acknowledged(self, tool, mode):
        """Its own repository and ready files: these segments are pushed once more afterwards."""
        pushed = self.runner.work / "pushed"
        tool.repo.rename(pushed)
        self._fresh(tool)
        count = min(ACKNOWLEDGED, self.shape.segments)
        found = self._loop("acknowledged", self.server.data, count, tool.wal_command("push %p", mode))
        cost = Cost(found["call_wall_s"], found["call_cpu_s"], found["rss_bytes"])
        self.note("one acknowledged push", tool.name, cost, 0)
        shutil.rmtree(tool.repo)
        pushed.rename(tool.repo)

    def _take_back(self, tool, number):
        """Get and replay, each from a restored directory."""
        ways = ["no prefetch", "prefetch"] if tool.name == "lifeboat" else ["sync", "async"]
        for mode in [mode for mode in ways if self._accepts(tool, mode)]:
            if "get" in self.chosen:
                into = self._restored(tool, mode)
                (into / "segments").write_text("\n".join(self.segments))
                where = into if tool.name == "pgBackRest" else None
                found = self._loop("get", into, self.shape.segments,
                                   tool.wal_command("get %f %p", mode, where))
                self._note("get", f"{tool.name} {mode}", found, 0)
                if number == 0:
                    self._compare(tool, into)
                shutil.rmtree(into)
            if "replay" in self.chosen:
                into = self._restored(tool, mode)
                self._replay(f"{tool.name} {mode}", into)
                shutil.rmtree(into)

    def _replay(self, name, into):
        """From the server's start until it has replayed everything and is promoted."""
        with open(into / "postgresql.auto.conf", "a") as conf:
            conf.write(f"\nport = {RESTORED_PORT}\narchive_mode = off\nsummarize_wal = off\n")
        self.runner.warm_memory()
        began = time.monotonic()
        self.runner.run("pg_ctl", "-D", into, "-l", self.runner.work / "restored.log", "-W", "start")
        while not self._is_promoted():
            waited_s = time.monotonic() - began
            if waited_s > 600 or waited_s > 10 and not (into / "postmaster.pid").exists():
                raise SystemExit(f"bench: what {name} restored does not start: see restored.log")
            time.sleep(0.02)
        wall_s = time.monotonic() - began
        reached = self._restored_sql("SELECT pg_walfile_name(pg_last_wal_replay_lsn())")
        if reached[8:] < self.segments[-1][8:]:
            raise SystemExit(f"bench: what {name} restored replayed to {reached} only, not {self.segments[-1]}")
        self.runner.run("pg_ctl", "-D", into, "-m", "immediate", "-w", "stop")
        self.note(f"replay {self.shape.name}", name, Cost(wall_s, 0.0, 0), 0)

    def _is_promoted(self):
        return self._restored_sql("SELECT pg_is_in_recovery()") == "f"

    def _restored_sql(self, query):
        process = self.runner.spawn(
            ["psql", "-U", "postgres", "-p", RESTORED_PORT, "-XqAtc", query],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return process.communicate()[0].decode().strip()

    def _restored(self, tool, mode):
        into = self.runner.make_dir("restored-wal")
        tool.clear_spool()
        tool.restore(into, mode=mode)
        return into

    def _compare(self, tool, into):
        for name in self.segments:
            if (into / "fetched" / name).read_bytes() != (self.server.data / "pg_wal" / name).read_bytes():
                raise SystemExit(f"bench: {tool.name} did not fetch {name} as it was pushed")

    def _fresh(self, tool):
        """The repository as it was before the WAL, and all of the WAL ready to be archived."""
        self.runner.run("rm", "-rf", tool.repo)
        self.runner.run("cp", "-a", self._baseline(tool), tool.repo)
        tool.clear_spool()
        status = self.server.data / "pg_wal/archive_status"
        for name in self.segments:
            (status / f"{name}.done").unlink(missing_ok=True)
            (status / f"{name}.ready").touch()
            self.runner.give(status / f"{name}.ready")

    def _loop(self, work, data, count, command):
        return self.runner.measure_apart(measure, work, data, count, command)

    def _note(self, work, name, found, stored_bytes):
        cost = Cost(found["wall_s"], found["cpu_s"], found["rss_bytes"])
        self.note(f"{work} {self.shape.name}", name, cost, stored_bytes)

    def _accepts(self, tool, mode):
        return tool.name != "lifeboat" or tool.accepts(mode)

    def _ready(self):
        status = self.server.data / "pg_wal/archive_status"
        return sorted(path.name.removesuffix(".ready") for path in status.glob("*.ready")
                      if len(path.name) == 30)

    def _baseline(self, tool):
        return self.runner.work / f"{tool.repo.name}-before"
