#!/usr/bin/env python3
"""PostgreSQL: time from a commit past Larder until no near tier has the row, and its cost to writers

  latency     some writers commit `--rate` updates a second by SQL. All nodes hold all rows near; each
              row is written once and not read in between; at the end each node must answer each new
              value. From just before COMMIT is sent until a node has told a CLIENT TRACKING client
              that the key is void: the first and the last node; and the same from COMMIT's answer on,
              which may come after that (a negative time). Beside it in the same run, a process in
              place of each node, which drops the entry of a dict:
                NOTIFY         pg_notify() in the writer's transaction, LISTEN
                DEL + PUBLISH  the writer tells Redis after its commit, SUBSCRIBE
              --stages adds, to Larder, when another reader of the log has the change (pgoutput, a slot
              of its own) and when Redis has published it: where the time goes. Both cost CPU
  throughput  commits a second at 1 and 32 writers (pgbench, an UPDATE in a transaction, one round
              trip): with nothing that listens, with the log read by Larder's nodes, with the log read
              by pg_recvlogical (what the reading itself costs, without the CPU that nodes take on the
              same machine), with NOTIFY in the transaction and 4 listeners

PostgreSQL is durable (fsync, synchronous_commit) and has wal_level = logical throughout. Rounds
alternate. Nothing is pinned: all share all cores. CPU time is the kernel's run time (schedstat).
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import pwd
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import psycopg2
import psycopg2.extras

from nodes import (
    CHANNEL, PATIENCE, Child, Process, busy_seconds, check_values, drop_and_publish,
    first_and_last, heard, hold, observe, percentiles, start_engine, start_nodes, subscribe, table,
    until, used,
)
from resp import ROOT, Resp, free_port, value_of

FIRST = 100_000  # ids have six digits, so that they can be told in the middle of bytes
GOAL_US = {"p50_us": 5_000, "p99_us": 20_000}
WAYS = {"larder": "Larder", "notify": "NOTIFY", "by_hand": "DEL + PUBLISH"}
COSTS = {
    "nothing": "nothing listens",
    "larder": "the log read by Larder",
    "reader": "the log read by pg_recvlogical",
    "notify": "NOTIFY in the transaction",
}
CLIENTS = (1, 32)
KEPT = []  # connections of a child: closed with it, so that the CPU of their backends can be read

SETTINGS = """
listen_addresses        = '127.0.0.1'
port                    = {port}
unix_socket_directories = ''
wal_level               = logical
fsync                   = on
synchronous_commit      = on
max_connections         = 100
shared_buffers          = 256MB
max_wal_size            = 4GB
"""

ROW = """
[cache.row]
key         = "row:{id:int}"
load        = "SELECT value FROM item WHERE id = :id"
result      = "value"
ttl         = "1h"
consistency = "bounded:1s"
depends_on  = ["item(id -> id)"]
"""

UPDATE = """\\set id random({low}, {high})
\\set stamp random(100000000, 999999999)
BEGIN\\; UPDATE item SET value = repeat(CAST(:stamp AS text), 14) WHERE id = :id\\; {more}COMMIT;
"""
NOTIFY = f"SELECT pg_notify('{CHANNEL}', 'row:' || :id)\\; "


# ------------------------------------------------------------------------------------------------
# PostgreSQL


class Postgres(Process):
    """A cluster of its own, durable. As root it runs as `postgres`, which it insists on."""

    def __init__(self, stack):
        self.programs = max(
            pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
        )
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-pg-"))
        self.folder = pathlib.Path(folder)
        port, how = free_port(), {"cwd": folder}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            how |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        command = [self.programs / "initdb", "-D", self.folder / "data", "-U", "larder", "-A"]
        command += ["trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
        done = subprocess.run(command, capture_output=True, text=True, **how)
        if done.returncode != 0:
            sys.exit(f"initdb: {done.stdout}{done.stderr}")
        with open(self.folder / "data" / "postgresql.conf", "a") as settings:
            settings.write(SETTINGS.format(port=port))
        command = [self.programs / "postgres", "-D", self.folder / "data"]
        super().__init__("PostgreSQL", command, port, None, self.folder / "log", **how)
        stack.callback(self.close)

    def url(self, database="shop"):
        return f"postgresql://larder@127.0.0.1:{self.port}/{database}"

    def connect(self, database="shop", **how):
        connection = psycopg2.connect(self.url(database), **how)
        connection.autocommit = True
        return connection

    def query(self, sql, values=None, database="shop"):
        with contextlib.closing(self.connect(database)) as connection:
            with connection.cursor() as cursor:
                cursor.execute(sql, values)
                return cursor.fetchall() if cursor.description else None

    def wait(self):
        for _ in range(500):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(psycopg2.OperationalError):
                self.query("SELECT 1", database="postgres")
                return
            time.sleep(0.02)
        sys.exit(f"PostgreSQL does not answer; its log:\n{pathlib.Path(self.log).read_text()}")

    def close(self):
        self.process.send_signal(signal.SIGINT)  # does not wait for clients
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    def processes(self):
        """-> all, and those of them that send the log"""
        pids = [self.process.pid]
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids += map(int, children.read_text().split())
        senders = []
        for pid in pids:
            with contextlib.suppress(FileNotFoundError):
                if b"walsender" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    senders.append(pid)
        return pids, senders

    def ended_s(self):
        """CPU of children that have ended, in ticks of the kernel."""
        words = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return sum(map(int, words[13:15])) / os.sysconf("SC_CLK_TCK")

    def make_table(self, rows):
        self.query("CREATE DATABASE shop", database="postgres")
        with contextlib.closing(self.connect()) as shop, shop.cursor() as cursor:
            cursor.execute("CREATE TABLE item(id int PRIMARY KEY, value text NOT NULL)")
            values = ((i, value_of(i).decode()) for i in range(FIRST, FIRST + rows))
            psycopg2.extras.execute_values(cursor, "INSERT INTO item VALUES %s", values, page_size=1000)
            cursor.execute("VACUUM ANALYZE item")
            cursor.execute("CHECKPOINT")

    def forget_readers(self):
        """No slot and no publication: as before anybody read the log."""
        def none_reads():
            return not self.query("SELECT 1 FROM pg_replication_slots WHERE active")

        until("the slots are free", none_reads)
        self.query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        for (name,) in self.query("SELECT pubname FROM pg_publication"):
            self.query(f'DROP PUBLICATION "{name}"')


# ------------------------------------------------------------------------------------------------
# latency


class Run:
    """What one round of one way needs: servers, rows, and new values that no other round has."""

    def __init__(self, stack, options, folder, engine, postgres, way, round_):
        self.stack, self.options, self.folder = stack, options, folder
        self.engine, self.postgres = engine, postgres
        self.way, self.name = way, f"{way}-{round_}"
        count = int(options.seconds * options.rate)
        self.ids = range(FIRST, FIRST + count)

    def new_value(self, i):
        return f"{self.name}:{value_of(i).decode()}"


def writer(run, number, start, tell):
    """Commits every `--writers`th row, at its share of the rate. -> {id: (COMMIT sent, answered)}"""
    options = run.options

    def work(ready):
        connection = run.postgres.connect()
        KEPT.append(connection)
        cursor, sql = connection.cursor(), "BEGIN; UPDATE item SET value = %s WHERE id = %s"
        if run.way == "notify":
            sql += f"; SELECT pg_notify('{CHANNEL}', 'row:' || %s)"
        client = Resp(run.engine.port)
        ready()
        start.wait()
        at, begun = {}, time.monotonic()
        for place in range(number, len(run.ids), options.writers):
            i = run.ids[place]
            values = (run.new_value(i), i, i)
            time.sleep(max(0, begun + place / options.rate - time.monotonic()))
            cursor.execute(sql, values if run.way == "notify" else values[:2])
            sent = time.monotonic()
            cursor.execute("COMMIT")
            at[i] = (sent, time.monotonic())
            tell(client, i)
        return at

    return work


def listen(postgres, ids):
    """A service that caches in a dict and drops what PostgreSQL notifies. Without ids: any, for ever."""

    def work(ready):
        held, at = {f"row:{i}": value_of(i) for i in ids or ()}, {}
        connection = postgres.connect()
        connection.cursor().execute(f"LISTEN {CHANNEL}")
        ready()
        while held or ids is None:
            if not select.select([connection], [], [], PATIENCE)[0] and ids is not None:
                break
            connection.poll()
            for notice in connection.notifies:
                held.pop(notice.payload, None)
                if ids is not None:
                    at[int(notice.payload[4:])] = time.monotonic()
            connection.notifies.clear()
        return {"at": [at], "flushes": 0}

    return work


def hear_larder(run):
    nodes = start_nodes(
        run.stack, run.options.larder, run.folder, run.engine, run.options.nodes, ROW,
        run.postgres.url(),
    )
    for node in nodes:
        hold(node, [f"row:{i}" for i in run.ids], "near")
    observer = Child(run.stack, observe([node.port for node in nodes], len(run.ids)))
    return nodes, [observer]


def hear_notify(run):
    return [], [Child(run.stack, listen(run.postgres, run.ids)) for _ in range(run.options.nodes)]


def hear_by_hand(run):
    client = Resp(run.engine.port)
    client.call("MSET", *[word for i in run.ids for word in (f"row:{i}", value_of(i))])
    children = [
        Child(run.stack, subscribe(run.engine.port, run.ids)) for _ in range(run.options.nodes)
    ]
    return [], children


def measure_way(run):
    """One round of one way. -> its times in seconds, CPU, and how busy the machine was"""
    nodes, listeners = {"larder": hear_larder, "notify": hear_notify, "by_hand": hear_by_hand}[
        run.way
    ](run)
    probes = []
    if run.options.stages and nodes:
        probes = [Child(run.stack, watch_log(run)), Child(run.stack, watch_engine(run))]
    start = multiprocessing.get_context("fork").Event()

    def tell(client, i):
        if run.way == "by_hand":
            drop_and_publish(client, f"row:{i}", run.options.nodes)

    writers = [
        Child(run.stack, writer(run, number, start, tell)) for number in range(run.options.writers)
    ]
    everybody, senders = run.postgres.processes()
    listeners_pids = [child.process.pid for child in listeners]
    groups = {
        "listeners": [node.process.pid for node in nodes] or listeners_pids,
        "engine": [run.engine.process.pid],
        "postgres": everybody,
        "walsender": senders,
        "load": [child.process.pid for child in [*writers, *probes]]
        + (listeners_pids if nodes else []),
    }
    busy = busy_seconds()

    def work():
        start.set()
        written = [child.take() for child in writers]
        return {i: at for one in written for i, at in one.items()}, heard(listeners, len(run.ids))

    (written, (seen, flushes)), cpu, wall = used(groups, work)
    check_values(nodes, {f"row:{i}": run.new_value(i).encode() for i in run.ids})
    others = busy_seconds() - busy - sum(cpu.values()) + cpu["walsender"]
    sent = {i: at[0] for i, at in written.items()}
    answered = {i: at[1] for i, at in written.items()}
    times = {"commit": [answered[i] - sent[i] for i in sent]}
    times["first"], times["last"] = first_and_last(sent, seen)
    times["first_answered"], times["last_answered"] = first_and_last(answered, seen)
    for name, probe in zip(("log", "engine"), probes):
        at = probe.take()
        times[name] = [at[i] - sent[i] for i in sent if i in at]
    return {
        "times": times, "cpu": cpu, "flushes": flushes, "others_cores": others / wall,
        "rate": (len(sent) - 1) / (max(sent.values()) - min(sent.values())),
    }


def summary(rounds, count):
    """All rounds of one way, their samples together."""
    row = {"changes": count * len(rounds), "flushes": sum(one["flushes"] for one in rounds)}
    for name in rounds[0]["times"]:
        row[name] = percentiles([time for one in rounds for time in one["times"][name]])
    row["cpu_s"] = {
        name: sum(one["cpu"][name] for one in rounds) * 1000 / row["changes"]
        for name in rounds[0]["cpu"]
    }
    for name in ("rate", "others_cores"):
        row[name] = statistics.mean(one[name] for one in rounds)
    row["rounds"] = [
        {key: percentiles(one["times"]["last"])[key] for key in GOAL_US} for one in rounds
    ]
    return row


def measure_latency(options, folder, engine, postgres):
    seen = {way: [] for way in WAYS}
    for round_ in range(options.rounds):
        for way in list(WAYS)[:: -1 if round_ % 2 else 1]:
            Resp(engine.port).call("FLUSHALL")
            with contextlib.ExitStack() as stack:
                run = Run(stack, options, folder, engine, postgres, way, round_)
                seen[way].append(measure_way(run))
            postgres.forget_readers()
            print(f"latency, {WAYS[way]}, round {round_ + 1}: done", file=sys.stderr)
    count = int(options.seconds * options.rate)
    return {way: summary(rounds, count) for way, rounds in seen.items()}


# ------------------------------------------------------------------------------------------------
# where the time goes


def watch_log(run):
    """Another reader of the log, which does nothing but look. -> {id: when it came}"""
    (publication,) = run.postgres.query("SELECT pubname FROM pg_publication")[0]

    def work(ready):
        connection = run.postgres.connect(
            connection_factory=psycopg2.extras.LogicalReplicationConnection
        )
        cursor, at = connection.cursor(), {}
        slot = f"bench_{os.getpid()}"
        cursor.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        cursor.start_replication(
            slot, decode=False, options={"proto_version": "1", "publication_names": publication}
        )
        ready()
        while len(at) < len(run.ids):
            message = cursor.read_message()
            if message:
                # U, relation, N, how many columns, t, how long: the id, of six digits
                if message.payload[:1] == b"U":
                    at[int(message.payload[13:19])] = time.monotonic()
            elif not select.select([cursor], [], [], PATIENCE)[0]:
                break
        return at

    return work


def watch_engine(run):
    """-> {id: when Redis had published that it is void}"""

    def work(ready):
        client, at = Resp(run.engine.port), {}
        client.call("PSUBSCRIBE", "*")
        client.socket.settimeout(PATIENCE)
        ready()
        seen = b""
        while len(at) < len(run.ids):
            try:
                seen += client.socket.recv(1 << 20)
            except socket.timeout:
                break
            now = time.monotonic()
            for digits in re.findall(rb"row:(\d{6})", seen):
                at.setdefault(int(digits), now)
            seen = seen[-9:]
        return at

    return work


# ------------------------------------------------------------------------------------------------
# throughput


def commits(postgres, script, clients, seconds):
    """pgbench. -> commits a second, CPU seconds of PostgreSQL for 1,000 (its backends have ended)"""
    command = [postgres.programs / "pgbench", "-n", "-h", "127.0.0.1", "-p", str(postgres.port)]
    command += ["-U", "larder", "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(seconds)]
    command += ["-f", script, "shop"]
    before = postgres.ended_s()
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.M)
    count = re.search(r"actually processed: (\d+)", done.stdout)
    failed = re.search(r"failed transactions: (\d+)", done.stdout)
    if done.returncode != 0 or not tps or not count or not failed or failed[1] != "0":
        sys.exit(f"pgbench: {done.stdout}{done.stderr}")
    until("pgbench's backends end", lambda: not postgres.query(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbench'"))
    return float(tps[1]), (postgres.ended_s() - before) * 1000 / int(count[1])


def read_log(stack, options, folder, postgres):
    """pg_recvlogical, with a publication and a slot as Larder's."""
    postgres.query("CREATE PUBLICATION bench FOR TABLE item")
    command = [postgres.programs / "pg_recvlogical", "-d", postgres.url(), "-S", "bench"]
    command += ["--create-slot", "--start", "-P", "pgoutput", "-f", "/dev/null", "-F", "0"]
    command += ["-o", "proto_version=1", "-o", "publication_names=bench", "-o", "messages=true"]
    with open(folder / "reader.log", "w") as log:
        reader = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(reader.wait)
    stack.callback(reader.terminate)
    until("pg_recvlogical reads", lambda: postgres.query(
        "SELECT 1 FROM pg_replication_slots WHERE active"))
    return [reader.pid]


