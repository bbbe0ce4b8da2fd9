"""What the benchmarks of many nodes share: their processes, who is told, times and CPU."""

import contextlib
import multiprocessing
import os
import pathlib
import selectors
import statistics
import subprocess
import sys
import time

from resp import Resp, Server, free_port, value_of

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
url = "{source}"
"""


class Process(Server):
    """A server that may run on any core."""

    def __init__(self, name, command, port, admin, log, **how):
        self.name, self.port, self.admin, self.log = name, port, admin, log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, **how
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


def start_nodes(stack, larder, folder, engine, count, caches, source, capacity="16MiB"):
    """Nodes of a namespace of their own; the source is prepared where a cache asks for it."""
    nodes = []
    for _ in range(count):
        port, admin = free_port(), free_port()
        config = folder / f"node-{port}.toml"
        text = NODE.format(
            port=port, admin=admin, folder=folder, capacity=capacity, engine=engine.port,
            namespace=f"fleet-{nodes[0].port if nodes else port}", source=source,
        )
        config.write_text(text + caches)
        if not nodes and "depends_on" in caches:
            command = [larder, "source", "prepare", "--config", config, "shop"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                sys.exit(f"larder source prepare: {done.stdout}{done.stderr}")
        command = [str(larder), "serve", "--config", str(config)]
        node = Process(f"node {len(nodes)}", command, port, admin, folder / f"node-{port}.log")
        stack.callback(node.close)
        nodes.append(node)
    return nodes


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.01)


def hold(node, keys, tier):
    """Asks until all keys are in the tier: a fleet that has just begun does not fill yet."""
    client = Resp(node.port)

    def held(some):
        client.call("MGET", *some)
        for key in some:
            client.send(("LARDER.GET", key))
        answers = [client.answer() for _ in some]
        return all(dict(zip(a[::2], a[1::2]))[b"tier"] == tier.encode() for a in answers)

    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        until(f"every key in the {tier} tier", lambda: held(some))


# ------------------------------------------------------------------------------------------------
# who is told


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
        sys.exit("a process that listens or writes has failed")

    def close(self):
        self.process.kill()
        self.process.join()


class Pushes:
    """Invalidations that one node tells, and when they came: of all rows, or of `only` that one."""

    def __init__(self, port, only=None):
        self.only = only
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
            if line.startswith(b"row:") and self.only in (None, int(line[4:])):
                self.at.setdefault(int(line[4:]), now)
        self.flushes += lines.count(b"_")  # null: everything is void


def observe(ports, count, only=None):
    """Of each node, when it told which key; ends when all did or nothing has come for long."""

    def work(ready):
        nodes = [Pushes(port, only) for port in ports]
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


def subscribe(port, ids):
    """A service that caches in a dict and drops what the channel names."""

    def work(ready):
        held = {f"row:{i}".encode(): value_of(i) for i in ids}
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


def drop_and_publish(client, key, subscribers):
    """What a writer by hand sends after its commit."""
    client.send(("DEL", key))
    client.send(("PUBLISH", CHANNEL, key))
    if (client.answer(), client.answer()) != (1, subscribers):
        sys.exit("DEL and PUBLISH: not everybody was told")


def heard(children, count):
    """Of each listener, when it was told which key. -> that, how often everything became void"""
    told = [child.take() for child in children]
    seen = [at for one in told for at in one["at"]]
    if any(len(at) != count for at in seen):
        sys.exit(f"of {count} changes were heard: {[len(at) for at in seen]}")
    flushes = sum(one["flushes"] for one in told)
    if flushes:
        print(f"{flushes} times a node made everything void", file=sys.stderr)
    return seen, flushes


def check_values(nodes, wanted):
    """Every node answers the new value of every key."""
    keys = list(wanted)
    for node in nodes:
        client = Resp(node.port)
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            answers = client.call("MGET", *some)
            old = [key for key, answer in zip(some, answers) if answer != wanted[key]]
            if old:
                sys.exit(f"{node.name} answers wrong values of {len(old)} keys, such as {old[0]}")


# ------------------------------------------------------------------------------------------------
# times and CPU


def percentiles(samples):
    """Of times in seconds: microseconds."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {"p50_us": cuts[49] * 1e6, "p99_us": cuts[98] * 1e6, "max_us": max(samples) * 1e6,
            "samples": len(samples)}


def first_and_last(since, seen):
    """Of each change, seconds until the first and the last of the listeners were told."""
    first, last = [], []
    for i, began in since.items():
        times = [at[i] - began for at in seen]
        first.append(min(times))
        last.append(max(times))
    return first, last


def cpu_ns(pid):
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text().split()[0])
    return total


def busy_seconds():
    """CPU time that all programs of this machine have used."""
    words = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = map(int, words)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def used(groups, work):
    """CPU of groups of processes meanwhile. -> what work() gave, seconds of each, wall seconds"""
    before = {pid: cpu_ns(pid) for pids in groups.values() for pid in pids}
    started = time.monotonic()
    result = work()
    wall = time.monotonic() - started
    cpu = {
        name: sum(max(0, cpu_ns(pid) - before[pid]) for pid in pids) / 1e9
        for name, pids in groups.items()
    }
    return result, cpu, wall


def table(head, rows):
    """As in docs/benchmarks.md."""
    print("| " + " | ".join(head) + " |\n|---|" + "--:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
