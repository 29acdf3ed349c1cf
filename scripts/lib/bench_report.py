"""Turns measurements into tables."""

import platform
import statistics
from dataclasses import dataclass

MB = 1_000_000
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
        Target(push, "speed", 3.0, "pgBackRest async", "lifeboat async lz4"),
        Target(push, "speed", 1.0, "pgBackRest async lz4", "lifeboat async lz4"),
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


def comparison(samples, shapes):
    """lifeboat beside the others and the targets; empty when lifeboat was not measured."""
    rows = [("work", "compared", "ratio", "target", "met")]
    for target in targets(shapes):
        ours = select(samples, target.work, target.lifeboat)
        theirs = select(samples, target.work, target.tool)
        if not ours or not theirs:
            continue
        field = "stored_bytes" if target.what == "stored" else "wall_s"
        ratio = median(ours, field) / max(median(theirs, field), 1e-9)
        tools = f"{target.lifeboat} / {target.tool}"
        if target.what == "speed":
            ratio, sign, met = 1 / ratio, ">=", 1 / ratio >= target.bound
        else:
            sign, met = "<=", ratio <= target.bound
        rows.append((target.work, f"{target.what}: {tools}", f"{ratio:.2f}", f"{sign} {target.bound:g}",
                     "yes" if met else "no"))
    peaks = [sample.rss_bytes for sample in samples if sample.tool.startswith("lifeboat")]
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
