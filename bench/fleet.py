#!/usr/bin/env python3
"""Many nodes on one Redis: latency of hits and misses, time from a commit to all nodes, stampedes

  get         GET of 128 bytes, one client (Python, its own time included) and 50 (redis-benchmark),
              P=1: near hit, engine hit, miss, and GET of the same value from the engine itself
  mget        MGET of 100 keys: all cold, all in the engine, the engine alone, and a cache by hand
              (MGET, one SELECT, pipelined SET; Python)
  invalidate  somebody updates rows by SQL, past Larder; all nodes hold all of them near. From just
              before COMMIT until a node has told a CLIENT TRACKING client that the key is void:
              the first and the last node. Every key is written once and not read in between; at
              the end each node must answer each new value. Beside it by hand: the writer sends DEL
              and PUBLISH, a process a node drops the entry of a dict (no hop more, to a client)
  stampede    1,000 connections to 4 nodes ask for one cold key: loads that the database has seen;
              beside it 1,000 threads that look into Redis, load (a sleep as long) and SET

Nothing is pinned: the load, the nodes and the engine share all cores. CPU time is the kernel's run
time of all threads of a process (schedstat); "at rest" is what it takes while nobody writes.
"""

import argparse
import contextlib
import json
import pathlib
import re
import selectors
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from nodes import (
    PATIENCE, Child, check_values, drop_and_publish, first_and_last, heard, hold, observe,
    percentiles, start_engine, start_nodes, subscribe, table, used,
)
from resp import ROOT, Resp, value_of

ROWS = 10_000
BATCH = 100  # keys of an MGET
READERS, STAMPEDE_NODES = 1_000, 4
PARTS = ["get", "mget", "invalidate", "stampede"]

# Any number names one of the rows: there are as many cold keys as wanted.
READ_THROUGH = """
[cache.{name}]
key    = "{name}:{{id:text}}"
source = "shop"
load   = "SELECT value FROM item WHERE id = CAST(:id AS INTEGER) % {rows}"
result = "value"
ttl    = "1h"
near   = {near}
"""

ROW = """
[cache.row]
key         = "row:{id:int}"
source      = "shop"
load        = "SELECT value FROM item WHERE id = :id"
result      = "value"
ttl         = "1h"
consistency = "bounded:1s"
depends_on  = ["item(id -> id)"]
"""

# A load that takes long enough for all readers to come meanwhile.
SLOW = '''
[cache.slow]
key    = "slow:{id:int}"
source = "shop"
load   = """SELECT value FROM item WHERE id = :id AND
  (SELECT count(*) FROM item a, item b WHERE b.id < 100 AND a.value > b.value) >= 0"""
result = "value"
ttl    = "1h"
'''


def source(folder):
    return f"sqlite:{folder}/shop.db"


def make_source(folder):
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as shop:
        shop.execute("PRAGMA journal_mode = wal")
        shop.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, value TEXT NOT NULL)")
        rows = ((i, value_of(i).decode()) for i in range(ROWS))
        with shop:
            shop.executemany("INSERT INTO item VALUES (?, ?)", rows)


# ------------------------------------------------------------------------------------------------
# get


class Cases:
    """One node and its engine, filled: what is asked for, and which keys are still cold."""

    def __init__(self, stack, options, folder, engine):
        caches = "".join(
            READ_THROUGH.format(name=name, rows=ROWS, near=near)
            for name, near in (("near", "true"), ("engine", "false"), ("miss", "true"))
        )
        self.node = start_nodes(
            stack, options.larder, folder, engine, 1, caches, source(folder), "128MiB"
        )[0]
        self.engine = engine
        self.cold = 0
        self.fill()

    def all(self):
        yield "near hit", self.node, "near"
        yield "engine hit", self.node, "engine"
        yield "miss", self.node, "miss"
        yield "Redis itself", self.engine, "bare"

    def fill(self):
        engine = Resp(self.engine.port)
        for start in range(0, ROWS, 500):
            numbers = range(start, start + 500)
            engine.call("MSET", *[w for i in numbers for w in (f"bare:{i:012d}", value_of(i))])
            for prefix in ("near", "engine"):
                hold(self.node, [f"{prefix}:{i:012d}" for i in numbers], prefix)

    def cold_keys(self, count):
        """Numbers that nobody has asked for: above all that redis-benchmark draws."""
        self.cold += count
        return range(10**10 + self.cold - count, 10**10 + self.cold)


