"""What is measured on one server with 2 GB of data: backups, restores, and what comes after a change."""

import os
import random
import shutil
from pathlib import Path

from bench_server import PAGE_BYTES
from bench_tools import different_relation

# Work, share of all pages changed before it. The first two changes are alike: once the changes
# are found by hashes, once the server's WAL summaries tell them.
LATER = [("after 1 %", 0.01), ("after 1 %, summaries", 0.01), ("after 10 %", 0.1)]
DAMAGE_SHARE = 0.01


class BaseBench:
    """Works are named `first`, `restore`, `delta`, `later`, `summaries`, `remote`."""

    def __init__(self, runner, server, tools, chosen, note):
        self.runner, self.server, self.tools = runner, server, tools
        self.chosen, self.note = chosen, note
        self.changed = {}  # work -> pages changed, of how many
        self.seed = 0

    def round(self, number):
        shift = number % len(self.tools)
        order = self.tools[shift:] + self.tools[:shift]
        for tool in order:
            tool.begin()
            tool.take_over()
            self._backup(tool, "first backup", "first")
            if tool.can_restore and {"restore", "delta"} & self.chosen:
                self._restores(tool, compare=number == 0)
        for work, share in LATER:
            name = "summaries" if "summaries" in work else "later"
            if name not in self.chosen:
                continue
            self.seed += 1
            self.changed[work] = self.server.change(share, self.seed)
            for tool in [tool for tool in order if tool.can_add]:
                tool.take_over()
                self._backup(tool, work, name)
        if "remote" in self.chosen:
            for tool in order:
                tool.begin()
                tool.take_over()
                self._backup(tool, "first remote backup", "remote")

    def _backup(self, tool, work, name):
        first = work.startswith("first")
        before = 0 if first else tool.repository_bytes()
        self.server.settle()
        if (cost := tool.backup(work)) and name in self.chosen:
            self.note(work, tool.name, cost, tool.repository_bytes() - before)

    def _restores(self, tool, compare):
        into = self.runner.make_dir("restored")
        self.server.settle()
        cost = tool.restore(into)
        if "restore" in self.chosen:
            self.note("restore", tool.name, cost, 0)
        self._compare(tool, into, compare)
        if "delta" in self.chosen:
            damage(into, self.seed)
            os.sync()
            if cost := tool.restore(into, delta=True):
                self.note("delta restore", tool.name, cost, 0)
                self._compare(tool, into, compare)
        shutil.rmtree(into)

    def _compare(self, tool, into, compare):
        if compare and (path := different_relation(self.server.data, into)):
            raise SystemExit(f"bench: {tool.name} did not restore {path} as the server has it")


def damage(directory: Path, seed: int):
    """Changes one page in a hundred of all relation files, as a server that went on would."""
    rng = random.Random(seed)
    for path in sorted((directory / "base").glob("*/[1-9]*")):
        pages = path.stat().st_size // PAGE_BYTES
        with open(path, "r+b") as file:
            for page in range(pages):
                if rng.random() < DAMAGE_SHARE:
                    file.seek(page * PAGE_BYTES + PAGE_BYTES // 2)
                    file.write(rng.randbytes(64))
