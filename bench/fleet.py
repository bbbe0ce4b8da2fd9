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
import multiprocessing
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

from resp import ROOT, Resp, Server, free_port, value_of

ROWS = 10_000
BATCH = 100  # keys of an MGET
READERS, STAMPEDE_NODES = 1_000, 4
PARTS = ["get", "mget", "invalidate", "stampede"]
PATIENCE = 20  # seconds, for what should take milliseconds
CHANNEL = "gone"

NODE = """
[node]
listen   = ["127.0.0.1:{port}"]
admin    = "127.0.0.1:{admin}"
threads  = 1
data_dir = "{folder}/data-{port}"

[near]
capacity = "{capacity}"

[engine]
url       = "redis://127.0.0.1:{engine}"
namespace = "{namespace}"

[source.shop]
url = "sqlite:{folder}/shop.db"
"""

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


class Process(Server):
    """A server that may run on any core."""

    def __init__(self, name, command, port, admin, log):
        self.name, self.port, self.admin, self.log = name, port, admin, log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        try:
            self.wait()
        except BaseException:
            self.close()
            raise


def start_engine(stack, program, folder):
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "no", "--dir", str(folder), "--maxclients", "5000"]
    engine = Process(program, command, port, None, folder / "engine.log")
    stack.callback(engine.close)
    return engine


def start_nodes(stack, options, folder, engine, count, caches, capacity="16MiB"):
    """Nodes of a namespace of their own; the source is prepared where a cache asks for it."""
    nodes = []
    for _ in range(count):
        port, admin = free_port(), free_port()
        config = folder / f"node-{port}.toml"
        text = NODE.format(
            port=port, admin=admin, folder=folder, capacity=capacity, engine=engine.port,
            namespace=f"fleet-{nodes[0].port if nodes else port}",
        )
        config.write_text(text + caches)
        if not nodes and "depends_on" in caches:
            command = [options.larder, "source", "prepare", "--config", config, "shop"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                sys.exit(f"larder source prepare: {done.stdout}{done.stderr}")
        command = [str(options.larder), "serve", "--config", str(config)]
        node = Process(f"node {len(nodes)}", command, port, admin, folder / f"node-{port}.log")
        stack.callback(node.close)
        nodes.append(node)
    return nodes


def make_source(folder):
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as shop:
        shop.execute("PRAGMA journal_mode = wal")
        shop.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, value TEXT NOT NULL)")
        rows = ((i, value_of(i).decode()) for i in range(ROWS))
        with shop:
            shop.executemany("INSERT INTO item VALUES (?, ?)", rows)


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.01)


