"""Turns measurements into tables."""

import platform
import statistics
from dataclasses import dataclass

MB = 1_000_000
<<<<<<< HEAD

# Work, what is compared, and the most that lifeboat may need in relation to pgBackRest.
TARGETS = [
    ("first backup", "seconds", 0.6),
    ("first backup", "repository", 1.02),
    ("restore", "seconds", 0.8),
    ("after 1 %", "seconds", 0.1),
    ("after 1 %", "repository", 0.8),
    ("after 10 %", "seconds", 0.4),
    ("after 10 %", "repository", 0.8),
]
# The same for a backup that reads everything and goes by hashes.
TARGET_BY_HASHES = ("after 1 %", "seconds", 0.3)
=======
>>>>>>> 36d8e85 (The benchmark measures push, get, replay, delta restore, summaries and remote backups beside its peers)
MEMORY_MB_MAX = 300


@dataclass(frozen=True)
class Sample:
    work: str
    tool: str
    wall_s: float
    cpu_s: float
    server_cpu_s: float
    rss_bytes: int
    read_bytes: int
    stored_bytes: int  # repository after a first backup, growth after a later one, 0 for a restore


@dataclass(frozen=True)
class Target:
    """What lifeboat is to reach beside another tool.

    `what` is "seconds" or "stored" (lifeboat's divided by theirs, at most `bound`), or "speed"
    (theirs divided by lifeboat's seconds, at least `bound`).
    """

    work: str
    what: str
    bound: float
    tool: str = "pgBackRest"
    lifeboat: str = "lifeboat"


def wal_targets(shape):
    push, get = f"push {shape}", f"get {shape}"
    return [
        Target(push, "speed", 2.0, "pgBackRest async", "lifeboat async"),
        Target(push, "stored", 1.0, "pgBackRest async", "lifeboat async"),
        Target(push, "speed", 3.0, "pgBackRest async lz4", "lifeboat async lz4"),
        Target(push, "stored", 1.0, "pgBackRest async lz4", "lifeboat async lz4"),
        Target(get, "speed", 1.5, "pgBackRest async", "lifeboat prefetch"),
    ]


def targets(shapes):
    base = [
        Target("first backup", "seconds", 0.5),
        Target("first backup", "stored", 1.0),
        Target("restore", "seconds", 0.7),
        Target("restore", "seconds", 1.5, "cp and sync"),
        Target("delta restore", "seconds", 0.6),
        Target("after 1 %", "seconds", 0.3),
        Target("after 1 %", "stored", 0.8),
        Target("after 1 %, summaries", "seconds", 0.1),
        Target("after 1 %, summaries", "stored", 0.8),
        Target("after 10 %", "seconds", 0.4),
        Target("after 10 %", "stored", 0.8),
    ]
    return base + [target for shape in shapes for target in wal_targets(shape)]


def median(samples, field):
    return statistics.median(getattr(sample, field) for sample in samples)


def select(samples, work, tool):
    return [sample for sample in samples if (sample.work, sample.tool) == (work, tool)]


def unique(values):
    return list(dict.fromkeys(values))


def measurements(samples):
    rows = [("work", "tool", "seconds", "from - to", "CPU s", "server's CPU s", "memory MB", "read MB", "stored MB")]
    for work in unique(sample.work for sample in samples):
        for tool in unique(sample.tool for sample in samples if sample.work == work):
            group = select(samples, work, tool)
            walls = [sample.wall_s for sample in group]
            digits = 4 if work == "one acknowledged push" else 2
            rows.append((
                work, tool, f"{statistics.median(walls):.{digits}f}",
                f"{min(walls):.{digits}f} - {max(walls):.{digits}f}",
                f"{cpu:.{digits}f}" if (cpu := median(group, "cpu_s")) else "",
                f"{cpu:.2f}" if (cpu := median(group, "server_cpu_s")) else "",
                f"{rss / MB:.0f}" if (rss := max(s.rss_bytes for s in group)) else "",
                f"{read / MB:.0f}" if (read := median(group, "read_bytes")) else "",
                f"{stored / MB:.1f}" if (stored := median(group, "stored_bytes")) else ""))
    return rows


<<<<<<< HEAD
def comparison(samples):
    """lifeboat beside pgBackRest and the target; empty when lifeboat was not measured."""
    rows = [("work", "lifeboat / pgBackRest", "ratio", "target", "met")]
    compared = [("lifeboat", *target) for target in TARGETS] + [("lifeboat, all read", *TARGET_BY_HASHES)]
    for tool, work, what, target in compared:
        ours, theirs = select(samples, work, tool), select(samples, work, "pgBackRest")
