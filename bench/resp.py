#!/usr/bin/env python3
"""GET and SET over RESP: CPU time of the server per request, Larder beside Redis

One server thread each, pinned to core 0, in turn (the other one is stopped meanwhile); the load,
redis-benchmark with 50 connections, on core 1. Declared GETs are near hits of rows from SQLite;
Redis answers plain GETs of the same keys and values beside them. CPU time is the kernel's run time
of all threads of the server (schedstat), divided by requests. Rounds alternate; what is printed is
the median over rounds, and the least and greatest ratio of a pair that ran side by side.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEYS = 10_000
CONNECTIONS = 50

CONFIG = """
[node]
listen   = ["127.0.0.1:{port}"]
admin    = "127.0.0.1:{admin}"
threads  = 1
data_dir = "{folder}/data"

[source.shop]
url = "sqlite:{folder}/shop.db"

[cache.item]
key    = "item:{{id:text}}"
source = "shop"
load   = "SELECT value FROM item WHERE id = :id"
result = "value"
ttl    = "1h"
near   = true
"""

# name -> the command as redis-benchmark sends it; __rand_int__ becomes 12 digits
CASES = {
    "GET plain": ["GET", "plain:__rand_int__"],
    "GET declared": ["GET", "item:__rand_int__"],
    "SET plain": ["SET", "plain:__rand_int__", "v" * 128],
}


def value_of(number):
    return f"{number:012d}".encode() * 10 + b"12345678"  # 128 bytes


class Resp:
    """Just enough of a client to fill, and to compare values."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def call(self, *words):
        self.send(words)
        return self.answer()

    def send(self, words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        parts = [b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(w), w) for w in words]
        self.socket.sendall(b"".join(parts))

    def answer(self):
        line = self.file.readline()[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return rest if kind == b"+" else int(rest)


class Server:
    """A server process on core 0, stopped unless it is its turn."""

    def __init__(self, name, command, port, admin, log):
        self.name, self.port, self.admin, self.log = name, port, admin, log
        with open(log, "w") as out:
            self.process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=out, stderr=out)
        self.wait()

    def wait(self):
        for _ in range(500):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, RuntimeError):
                if Resp(self.port).call("PING") == b"PONG":
                    return
            time.sleep(0.02)
        sys.exit(f"{self.name} does not answer; its log:\n{pathlib.Path(self.log).read_text()}")

    def cpu_ns(self):
        total = 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text().split()[0])
        return total

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def loads(self):
        """How often Larder asked its source; 0 for Redis."""
        if self.admin is None:
            return 0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("larder_source_queries_total")
        )

    def close(self):
        self.go_on()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_redis(folder):
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "no", "--dir", str(folder), "--io-threads", "1"]
    return Server("redis", command, port, None, folder / "redis.log")


def start_larder(folder, binary):
    port, admin = free_port(), free_port()
    with sqlite3.connect(folder / "shop.db") as shop:
        shop.execute("PRAGMA journal_mode = wal")
        shop.execute("CREATE TABLE item(id TEXT PRIMARY KEY, value TEXT NOT NULL)")
        rows = ((f"{i:012d}", value_of(i).decode()) for i in range(KEYS))
        shop.executemany("INSERT INTO item VALUES (?, ?)", rows)
    config = folder / "larder.toml"
    config.write_text(CONFIG.format(port=port, admin=admin, folder=folder))
    command = [str(binary), "serve", "--config", str(config)]
    return Server("larder", command, port, admin, folder / "larder.log")


def fill(server):
    """Every key is there, declared ones near, and every answer is the right one."""
    client = Resp(server.port)
    for start in range(0, KEYS, 500):
        numbers = range(start, start + 500)
        words = [w for i in numbers for w in (f"plain:{i:012d}", value_of(i))]
        client.call("MSET", *words)
        if server.admin is None:
            client.call("MSET", *[w for i in numbers for w in (f"item:{i:012d}", value_of(i))])
        for prefix in ("plain", "item"):
            seen = client.call("MGET", *[f"{prefix}:{i:012d}" for i in numbers])
            if seen != [value_of(i) for i in numbers]:
                sys.exit(f"{server.name}: wrong values for {prefix}: {seen[:2]}")


def compare(server, name):
    """A sample of what the case asked for is what was stored."""
    client = Resp(server.port)
    for i in range(0, KEYS, 97):
        seen = client.call("GET", f"{'item' if 'declared' in name else 'plain'}:{i:012d}")
        if seen not in (value_of(i), b"v" * 128):
            sys.exit(f"{server.name}, {name}: wrong value for key {i}: {seen}")