def one_client(cases, server, prefix, seconds):
    """Seconds of each GET, one after the other; every value is compared."""
    client = Resp(server.port).socket
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    samples, number, end = [], 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        number = cases.cold_keys(1)[0] if prefix == "miss" else (number + 7919) % ROWS
        key = b"%s:%012d" % (prefix.encode(), number)
        request = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
        wanted = b"$128\r\n%s\r\n" % value_of(number % ROWS)
        started = time.perf_counter()
        client.sendall(request)
        seen = client.recv(65536)
        while len(seen) < len(wanted) and seen[:1] == b"$":
            seen += client.recv(65536)
        samples.append(time.perf_counter() - started)
        if seen != wanted:
            sys.exit(f"{server.name}, {key}: {seen[:200]}")
    client.close()
    return percentiles(samples)


def many_clients(server, prefix, clients, requests):
    """As redis-benchmark sees it; its clock has steps of 8 microseconds."""
    space = 10**9 if prefix == "miss" else ROWS
    command = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "-c", str(clients)]
    command += ["-n", str(requests), "-r", str(space), "--csv", "GET", f"{prefix}:__rand_int__"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    rows = re.findall(r'"([\d.]+)"', done.stdout.splitlines()[-1]) if done.stdout else []
    if done.returncode != 0 or len(rows) != 7 or "rror" in done.stdout:
        sys.exit(f"redis-benchmark against {server.name}: {done.stdout}{done.stderr}")
    rps, _, _, p50, _, p99, _ = map(float, rows)
    return {"p50_us": p50 * 1e3, "p99_us": p99 * 1e3, "rps": rps, "samples": requests}


def checked(server, prefix, measured):
    """Hits asked the source nothing; of the misses all did."""
    before = server.loads()
    sample = measured()
    loads = server.loads() - before
    if prefix != "miss" and loads:
        sys.exit(f"{prefix}: not all were hits, the source was asked {loads:.0f} times")
    if prefix == "miss" and loads < 0.99 * sample["samples"]:
        sys.exit(f"misses: the source was asked {loads:.0f} times for {sample['samples']} keys")
    return sample


def measure_get(options, folder, engine):
    with contextlib.ExitStack() as stack:
        cases = Cases(stack, options, folder, engine)
        return get_rows(cases, options)


def get_rows(cases, options):
    rounds, clients = 3, 50
    length = options.seconds / 2 / rounds
    seen = {}
    for round_ in range(rounds + 1):  # the first warms up, and says how many requests take how long
        order = list(cases.all())
        for name, server, prefix in order if round_ % 2 else order[::-1]:
            mine = seen.setdefault(name, {1: [], clients: []})
            serial = checked(
                server, prefix, lambda: one_client(cases, server, prefix, length if round_ else 0.1)
            )
            requests = max(2_000, int(mine["rps"] * length)) if round_ else 2_000
            parallel = checked(
                server, prefix, lambda: many_clients(server, prefix, clients, requests)
            )
            if round_:
                mine[1].append(serial)
                mine[clients].append(parallel)
            else:
                mine["rps"] = parallel["rps"]
    rows = []
    for name, _, _ in cases.all():
        for count in (1, clients):
            row = {"name": name, "clients": count}
            for key in ("p50_us", "p99_us"):
                row[key] = statistics.median(s[key] for s in seen[name][count])
                bare = statistics.median(s[key] for s in seen["Redis itself"][count])
                row[key.replace("us", "ratio")] = row[key] / bare
            if count > 1:
                row["rps"] = statistics.median(s["rps"] for s in seen[name][count])
            rows.append(row)
    return sorted(rows, key=lambda row: row["clients"])


# ------------------------------------------------------------------------------------------------
# mget


class ByHand:
    """A cache as services have it: MGET, one SELECT of what is missing, pipelined SET."""

    def __init__(self, engine, folder):
        self.redis = Resp(engine.port)
        self.shop = sqlite3.connect(folder / "shop.db")

    def mget(self, numbers):
        keys = [f"hand:{i:012d}" for i in numbers]
        values = self.redis.call("MGET", *keys)
        missing = [at for at, value in enumerate(values) if value is None]
        marks = ",".join("?" * len(missing))
        ids = [numbers[at] % ROWS for at in missing]
        rows = dict(self.shop.execute(f"SELECT id, value FROM item WHERE id IN ({marks})", ids))
        for at, row in zip(missing, ids):
            values[at] = rows[row].encode()
            self.redis.send(("SET", keys[at], values[at], "EX", 3600))
        for _ in missing:
            self.redis.answer()
        return values


def measure_mget(options, folder, engine):
    with contextlib.ExitStack() as stack:
        cases = Cases(stack, options, folder, engine)
        hand = ByHand(engine, folder)
        stack.callback(hand.shop.close)
        return mget_rows(cases, hand, options)


def mget_rows(cases, hand, options):
    node, engine = Resp(cases.node.port), Resp(cases.engine.port)

    def mget(client, prefix):
        return lambda numbers: client.call("MGET", *[f"{prefix}:{i:012d}" for i in numbers])

    ways = {
        "cold": mget(node, "miss"),
        "cold, by hand": hand.mget,
        "in the engine": mget(node, "engine"),
        "Redis itself": mget(engine, "bare"),
    }
    samples = {name: [] for name in ways}
    before, number = cases.node.loads(), 0
    end = time.monotonic() + options.seconds / 2
    while time.monotonic() < end:
        for name, way in ways.items():
            number = (number + BATCH) % ROWS
            numbers = cases.cold_keys(BATCH) if "cold" in name else range(number, number + BATCH)
            started = time.perf_counter()
            seen = way(numbers)
            samples[name].append(time.perf_counter() - started)
            if seen != [value_of(i % ROWS) for i in numbers]:
                sys.exit(f"MGET {name}: wrong values for {numbers}")
    rows = [{"name": name, **percentiles(times)} for name, times in samples.items()]
    for row in rows:
        row["p50_ratio"] = row["p50_us"] / rows[-1]["p50_us"]
    rows[0]["queries_an_mget"] = (cases.node.loads() - before) / len(samples["cold"])
    return rows


# ------------------------------------------------------------------------------------------------
# invalidate


def write(folder, count, rate, round_, tell):
    """Updates every row once, `rate` a second. -> when each was about to be committed"""
    at = {}
    with contextlib.closing(sqlite3.connect(folder / "shop.db", timeout=PATIENCE)) as shop:
        shop.isolation_level = None
        shop.execute("PRAGMA synchronous = normal")
        begun = time.monotonic()
        for i in range(count):
            time.sleep(max(0, begun + i / rate - time.monotonic()))
            shop.execute("BEGIN IMMEDIATE")
            shop.execute("UPDATE item SET value = ? WHERE id = ?", (new_value(i, round_), i))
            at[i] = time.monotonic()
            shop.execute("COMMIT")
            tell(i)
    return at


def new_value(i, round_):
    return f"{round_}:{value_of(i).decode()}"


def run_writes(pids, engine, children, write_all, count):
    """CPU of listeners and engine while all is written and heard."""
    groups = {"node": pids, "engine": [engine.process.pid]}
    _, rest, rest_wall = used(groups, lambda: time.sleep(1))
    (committed, (seen, flushes)), cpu, wall = used(
        groups, lambda: (write_all(), heard(children, count))
    )
    first, last = first_and_last(committed, seen)
    row = {"first": percentiles(first), "last": percentiles(last), "flushes": flushes}
    row["rate"] = (count - 1) / (max(committed.values()) - min(committed.values()))
    each = {"node": len(pids), "engine": 1}
    row["rest_cores"] = {name: rest[name] / rest_wall / each[name] for name in groups}
    row["cpu_s"] = {name: cpu[name] / each[name] * 1000 / count for name in groups}
    row["net_cpu_s"] = {
        name: row["cpu_s"][name] - row["rest_cores"][name] * wall * 1000 / count for name in groups
    }
    return row


def invalidate_larder(stack, options, folder, engine, count, nodes_count, round_):
    nodes = start_nodes(
        stack, options.larder, folder, engine, nodes_count, ROW, source(folder)
    )
    for node in nodes:
        hold(node, [f"row:{i}" for i in range(count)], "near")
    child = Child(stack, observe([node.port for node in nodes], count))
    row = run_writes(
        [node.process.pid for node in nodes], engine, [child],
        lambda: write(folder, count, options.rate, round_, lambda i: None), count,
    )
    check_values(nodes, {f"row:{i}": new_value(i, round_).encode() for i in range(count)})
    return row


def invalidate_by_hand(stack, options, folder, engine, count, subscribers, round_):
    client = Resp(engine.port)
    client.call("MSET", *[w for i in range(count) for w in (f"row:{i}", value_of(i))])
    children = [Child(stack, subscribe(engine.port, range(count))) for _ in range(subscribers)]

    return run_writes(
        [child.process.pid for child in children], engine, children,
        lambda: write(
            folder, count, options.rate, round_,
            lambda i: drop_and_publish(client, f"row:{i}", subscribers),
        ),
        count,
    )


def measure_invalidate(options, folder, engine):
    rows, round_ = [], 0
    count = min(ROWS, int(options.seconds * options.rate))
    for nodes in options.nodes:
        row = {"nodes": nodes, "changes": count}
        for name, measured in (("larder", invalidate_larder), ("by_hand", invalidate_by_hand)):
            round_ += 1
            Resp(engine.port).call("FLUSHALL")
            with contextlib.ExitStack() as stack:
                row[name] = measured(stack, options, folder, engine, count, nodes, round_)
        rows.append(row)
        print(f"invalidate, {nodes} nodes: done", file=sys.stderr)
    return rows


# ------------------------------------------------------------------------------------------------
# stampede


def ask_at_once(nodes, key, wanted):
    """One GET from each of READERS connections. -> seconds until the last one was answered"""
    request = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
    answer = b"$%d\r\n%s\r\n" % (len(wanted), wanted)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = []
        for i in range(READERS):
            address = ("127.0.0.1", nodes[i % len(nodes)].port)
            client = stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ)
            clients.append(client)
        started = time.monotonic()
        for client in clients:
            client.sendall(request)
        sent = time.monotonic() - started
        waiting = READERS
        while waiting:
            events = selector.select(PATIENCE)
            if not events:
                sys.exit(f"{waiting} of {READERS} readers were not answered")
            for event, _ in events:
                seen = event.fileobj.recv(65536)
                if seen != answer:
                    sys.exit(f"{key}: {seen[:200]}")
                selector.unregister(event.fileobj)
                waiting -= 1
        return {"sent_s": sent, "all_s": time.monotonic() - started}


