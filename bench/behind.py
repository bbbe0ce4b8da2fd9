#!/usr/bin/env python3
"""Write-behind over PostgreSQL: acknowledged writes a second at 1, 16 and 128 writers, beside commits

  direct    pgbench: an UPSERT by itself, prepared
  through   SET of a cache with write = "through": the same UPSERT, acknowledged when it is committed
  behind    SET of a cache with write = "behind": acknowledged when the journal has it durably
  held      the same while PostgreSQL is kept from taking any of it: the journal alone

All write 100 bytes to one of 100,000 rows. PostgreSQL is durable (fsync, synchronous_commit), and so is
the journal. redis-benchmark is the client of Larder, pgbench that of PostgreSQL; everything shares all
cores. The flush's rate is all writes by the time until PostgreSQL had the last of them.
"""

import argparse
import contextlib
import csv
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from kill import Node, Postgres
from nodes import table
from resp import ROOT, Resp

WRITERS = (1, 16, 128)
ROWS = 100_000

NODE = """
[node]
listen   = ["127.0.0.1:{port}"]
admin    = ""
data_dir = "{folder}/data"

[source.shop]
url  = "{url}"
pool = 16

[cache.behind]
key    = "behind:{{name}}"
load   = "SELECT value FROM item WHERE name = :name"
store  = "INSERT INTO item VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
result = "value"
write  = "behind"

[cache.through]
key    = "through:{{name}}"
load   = "SELECT value FROM item WHERE name = :name"
store  = "INSERT INTO item VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = :value"
result = "value"
write  = "through"
"""
UPSERT = """\\set id random(0, {last})
INSERT INTO item VALUES (lpad(:id::text, 12, '0'), repeat('x', 100))
 ON CONFLICT (name) DO UPDATE SET value = repeat('y', 100);
"""


def by_pgbench(postgres, script, writers, seconds):
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o777)
        done = subprocess.run(
            [postgres.programs / "pgbench", "-n", "-M", "prepared", "-c", str(writers), "-j", "2",
             "-T", str(seconds), "-f", script, "-l", "--log-prefix", f"{folder}/log", postgres.url],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )
        tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.M)
        if done.returncode != 0 or not tps:
            sys.exit(f"pgbench: {done.stdout}{done.stderr}")
        times = sorted(
            int(line.split()[2])
            for log in pathlib.Path(folder).glob("log*") for line in log.read_text().splitlines()
        )
    return {"rate": float(tps[1]), "p50_ms": times[len(times) // 2] / 1000,
            "p99_ms": times[len(times) * 99 // 100] / 1000}


def by_redis_benchmark(node, mode, writers, count):
    done = subprocess.run(
        ["redis-benchmark", "-p", str(node.port), "-c", str(writers), "-n", str(count), "-r", str(ROWS),
         "--csv", "SET", f"{mode}:__rand_int__", "x" * 100],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )
    rows = [row for row in csv.reader(done.stdout.splitlines()) if len(row) >= 7]
    if done.returncode != 0 or len(rows) < 2 or "Error" in done.stdout + done.stderr:
        sys.exit(f"redis-benchmark: {done.stdout}{done.stderr}")
    return {"rate": float(rows[-1][1]), "p50_ms": float(rows[-1][4]), "p99_ms": float(rows[-1][6])}


@contextlib.contextmanager
def held(postgres):
    """Nobody can move the journal's number."""
    sql = "BEGIN; LOCK TABLE larder_applied IN EXCLUSIVE MODE; SELECT pg_sleep(600)"
    holder = subprocess.Popen(
        [postgres.programs / "psql", "-X", "-q", "-d", postgres.url, "-c", sql],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    yield
    postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'"
                  " AND pid <> pg_backend_pid()")
    holder.wait()


def drain(client):
    while any(s["waiting"] for s in json.loads(client.call("LARDER.JOURNAL"))["sources"]):
        time.sleep(0.01)


def measure(options, folder):
    postgres = Postgres(folder)
    script = folder / "upsert.sql"
    script.write_text(UPSERT.format(last=ROWS - 1))
    script.chmod(0o644)
    try:
        postgres.psql(
            "CREATE TABLE shop(x int); DROP TABLE item; CREATE TABLE item(name text PRIMARY KEY, value text NOT NULL);"
            f"INSERT INTO item SELECT lpad(i::text, 12, '0'), repeat('x', 100) FROM generate_series(0, {ROWS - 1}) i"
        )
        node = Node(folder, postgres, options.larder, None, NODE)
        node.start()
        client = Resp(node.port)
        rows = []
        for writers in WRITERS:
            row = {"writers": writers, "direct": by_pgbench(postgres, script, writers, options.seconds)}
            for mode in ("through", "behind"):
                by_redis_benchmark(node, mode, writers, 1000)  # connections, prepared statements
                rate = {"through": row["direct"]["rate"], "behind": (5_000, 40_000, 100_000)[WRITERS.index(writers)]}
                count = int(rate[mode] * options.seconds)
                began = time.monotonic()
                row[mode] = by_redis_benchmark(node, mode, writers, count)
                if mode == "behind":
                    drain(client)
                    row[mode]["flushed"] = count / (time.monotonic() - began)
            with held(postgres):
                row["held"] = by_redis_benchmark(node, "behind", writers, count)
            drain(client)
            rows.append(row)
            print(f"{writers} writers: done", file=sys.stderr)
        node.stop()
        return rows
    finally:
        postgres.close()


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench behind", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5, help="of each run, about")
    parser.add_argument("--larder", default=ROOT / "build" / "larder", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="one JSON array on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="larder-behind-") as folder, contextlib.suppress(KeyboardInterrupt):
        rows = measure(options, pathlib.Path(folder))
    if options.json:
        print(json.dumps(rows))
        return

    def cell(one):
        return f"{one['rate']:,.0f} ({one['p50_ms']:.2f} / {one['p99_ms']:.2f} ms)"

    table(
        ["writers", "direct commits/s (p50 / p99)", "write-through", "write-behind", "behind by direct",
         "flushed, rows/s", "the journal alone"],
        [[str(row["writers"]), cell(row["direct"]), cell(row["through"]), cell(row["behind"]),
          f"{row['behind']['rate'] / row['direct']['rate']:.1f}x", f"{row['behind']['flushed']:,.0f}",
          cell(row["held"])]
         for row in rows],
    )


if __name__ == "__main__":
    main()