def percentiles(samples):
    """Of times in seconds: microseconds."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {"p50_us": cuts[49] * 1e6, "p99_us": cuts[98] * 1e6, "samples": len(samples)}


def hold(node, keys, tier):
    """Asks until all keys are in the tier: a fleet that has just begun does not fill yet."""
    client = Resp(node.port)

    def held():
        client.call("MGET", *keys)
        for key in keys:
            client.send(("LARDER.GET", key))
        answers = [client.answer() for _ in keys]
        return all(dict(zip(a[::2], a[1::2]))[b"tier"] == tier.encode() for a in answers)

    until(f"every key in the {tier} tier", held)


# ------------------------------------------------------------------------------------------------
# get


class Cases:
    """One node and its engine, filled: what is asked for, and which keys are still cold."""

    def __init__(self, stack, options, folder, engine):
        caches = "".join(
            READ_THROUGH.format(name=name, rows=ROWS, near=near)
            for name, near in (("near", "true"), ("engine", "false"), ("miss", "true"))
        )
        self.node = start_nodes(stack, options, folder, engine, 1, caches, "128MiB")[0]
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


class Child:
    """Runs work(ready) in a process of its own; ready() ends the preparation."""

    def __init__(self, stack, work):
        fork = multiprocessing.get_context("fork")
        self.pipe, other = fork.Pipe()
        self.process = fork.Process(target=self.run, args=(work, other), daemon=True)
        self.process.start()
        stack.callback(self.close)
        other.close()
        self.take()

    @staticmethod
    def run(work, pipe):
        pipe.send(work(lambda: pipe.send("ready")))
        pipe.recv()  # stays, so that its CPU time can be read

    def take(self):
        with contextlib.suppress(EOFError):
            if self.pipe.poll(3 * PATIENCE):
                return self.pipe.recv()
        sys.exit("a process that listens has failed")

    def close(self):
        self.process.kill()
        self.process.join()


class Pushes:
    """Invalidations that one node tells, and when they came."""

    def __init__(self, port):
        client = Resp(port)
        self.socket, self.buffer, self.at = client.socket, b"", {}
        client.send(("HELLO", "3"))
        client.send(("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "row:"))
        client.send(("ECHO", "begun"))
        while not self.buffer.endswith(b"begun\r\n"):
            piece = self.socket.recv(65536)
            if not piece or b"-ERR" in piece:
                raise RuntimeError(f"no tracking: {piece}")
            self.buffer += piece
        self.buffer, self.flushes = b"", 0
        self.socket.setblocking(False)

    def take(self):
        piece = self.socket.recv(1 << 20)
        if not piece:
            raise RuntimeError("a node has closed its client of pushes")
        now = time.monotonic()
        *lines, self.buffer = (self.buffer + piece).split(b"\r\n")  # the last one is not whole yet
        for line in lines:
            if line.startswith(b"row:"):
                self.at.setdefault(int(line[4:]), now)
        self.flushes += lines.count(b"_")  # null: everything is void


def observe(ports, count):
    """Of each node, when it told which key; ends when all did or nothing has come for long."""

    def work(ready):
        nodes = [Pushes(port) for port in ports]
        with selectors.DefaultSelector() as selector:
            for node in nodes:
                selector.register(node.socket, selectors.EVENT_READ, node)
            ready()
            while any(len(node.at) < count for node in nodes):
                events = selector.select(PATIENCE)
                if not events:
                    break
                for event, _ in events:
                    event.data.take()
        return {"at": [n.at for n in nodes], "flushes": sum(n.flushes for n in nodes)}

    return work


def subscribe(port, count):
    """A service that caches in a dict and drops what the channel names."""

    def work(ready):
        held = {f"row:{i}".encode(): value_of(i) for i in range(count)}
        client, at = Resp(port), {}
        client.call("SUBSCRIBE", CHANNEL)
        client.socket.settimeout(PATIENCE)
        ready()
        while held:
            key = client.answer()[2]
            held.pop(key)
            at[int(key[4:])] = time.monotonic()
        return {"at": [at], "flushes": 0}

    return work


def cpu_ns(pid):
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


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


def spread(committed, seen):
    """First and last of the listeners, from the commit on."""
    first, last = [], []
    for i, began in committed.items():
        times = [at[i] - began for at in seen]
        first.append(min(times))
        last.append(max(times))
    return {"first": percentiles(first), "last": percentiles(last)}


def run_writes(pids, engine, children, write_all, count):
    """CPU of listeners and engine while all is written and heard."""
    pids = [*pids, engine.process.pid]

    def used(work):
        started, before = time.monotonic(), [cpu_ns(pid) for pid in pids]
        result = work()
        seconds = [(cpu_ns(pid) - was) / 1e9 for pid, was in zip(pids, before)]
        return result, seconds, time.monotonic() - started

    _, rest, rest_wall = used(lambda: time.sleep(1))
    rest = [seconds / rest_wall for seconds in rest]
    (committed, heard), cpu, wall = used(
        lambda: (write_all(), [child.take() for child in children])
    )
    seen = [at for one in heard for at in one["at"]]
    if any(len(at) != count for at in seen):
        sys.exit(f"of {count} changes were heard: {[len(at) for at in seen]}")
    net = [all_ - idle * wall for all_, idle in zip(cpu, rest)]
    scale = 1000 / count  # CPU seconds for 1,000
    row = spread(committed, seen)
    row["rate"] = (count - 1) / (max(committed.values()) - min(committed.values()))
    row["flushes"] = sum(one["flushes"] for one in heard)
    if row["flushes"]:
        print(f"{row['flushes']} times a node made everything void", file=sys.stderr)
    for name, seconds in (("cpu_s", cpu), ("net_cpu_s", net)):
        row[name] = {"node": statistics.mean(seconds[:-1]) * scale, "engine": seconds[-1] * scale}
    row["rest_cores"] = {"node": statistics.mean(rest[:-1]), "engine": rest[-1]}
    return row


def invalidate_larder(stack, options, folder, engine, count, nodes_count, round_):
    nodes = start_nodes(stack, options, folder, engine, nodes_count, ROW)
    for node in nodes:
        hold(node, [f"row:{i}" for i in range(count)], "near")
    child = Child(stack, observe([node.port for node in nodes], count))
    row = run_writes(
        [node.process.pid for node in nodes], engine, [child],
        lambda: write(folder, count, options.rate, round_, lambda i: None), count,
    )
    wanted = [new_value(i, round_).encode() for i in range(count)]
    for node in nodes:
        if Resp(node.port).call("MGET", *[f"row:{i}" for i in range(count)]) != wanted:
            sys.exit(f"{node.name} answers old values")
    return row


def invalidate_by_hand(stack, options, folder, engine, count, subscribers, round_):
    client = Resp(engine.port)
    client.call("MSET", *[w for i in range(count) for w in (f"row:{i}", value_of(i))])
    children = [Child(stack, subscribe(engine.port, count)) for _ in range(subscribers)]

    def tell(i):
        client.send(("DEL", f"row:{i}"))
        client.send(("PUBLISH", CHANNEL, f"row:{i}"))
        if (client.answer(), client.answer()) != (1, subscribers):
            sys.exit("DEL and PUBLISH: not everybody was told")

    return run_writes(
        [child.process.pid for child in children], engine, children,
        lambda: write(folder, count, options.rate, round_, tell), count,
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
        nodes = start_nodes(stack, options, folder, engine, STAMPEDE_NODES, SLOW)
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


def table(head, rows):
    """As in docs/benchmarks.md."""
    print("| " + " | ".join(head) + " |\n|---|" + "--:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


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