def stampede_by_hand(engine, load_s):
    """Loads by threads that look into Redis, load and store, as nobody should."""
    gate, loads, failed = threading.Barrier(READERS), [], []

    def read():
        try:
            client = Resp(engine.port)
            gate.wait(PATIENCE)
            if client.call("GET", "hot") is None:
                time.sleep(load_s)
                loads.append(1)
                client.call("SET", "hot", value_of(0), "EX", 3600)
            client.socket.close()
        except (OSError, RuntimeError, threading.BrokenBarrierError) as problem:
            failed.append(problem)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    if failed:
        sys.exit(f"readers by hand: {failed[0]}")
    return len(loads)


def measure_stampede(options, folder, engine):
    rounds = []
    with contextlib.ExitStack() as stack:
        nodes = start_nodes(
            stack, options.larder, folder, engine, STAMPEDE_NODES, SLOW, source(folder)
        )
        client = Resp(nodes[0].port)
        started = time.monotonic()
        client.call("GET", "slow:9000")
        load_s = time.monotonic() - started
        for i in range(5):
            before = sum(node.loads() for node in nodes)
            row = 5000 + i
            times = ask_at_once(nodes, b"slow:%d" % row, value_of(row))
            rounds.append({"loads": sum(node.loads() for node in nodes) - before, **times})
    by_hand = stampede_by_hand(engine, load_s)
    return {"readers": READERS, "nodes": STAMPEDE_NODES, "load_s": load_s, "rounds": rounds,
            "loads_by_hand": by_hand}