def load(server, words, pipeline, requests):
    """Requests a second, CPU microseconds a request, share of the core that the server used."""
    command = ["taskset", "-c", "1", "redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port)]
    command += ["-c", str(CONNECTIONS), "-P", str(pipeline), "-n", str(requests), "-r", str(KEYS)]
    command += ["--csv", *words]
    before, started = server.cpu_ns(), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    cpu, wall = server.cpu_ns() - before, time.monotonic() - started
    rows = re.findall(r'"([\d.]+)"', done.stdout.splitlines()[-1]) if done.stdout else []
    if done.returncode != 0 or not rows or "rror" in done.stdout:
        sys.exit(f"redis-benchmark against {server.name}: {done.stdout}{done.stderr}")
    return {"rps": float(rows[0]), "cpu_us": cpu / requests / 1e3, "busy": cpu / wall / 1e9}


def measure(servers, options):
    results = {(name, p): {s.name: [] for s in servers} for name in CASES for p in (1, 16)}
    for round_ in range(options.rounds + 1):  # the first warms up and is not counted
        for (name, pipeline), seen in results.items():
            requests = options.requests * (6 if pipeline > 1 else 1)
            order = servers if round_ % 2 else servers[::-1]
            for server in order:
                server.go_on()
                loads = server.loads()
                sample = load(server, CASES[name], pipeline, requests if round_ else 20_000)
                compare(server, name)
                if server.loads() != loads:
                    sys.exit(f"{name}: not all were hits, the source was asked")
                server.pause()
                if round_:
                    seen[server.name].append(sample)
        print(f"round {round_} of {options.rounds} done", file=sys.stderr)
    return results


def summarise(results):
    rows = []
    for (name, pipeline), seen in results.items():
        pairs = zip(seen["larder"], seen["redis"])
        ratios = [mine["cpu_us"] / theirs["cpu_us"] for mine, theirs in pairs]
        row = {"name": name, "pipeline": pipeline, "cpu_ratio": statistics.median(ratios)}
        row |= {"cpu_ratio_min": min(ratios), "cpu_ratio_max": max(ratios)}
        for server, samples in seen.items():
            row[server] = {
                key: statistics.median(sample[key] for sample in samples)
                for key in ("cpu_us", "rps", "busy")
            }
        row["rps_ratio"] = row["larder"]["rps"] / row["redis"]["rps"]
        rows.append(row)
    return rows


def print_table(rows):
    print(f"{'':14} {'':>4} | {'CPU us a request':^39} | {'requests a second':^30}")
    print(
        f"{'':14} {'P':>4} | {'Larder':>7} {'Redis':>7} {'ratio':>6} {'(min - max)':>15} "
        f"| {'Larder':>11} {'Redis':>11} {'ratio':>6}"
    )
    for row in rows:
        mine, theirs = row["larder"], row["redis"]
        spread = f"({row['cpu_ratio_min']:.2f} - {row['cpu_ratio_max']:.2f})"
        print(
            f"{row['name']:14} {row['pipeline']:4} | {mine['cpu_us']:7.2f} {theirs['cpu_us']:7.2f} "
            f"{row['cpu_ratio']:6.2f} {spread:>15} "
            f"| {mine['rps']:11,.0f} {theirs['rps']:11,.0f} {row['rps_ratio']:6.2f}"
        )
    busy = [row[server]["busy"] for row in rows for server in ("larder", "redis")]
    print(f"The servers used {min(busy):.0%} to {max(busy):.0%} of their core; the load may be the limit")
    print("of requests a second, never of CPU a request. Ratio of CPU below 1: Larder needs less.")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=150_000, help="a run at P=1; P=16: 6 times")
    parser.add_argument("--larder", type=pathlib.Path, default=ROOT / "build" / "larder")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("this takes two cores: one for the server, one for the load")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-")))
        servers = []
        for start in (lambda: start_redis(folder), lambda: start_larder(folder, options.larder)):
            server = start()
            stack.callback(server.close)
            servers.append(server)
            fill(server)
            server.pause()
        rows = summarise(measure(servers, options))
    if options.json:
        about = {"keys": KEYS, "value_bytes": 128, "connections": CONNECTIONS}
        print(json.dumps({**about, "rounds": options.rounds, "results": rows}, indent=2))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