def listen_for_cost(stack, options, folder, engine, postgres, name):
    """Starts who listens. -> their processes, and the nodes among them"""
    if name == "larder":
        Resp(engine.port).call("FLUSHALL")
        nodes = start_nodes(
            stack, options.larder, folder, engine, options.nodes, ROW, postgres.url()
        )
        for node in nodes:
            hold(node, [f"row:{FIRST}"], "near")
        return [node.process.pid for node in nodes], nodes
    if name == "reader":
        return read_log(stack, options, folder, postgres), []
    if name == "notify":
        children = [Child(stack, listen(postgres, None)) for _ in range(options.nodes)]
        return [child.process.pid for child in children], []
    return [], []


def drained(stack, postgres, nodes):
    """Seconds until a commit that is made now, behind all that waits, has been told by every node."""
    observer = Child(stack, observe([node.port for node in nodes], 1, FIRST))
    started = time.monotonic()
    postgres.query("UPDATE item SET value = 'the last one' WHERE id = %s", (FIRST,))
    seen, _ = heard([observer], 1)
    return max(at[FIRST] for at in seen) - started


def measure_cost(options, folder, engine, postgres, name, clients):
    script = folder / "update.sql"
    rows = {"low": FIRST + 1, "high": FIRST + rows_of(options) - 1}
    script.write_text(UPDATE.format(**rows, more=NOTIFY if name == "notify" else ""))
    with contextlib.ExitStack() as stack:
        pids, nodes = listen_for_cost(stack, options, folder, engine, postgres, name)
        _, senders = postgres.processes()
        groups = {"listeners": pids, "engine": [engine.process.pid], "walsender": senders}
        (rate, backends), cpu, wall = used(
            groups, lambda: commits(postgres, script, clients, options.cost_seconds)
        )
        sample = {"rate": rate, "backends_cpu_s": backends}
        sample["cores"] = {group: seconds / wall for group, seconds in cpu.items()}
        if nodes:
            sample["drained_s"] = drained(stack, postgres, nodes)
    postgres.forget_readers()
    return sample