# ------------------------------------------------------------------------------------------------


def times(row):
    return [f"{row['p50_us']:,.0f} us", f"{row['p99_us']:,.0f} us"]


def ms(row):
    return f"{row['p50_us'] / 1e3:.1f} / {row['p99_us'] / 1e3:.1f} ms"


def print_get(rows):
    table(["GET, P=1", "p50", "p99", "p50 by Redis's", "p99 by Redis's", "requests/s"], [
        [f"{row['name']}, {row['clients']} client{'s' * (row['clients'] > 1)}", *times(row),
         f"{row['p50_ratio']:.2f}", f"{row['p99_ratio']:.2f}",
         f"{row['rps']:,.0f}" if "rps" in row else "-"]
        for row in rows
    ])


def print_mget(rows):
    table([f"MGET of {BATCH}", "p50", "p99", "p50 by Redis's", "queries"], [
        [row["name"], *times(row), f"{row['p50_ratio']:.2f}",
         f"{row['queries_an_mget']:.2f}" if "queries_an_mget" in row else "-"]
        for row in rows
    ])


def print_invalidate(rows):
    head = ["nodes", "changes/s", "first node told, p50 / p99", "all nodes told, p50 / p99",
            "CPU s a node, 1,000 changes", "of Redis", "both, beyond rest", "at rest, of a core"]
    lines = []
    for row in rows:
        for name, label in (("larder", "Larder"), ("by_hand", "by hand")):
            one = row[name]
            cpu, net, rest = one["cpu_s"], one["net_cpu_s"], one["rest_cores"]
            lines.append([
                f"{row['nodes']}, {label}", f"{one['rate']:.0f}", ms(one["first"]),
                ms(one["last"]), f"{cpu['node']:.3f}", f"{cpu['engine']:.3f}",
                f"{net['node']:.3f} + {net['engine']:.3f}",
                f"{rest['node']:.1%} + {rest['engine']:.1%}",
            ])
    table(head, lines)


