"""The PostgreSQL 18 server that is backed up: its settings, its data, and how the data change."""

import os
import random
import struct
import subprocess
import time
from pathlib import Path

from bench_measure import Runner

PAGE_BYTES = 8192
DOCUMENT_WORDS = 110  # about 1 KB of JSON, so that rows stay inside their pages
DOCUMENTS_PER_GB = 900_000
CHUNKS_PER_BLOB = 96  # of 64 bytes each

SETTINGS = """
listen_addresses = ''
port = {port}
unix_socket_directories = '{work}'
shared_buffers = 256MB
max_wal_size = 4GB
checkpoint_timeout = 1h
wal_level = replica
archive_mode = on
archive_command = '/bin/true'
summarize_wal = on
# The data stand still between two measurements.
autovacuum = off
jit = off
timezone = 'UTC'
"""

# One row of each page of a table. Rows stay in their pages when they change, because the tables
# are filled to 85 % only and the changed columns have no index.
SAMPLE = """
CREATE TABLE {sample} AS
  SELECT (ctid::text::point)[0]::int AS page, min({key}) AS key FROM {table} GROUP BY 1;
"""

# The vacuum clears up in the pages just changed: left for later, that would be a second change.
CHANGE = """
UPDATE {table} AS t SET {change} FROM {sample} AS s
 WHERE t.{key} = s.key AND abs(hashint8extended(s.page, {seed}) % 1000000) < {ppm};
"""

TABLES = [
    ("pgbench_accounts", "aid", "abalance = t.abalance + 1"),
    ("documents", "id", "body = jsonb_set(t.body, '{views}', to_jsonb((t.body->>'views')::int + 1))"),
]


class Server:
    def __init__(self, runner: Runner, name: str = "data", port: int = 5432, segment_mib: int = 16):
        self.runner, self.port, self.segment_mib = runner, port, segment_mib
        self.data = runner.work / name

    def init(self):
        """Makes and starts an empty cluster."""
        self.runner.run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--locale=C.UTF-8",
                        f"--wal-segsize={self.segment_mib}")
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(SETTINGS.format(work=self.runner.work, port=self.port))
        self.start()

    def pid(self) -> int:
        """The server's first process."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def create(self, size: float):
        """Makes the cluster and its data: about `size` x 2.1 GB, the same at each run."""
        self.init()
        self.bench("-i", "-q", "-F", "85", "-s", max(1, round(60 * size)))
        self._load_documents(round(0.8 * DOCUMENTS_PER_GB * size))
        blobs = round(0.2e9 * size / (64 * CHUNKS_PER_BLOB))
        self.sql(f"""
            CREATE TABLE blobs (id int PRIMARY KEY, body bytea STORAGE EXTERNAL);
            INSERT INTO blobs SELECT i, (
              SELECT string_agg(sha512(format('%s %s', i, k)::bytea), ''::bytea ORDER BY k)
                FROM generate_series(1, {CHUNKS_PER_BLOB}) AS k)
              FROM generate_series(1, {blobs}) AS i;""")
        for table, key, _ in TABLES:
            self.sql(SAMPLE.format(sample=f"sample_{table}", table=table, key=key))
        self.sql("VACUUM (FREEZE, ANALYZE)")
        self.sql("VACUUM (FREEZE)")  # the statistics that the first one wrote
        self.settle()

    def start(self):
        self.runner.run("pg_ctl", "-D", self.data, "-l", self.runner.work / "server.log", "-w", "-t", 600, "start")

    def stop(self, mode: str = "immediate"):
        self.runner.run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def bench(self, *words):
        """Runs pgbench."""
        self.runner.run("pgbench", "-U", "postgres", "-p", self.port, *words)

    def sql(self, statements: str) -> str:
        return self.runner.run(
            "psql", "-U", "postgres", "-p", self.port, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statements).strip()

    def settle(self):
        """Writes everything out, so that no measurement pays for what came before it."""
        self.sql("CHECKPOINT")
        os.sync()

    def archive_to(self, command: str):
        """Switches archive_command and waits until a segment has gone through it."""
        quoted = command.replace("'", "''")
        self.sql(f"ALTER SYSTEM SET archive_command = '{quoted}'")
        self.sql("SELECT pg_reload_conf()")
        self.sql("SELECT pg_create_restore_point('bench')")  # a switch needs something to switch
        segment = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + 60
        while (self.sql("SELECT last_archived_wal FROM pg_stat_archiver") or "0") < segment:
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: segment {segment} is not archived by: {command}")
            time.sleep(0.05)
        self.settle()

    def change(self, share: float, seed: int) -> tuple[int, int]:
        """Changes that share of all pages, one row in each. Returns how many changed, of how many."""
        self.settle()
        before = int(self.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))
        pages = sum(int(self.sql(f"SELECT pg_relation_size('{table}')")) // PAGE_BYTES for table, _, _ in TABLES)
        ppm = round(1e6 * share * count_pages(self.data, before)[1] / pages)
        for table, key, change in TABLES:
            self.sql(CHANGE.format(table=table, key=key, change=change,
                                   sample=f"sample_{table}", seed=seed, ppm=ppm))
            self.sql(f"VACUUM {table}")
        self.settle()
        return count_pages(self.data, before)

    def _load_documents(self, count: int):
        self.sql("CREATE TABLE documents (id int PRIMARY KEY, body jsonb) WITH (fillfactor = 85)")
        psql = self.runner.spawn(
            ["psql", "-U", "postgres", "-p", str(self.port), "-Xq", "-v", "ON_ERROR_STOP=1", "-c", "COPY documents FROM STDIN"],
            stdin=subprocess.PIPE)
        with psql.stdin:
            for line in documents(count):
                psql.stdin.write(line)
        if psql.wait() != 0:
            raise SystemExit("bench: loading documents failed")


def documents(count: int):
    """Yields lines for COPY: JSON documents of pseudo-random words, frequent and rare ones."""
    rng = random.Random(20240229)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "or")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    bounds, total = [], 0.0
    for rank in range(len(words)):
        total += 1 / (rank + 20)
        bounds.append(total)
    for number in range(count):
        drawn = rng.choices(words, cum_weights=bounds, k=DOCUMENT_WORDS)
        yield (
            f'{number}\t{{"title": "{" ".join(drawn[:6])}", "author": "{drawn[6]}", "views": 0, '
            f'"tags": ["{drawn[7]}", "{drawn[8]}"], "text": "{" ".join(drawn[9:])}"}}\n'
        ).encode()


def count_pages(data: Path, after_lsn: int) -> tuple[int, int]:
    """Counts pages of relations written after a WAL position, by the LSN in their headers."""
    changed = total = 0
    for path, _, files in os.walk(data / "base"):
        for name in files:
            if not name[0].isdigit():
                continue
            with open(os.path.join(path, name), "rb") as file:
                while chunk := file.read(128 * PAGE_BYTES):
                    for offset in range(0, len(chunk), PAGE_BYTES):
                        high, low = struct.unpack_from("<II", chunk, offset)
                        changed += (high << 32 | low) > after_lsn
                        total += 1
    return changed, total