def measure_throughput(options, folder, engine, postgres):
    cases = list(itertools.product(COSTS, CLIENTS))
    seen = {case: [] for case in cases}
    for round_ in range(options.rounds):
        for name, clients in cases[:: -1 if round_ % 2 else 1]:
            sample = measure_cost(options, folder, engine, postgres, name, clients)
            seen[name, clients].append(sample)
        print(f"throughput, round {round_ + 1}: done", file=sys.stderr)
    rows = []
    for (name, clients), samples in seen.items():
        row = {"name": name, "clients": clients}
        for key in ("rate", "backends_cpu_s", "drained_s"):
            if key in samples[0]:
                row[key] = statistics.median(sample[key] for sample in samples)
        row["cores"] = {
            group: statistics.mean(sample["cores"][group] for sample in samples)
            for group in samples[0]["cores"]
        }
        alone = statistics.median(sample["rate"] for sample in seen["nothing", clients])
        rows.append(row | {"ratio": row["rate"] / alone})
    return rows


# ------------------------------------------------------------------------------------------------


def ms(row):
    return " / ".join(f"{row[key] / 1e3:.1f}" for key in ("p50_us", "p99_us", "max_us")) + " ms"


def print_latency(result, options):
    head = [f"{options.nodes} nodes, {options.rate:,} commits/s", "commits/s", "COMMIT itself",
            "first told", "all told", "first, from the answer", "all, from the answer"]
    names = ("commit", "first", "last", "first_answered", "last_answered")
    table(head, [
        [label, f"{result[way]['rate']:.0f}", *(ms(result[way][name]) for name in names)]
        for way, label in WAYS.items()
    ])
    head = ["CPU s, 1,000 changes", f"{options.nodes} nodes or listeners", "Redis", "PostgreSQL",
            "its walsenders among that", "the load", "cores that others took"]
    names = ("listeners", "engine", "postgres", "walsender", "load")
    table(head, [
        [label, *(f"{result[way]['cpu_s'][name]:.3f}" for name in names),
         f"{result[way]['others_cores']:.2f}"]
        for way, label in WAYS.items()
    ])
    larder = result["larder"]
    if "log" in larder:
        table(["from COMMIT on, until", "p50 / p99 / max"], [
            [label, ms(larder[name])]
            for name, label in (
                ("commit", "the writer has its answer"),
                ("log", "another reader of the log has it"),
                ("engine", "Redis has published it"),
                ("first", "the first node has told"),
                ("last", "the last node has told"),
            )
        ])
    reached = all(larder["last"][key] <= goal for key, goal in GOAL_US.items())
    goals = " and ".join(f"{key[:3]} {goal / 1e3:.0f} ms" for key, goal in GOAL_US.items())
    print(f"Goal, all nodes from just before COMMIT: {goals}: {'reached' if reached else 'missed'}\n")