def print_stampede(one):
    loads = ", ".join(f"{r['loads']:.0f}" for r in one["rounds"])
    slowest = max(r["all_s"] for r in one["rounds"])
    table([f"{one['readers']:,} readers on {one['nodes']} nodes", "loads", "last answer"], [
        [f"Larder, {len(one['rounds'])} cold keys in turn", loads, f"{slowest * 1e3:.0f} ms"],
        [f"by hand, a load takes {one['load_s'] * 1e3:.0f} ms", str(one["loads_by_hand"]), "-"],
    ])


def print_tables(results):
    printers = {"get": print_get, "mget": print_mget, "invalidate": print_invalidate,
                "stampede": print_stampede}
    for part, result in results.items():
        printers[part](result)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--seconds", type=float, default=2, help="of each measurement, and of writes to each fleet"
    )
    parser.add_argument("--rate", type=int, default=200, help="updates a second")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--server", default="redis-server", help="the engine: or valkey-server")
    parser.add_argument("--larder", type=pathlib.Path, default=ROOT / "build" / "larder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and all processes with it
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-")))
        make_source(folder)
        engine = start_engine(stack, options.server, folder)
        measured = {
            "get": measure_get,
            "mget": measure_mget,
            "invalidate": measure_invalidate,
            "stampede": measure_stampede,
        }
        results = {}
        for part in PARTS:
            if part in options.parts:
                Resp(engine.port).call("FLUSHALL")
                results[part] = measured[part](options, folder, engine)
                print(f"{part}: done", file=sys.stderr)
    if options.json:
        about = {"rows": ROWS, "value_bytes": 128, "seconds": options.seconds}
        print(json.dumps({**about, **results}, indent=2))
    else:
        print_tables(results)


if __name__ == "__main__":
    main()