=======
def comparison(samples, shapes):
    """lifeboat beside the others and the targets; empty when lifeboat was not measured."""
    rows = [("work", "compared", "ratio", "target", "met")]
    for target in targets(shapes):
        ours = select(samples, target.work, target.lifeboat)
        theirs = select(samples, target.work, target.tool)
>>>>>>> 36d8e85 (The benchmark measures push, get, replay, delta restore, summaries and remote backups beside its peers)
        if not ours or not theirs:
            continue
        field = "stored_bytes" if target.what == "stored" else "wall_s"
        ratio = median(ours, field) / max(median(theirs, field), 1e-9)
<<<<<<< HEAD
        name = work if tool == "lifeboat" else f"{work}, all read"
        rows.append((name, what, f"{ratio:.2f}", f"<= {target}", "yes" if ratio <= target else "no"))
    peaks = [sample.rss_bytes for sample in samples if sample.tool == "lifeboat"]
=======
        tools = f"{target.lifeboat} / {target.tool}"
        if target.what == "speed":
            ratio, sign, met = 1 / ratio, ">=", 1 / ratio >= target.bound
        else:
            sign, met = "<=", ratio <= target.bound
        rows.append((target.work, f"{target.what}: {tools}", f"{ratio:.2f}", f"{sign} {target.bound:g}",
                     "yes" if met else "no"))
    peaks = [sample.rss_bytes for sample in samples if sample.tool.startswith("lifeboat")]
>>>>>>> 36d8e85 (The benchmark measures push, get, replay, delta restore, summaries and remote backups beside its peers)
    if peaks:
        peak_mb = max(peaks) / MB
        rows.append(("any", "lifeboat's memory, MB", f"{peak_mb:.0f}", f"< {MEMORY_MB_MAX}",
                     "yes" if peak_mb < MEMORY_MB_MAX else "no"))
    return rows if len(rows) > 1 else []


def as_text(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


def as_markdown(rows):
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def processor():
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
<<<<<<< HEAD


def page(samples, facts):
    """The results as a page for docs/."""
    today = datetime.now(timezone.utc).date().isoformat()
    parts = [
        "# Benchmarks",
        f"Written by `make bench BENCH=\"--write docs/benchmarks.md\"` on {today}. "
        "Every figure is the median of all rounds, tools in turns.",
        "\n".join(f"* {name}: {value}" for name, value in facts),
    ]
    if comparison(samples):
        parts += ["## lifeboat beside pgBackRest", as_markdown(comparison(samples))]
    parts += ["## All measurements", as_markdown(measurements(samples)), NOTES]
    return "\n\n".join(parts) + "\n"


NOTES = """## How it is measured

* Every tool works on the same running PostgreSQL 18 with two processes or threads, and data that stand still.
* pgBackRest: `zst` level 3, AES-256-CBC, bundles and block incremental, `start-fast`, `process-max=2`, `archive-push` without spooling.
  lifeboat: its defaults, encryption on; later backups go by WAL summaries and sweep 1/14 of the rest, those called "all read" have
  `--full-read`. A first backup goes to a fresh repository. `pg_basebackup -i`: its incremental form by WAL summaries, plain files.
  pg_basebackup: tar, compressed by the client with `zstd:level=3,workers=2`, without WAL. `tar | zstd -3` and `cp` with `sync` are what
  the machine can do at all; nothing is encrypted there.
* Seconds are wall time of the whole command. CPU seconds are user and system time of the command and its children, without
  what the server does for it. Memory is the largest single process of a command, not their sum, and never less than
  what the measuring program itself holds (some 20 MB).
* Stored: the apparent size of all files without archived WAL; for later backups, by how much it grew.
* "After 1 %" means: rows changed in two large tables, spread evenly over as many of their pages as make 1 % of all, and these vacuumed.
  Pages are counted afterwards by their LSN.
* In memory (`tmpfs`) of a virtual machine, writing to pages that the host has taken back costs more than the writing itself. So 3 GiB are
  written and removed just before every measurement, for all tools alike.
* In the first round, relation files restored by each tool are compared with the server's byte by byte."""
=======
>>>>>>> 36d8e85 (The benchmark measures push, get, replay, delta restore, summaries and remote backups beside its peers)