def print_throughput(rows):
    head = ["commits/s", "1 writer", "by nothing's", "32 writers", "by nothing's",
            "CPU s of the backends, 1,000 commits", "walsenders, listeners + Redis, of a core",
            "told after the end"]
    lines = []
    for name, label in COSTS.items():
        one, many = (row for row in rows if row["name"] == name)
        cores = many["cores"]
        lines.append([
            label, f"{one['rate']:,.0f}", f"{one['ratio']:.2f}", f"{many['rate']:,.0f}",
            f"{many['ratio']:.2f}", f"{many['backends_cpu_s']:.3f}",
            f"{cores['walsender']:.0%}, {cores['listeners']:.0%} + {cores['engine']:.0%}",
            f"{many['drained_s'] * 1e3:.0f} ms" if "drained_s" in many else "-",
        ])
    table(head, lines)


def rows_of(options):
    return max(10_000, int(options.seconds * options.rate))


def options_of():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rate", type=int, default=1_000, help="commits a second, of all writers")
    parser.add_argument("--seconds", type=float, default=5, help="of writes, each round")
    parser.add_argument("--writers", type=int, default=8, help="connections that share the rate")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", action="store_true", help="also where the time goes")
    parser.add_argument("--cost-seconds", type=int, default=4, help="of each run of pgbench")
    parser.add_argument("--server", default="redis-server", help="the engine: or valkey-server")
    parser.add_argument("--larder", type=pathlib.Path, default=ROOT / "build" / "larder")
    parts = ["latency", "throughput"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    return parser.parse_args()


def main():
    options = options_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and all processes with it
    results = {"load_average": [os.getloadavg()]}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="larder-")))
        postgres = Postgres(stack)
        postgres.make_table(rows_of(options))
        results["postgres"] = postgres.query("SHOW server_version")[0][0]
        engine = start_engine(stack, options.server, folder)
        if "latency" in options.parts:
            results["latency"] = measure_latency(options, folder, engine, postgres)
        if "throughput" in options.parts:
            results["throughput"] = measure_throughput(options, folder, engine, postgres)
    results["load_average"].append(os.getloadavg())
    if options.json:
        about = {"rate": options.rate, "nodes": options.nodes, "writers": options.writers}
        about |= {"value_bytes": 128, "seconds": options.seconds, "rounds": options.rounds}
        print(json.dumps({**about, **results}, indent=2))
        return
    if "latency" in results:
        print_latency(results["latency"], options)
    if "throughput" in results:
        print_throughput(results["throughput"])
    averages = " and ".join(f"{one:.1f}" for one, _, _ in results["load_average"])
    print(f"PostgreSQL {results['postgres']}; load average {averages} before and after")


if __name__ == "__main__":
    main()
