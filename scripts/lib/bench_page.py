"""The results as a page for docs/."""

from datetime import datetime, timezone
from pathlib import Path

import bench_report as report

BOUNDS = Path(__file__).with_name("bench_bounds.md")  # written by hand


def page(samples, facts, shapes):
    today = datetime.now(timezone.utc).date().isoformat()
    parts = [
        "# Benchmarks",
        f'Written by `make bench BENCH="--write docs/benchmarks.md"` on {today}. '
        "Every figure is the median of all rounds, tools in turns.",
        "\n".join(f"* {name}: {value}" for name, value in facts),
    ]
    if rows := report.comparison(samples, shapes):
        parts += ["## lifeboat beside the others", report.as_markdown(rows)]
    parts += ["## All measurements", report.as_markdown(report.measurements(samples)),
              BOUNDS.read_text().strip(), NOTES]
    return "\n\n".join(parts) + "\n"


NOTES = """## How it is measured

* Every tool works on the same running PostgreSQL 18 with two processes or threads, and data that stand still.
* pgBackRest: `zst` level 3, AES-256-CBC, bundles and block incremental, `start-fast`, `process-max=2`. lifeboat: its defaults, encryption on;
  changes are found by hashes (`--full-read`), or where the work says so by WAL summaries with a sweep of 1/14 of the rest. A first backup goes to a fresh
  repository.
  pg_basebackup: tar, compressed by the client or the server with `zstd:level=3,workers=2`, without WAL, not encrypted; after 1 % its incremental form,
  which the server's summaries make, plain. `tar | zstd -3` and `cp` with `sync` are what the machine can do at all; nothing is encrypted there.
* All WAL summaries are on (`summarize_wal`), for all tools alike; who does not use them pays only for the server's making them.
* Seconds are wall time of the whole command. CPU seconds are user and system time of the command and its children; what the
  server's processes took that served it, and have ended with it, is apart. Memory is the largest single process of a command, not their sum, and
  never less than what the measuring program itself holds (some 20 MB).
* Read: bytes that went through `read` calls of the command and of the server's process that served it. In memory (`tmpfs`) nothing is read from a disk, so this
  is what a disk would have been asked for, and pipes between a tool's own processes are in it as well.
* Stored: the apparent size of all files without archived WAL; for later backups, by how much it grew; for a push, by how much the archived WAL grew.
* "After 1 %" means: rows changed in two large tables, spread evenly over as many of their pages as make 1 % of all, and these vacuumed.
  Pages are counted afterwards by their LSN. Delta restore: one page in a hundred of a restored directory is overwritten, then the same backup is restored over it.
* WAL is that of `pgbench` on a server of its own, kept until all of it is ready; the server is stopped, and a loop calls the archive command for one segment after
  the other and renames `.ready` to `.done`, as the archiver does, through a shell. The loop is the parent of whatever the commands leave behind, waits for its
  end, and counts its CPU time; the wall time ends with the last acknowledgement. pgBackRest asynchronous: `archive-async=y`, `process-max=2`, its spool beside the data.
  Every way to push starts with the same repository and an empty spool. `/bin/true` does nothing: that is what the loop, a shell and the start of a program take. What was pushed is fetched, and compared with the segments byte by byte.
* Get: the same loop for the restore command, in a directory that the tool restored, without replay between two requests.
  Replay: from the start of a restored server until it has replayed the whole stretch and is promoted.
* One acknowledged push: all segments are stored already by what the first call left behind; the median of the calls after it, without the shell.
* Durability is equal: both tools sync what they have stored before they say so. In memory a sync costs nothing, which favours whoever syncs more; `--dir` measures on a disk.
* The stretch of 1000 segments is of 1 MiB segments (`--wal-segsize=1`): of 16 MiB they would be 16 GB. It weighs the cost of a call and of an object, the 64 of 16 MiB that of bytes.
* In memory of a virtual machine, writing to pages that the host has taken back costs more than the writing itself. So 3 GiB are
  written and removed just before every measurement, for all tools alike.
* In the first round, relation files restored by each tool are compared with the server's byte by byte."""
