#!/usr/bin/env python3
"""Write-behind: `kill -9` of node and database at random instants; is each acknowledged write there, once?

Writers keep a ledger of what was acknowledged. Each writes events (a plain INSERT: a second one would be
refused), increments a counter of its own, and sets items to ever higher versions, which a trigger of
the database logs. In between the node is killed, or the database, or both; with --power what the node
had not made durable is taken away from its journal. In the end everything is started once more, and

  every acknowledged event is there, and none that nobody sent
  every counter is what was acknowledged, and at most one more for each answer that was lost
  the versions of an item only went up, and the last acknowledged one was reached
  nothing is with the dead letters

--lies, with --power, makes the node's fdatasync do nothing: then it must find something missing.
"""

import argparse
import json
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from resp import ROOT, Resp, free_port

PATIENCE = 60
WRITERS = 4
ITEMS = 5  # of each writer

NODE = """
[node]
listen   = ["127.0.0.1:{port}"]
admin    = ""
threads  = 2
data_dir = "{folder}/data"

[source.shop]
url = "{url}"

[cache.event]
key   = "event:{{id:int}}"
load  = "SELECT writer FROM event WHERE id = :id"
store = "INSERT INTO event(id, writer) VALUES (:id, :writer)"
write = "behind"

[cache.counter]
key       = "counter:{{id:int}}"
load      = "SELECT n FROM counter WHERE id = :id"
store     = "UPDATE counter SET n = :value WHERE id = :id"
increment = "UPDATE counter SET n = n + :delta WHERE id = :id"
result    = "value"
write     = "behind"

[cache.item]
key   = "item:{{id:int}}"
load  = "SELECT id, version FROM item WHERE id = :id"
store = "UPDATE item SET version = :version WHERE id = :id"
write = "behind"
"""

TABLES = """
CREATE TABLE event(id BIGINT PRIMARY KEY, writer INTEGER NOT NULL);
CREATE TABLE counter(id INTEGER PRIMARY KEY, n BIGINT NOT NULL);
CREATE TABLE item(id INTEGER PRIMARY KEY, version BIGINT NOT NULL);
"""
SQLITE_HISTORY = """
CREATE TABLE history(place INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER, version BIGINT);
CREATE TRIGGER log AFTER UPDATE ON item BEGIN
  INSERT INTO history(id, version) VALUES (NEW.id, NEW.version); END;
"""
POSTGRES_HISTORY = """
CREATE TABLE history(place BIGSERIAL PRIMARY KEY, id INTEGER, version BIGINT);
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO history(id, version) VALUES (NEW.id, NEW.version); RETURN NULL; END';
CREATE TRIGGER log AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION log();
"""
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 300
"""


class Sqlite:
    def __init__(self, folder):
        self.path = folder / "shop.db"
        self.url = f"sqlite:{self.path}"
        with sqlite3.connect(self.path) as shop:
            shop.execute("PRAGMA journal_mode = WAL")
            shop.executescript(TABLES + SQLITE_HISTORY)

    def query(self, sql):
        with sqlite3.connect(self.path, timeout=30) as shop:
            return shop.execute(sql).fetchall()

    def kill(self):
        return False  # it is the node

    def start(self):
        pass

    close = start


class Postgres:
    """A cluster of its own. As root it runs as `postgres`, which it insists on."""

    def __init__(self, folder):
        self.folder, self.port, self.how = folder / "pg", free_port(), {}
        self.programs = max(
            pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
        )
        self.folder.mkdir()
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            folder.chmod(0o755)
            self.how = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.url = f"postgresql://larder@127.0.0.1:{self.port}/postgres"
        self.run("initdb", "-D", self.folder / "data", "-U", "larder", "-A", "trust", "-N")
        with open(self.folder / "data" / "postgresql.conf", "a") as settings:
            settings.write(SETTINGS.format(port=self.port))
        self.start()
        self.psql(TABLES + POSTGRES_HISTORY)

    def run(self, program, *words):
        done = subprocess.run(
            [self.programs / program, *words], capture_output=True, text=True, cwd=self.folder,
            stdin=subprocess.DEVNULL, **self.how,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout

    def psql(self, sql):
        return self.run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", sql)

    def query(self, sql):
        lines = self.psql(sql).splitlines()
        return [tuple(int(word) for word in line.split("|")) for line in lines if line]

    def start(self):
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data"], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True, **self.how,
            )
        for _ in range(PATIENCE * 50):
            try:
                self.psql("SELECT 1")
                return
            except RuntimeError:
                # Backends of the one that was killed may still leave its memory.
                if self.process.poll() is not None:
                    return self.start()
                time.sleep(0.02)
        sys.exit(f"PostgreSQL does not answer; its log: {self.folder / 'log'}")

    def kill(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [self.process.pid, *map(int, children.read_text().split())]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        return True

    def close(self):
        self.kill()


class Power:
    """Takes away what a node had not made durable."""

    def __init__(self, folder, lies):
        self.log, self.library = folder / "synced", folder / "unsynced.so"
        source = ROOT / "bench" / "kill" / "unsynced.c"
        subprocess.run(
            ["clang-19", "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True
        )
        self.environment = {"LD_PRELOAD": str(self.library), "UNSYNCED_LOG": str(self.log)}
        if lies:
            self.environment["UNSYNCED_LIES"] = "1"
        self.taken = 0

    def goes(self, journal):
        sizes = {}
        if self.log.exists():
            for line in self.log.read_text().splitlines():
                words = line.split(" ")
                if words[0] == "S":
                    sizes[words[2]] = int(words[1])
                else:
                    sizes[words[2]] = sizes.pop(words[1], 0)
        for file in journal.glob("*.journal"):
            durable = sizes.get(str(file), 0)
            if file.stat().st_size > durable:
                self.taken += file.stat().st_size - durable
                os.truncate(file, durable)


class Node:
    def __init__(self, folder, database, larder, power, config=NODE):
        self.folder, self.larder, self.power = folder, larder, power
        self.port = free_port()
        self.config = folder / "larder.toml"
        self.config.write_text(config.format(port=self.port, folder=folder, url=database.url))
        self.command("source", "prepare", "--config", self.config, "shop")
        self.process = None

    def command(self, *words):
        done = subprocess.run([self.larder, *words], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"larder {words[0]}: {done.stdout}{done.stderr}")

    def start(self):
        environment = {**os.environ, **(self.power.environment if self.power else {})}
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [self.larder, "serve", "--config", self.config], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=environment,
            )
        for _ in range(PATIENCE * 100):
            if self.process.poll() is not None:
                raise RuntimeError(f"the node does not start; see {self.folder / 'log'}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError("the node does not listen")

    def kill(self):
        self.process.kill()
        self.process.wait()
        if self.power:
            self.power.goes(self.folder / "data" / "journal")

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


class Writer(threading.Thread):
    """What was acknowledged to one client, and what may have been."""

    def __init__(self, number, port, stop):
        super().__init__(daemon=True)
        self.number, self.port, self.stop = number, port, stop
        self.events, self.sent = set(), set()
        self.count, self.unknown = 0, 0
        self.versions, self.tried, self.answered = {}, 0, 0
        self.refused, self.lost = 0, 0

    def run(self):
        client, step = None, 0
        items = [self.number * 100 + i for i in range(ITEMS)]
        while not self.stop.is_set():
            try:
                if client is None:
                    client = Resp(self.port)
                    client.socket.settimeout(PATIENCE)
            except OSError:
                time.sleep(0.005)
                continue
            step += 1
            kind = step % 3
            try:
                if kind == 0:
                    event = self.number * 10**9 + step
                    self.sent.add(event)
                    client.call("SET", f"event:{event}", json.dumps({"writer": self.number}))
                    self.events.add(event)
                elif kind == 1:
                    self.unknown += 1
                    client.call("INCR", f"counter:{self.number}")
                    self.unknown -= 1
                    self.count += 1
                else:
                    item = random.choice(items)
                    self.tried += 1
                    version = self.tried
                    client.call("SET", f"item:{item}", json.dumps({"version": version}))
                    self.versions[item] = version
                self.answered += 1
            except RuntimeError:  # an error that was answered
                self.refused += 1
            except (OSError, ValueError, IndexError):
                self.lost += 1
                client = None


def check(database, writers):
    """-> what is wrong"""
    wrong = []
    there = {}
    for event, writer in database.query("SELECT id, writer FROM event"):
        there.setdefault(writer, set()).add(event)
    counters = dict(database.query("SELECT id, n FROM counter"))
    items = dict(database.query("SELECT id, version FROM item"))
    last = {}
    for _, item, version in database.query("SELECT place, id, version FROM history ORDER BY place"):
        if version <= last.get(item, 0):
            wrong.append(f"item {item}: version {version} came after {last[item]}")
        last[item] = version
    for writer in writers:
        have = there.get(writer.number, set())
        if writer.events - have:
            wrong.append(f"writer {writer.number}: {len(writer.events - have)} events are missing")
        if have - writer.sent:
            wrong.append(f"writer {writer.number}: {len(have - writer.sent)} events were never sent")
        counted = counters[writer.number]
        if not writer.count <= counted <= writer.count + writer.unknown:
            wrong.append(
                f"counter {writer.number}: {counted}, but {writer.count} were acknowledged and "
                f"{writer.unknown} had no answer"
            )
        for item, version in writer.versions.items():
            if items[item] < version:
                wrong.append(f"item {item}: {items[item]}, but {version} was acknowledged")
    ((letters,),) = database.query("SELECT count(*) FROM larder_dead_letter")
    if letters:
        wrong.append(f"{letters} dead letters")
    return wrong


def run(options, folder):
    dice = random.Random(options.seed)
    database = {"sqlite": Sqlite, "postgres": Postgres}[options.database](folder)
    power = Power(folder, options.lies) if options.power else None
    stop = threading.Event()
    killed = {"node": 0, "database": 0, "both": 0}
    began = time.monotonic()
    try:
        rows = [
            f"INSERT INTO counter VALUES ({w}, 0)" for w in range(WRITERS)
        ] + [f"INSERT INTO item VALUES ({w * 100 + i}, 0)" for w in range(WRITERS) for i in range(ITEMS)]
        for sql in rows:
            database.psql(sql) if options.database == "postgres" else database.query(sql)
        node = Node(folder, database, options.larder, power)
        node.start()
        writers = [Writer(number, node.port, stop) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for round_ in range(options.times):
            time.sleep(dice.uniform(0.01, 0.15))
            what = "node"
            if options.database == "postgres":
                what = dice.choices(["node", "database", "both"], [6, 2, 2])[0]
            killed[what] += 1
            if what != "node":
                database.kill()
            if what != "database":
                node.kill()
            if what == "database":
                time.sleep(dice.uniform(0, 0.2))  # what is acknowledged meanwhile waits
            if what != "node":
                database.start()
            if what != "database":
                node.start()
            if (round_ + 1) % 100 == 0:
                print(f"{round_ + 1} of {options.times}", file=sys.stderr, flush=True)
        stop.set()
        for writer in writers:
            writer.join(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        client = Resp(node.port)
        while time.monotonic() < deadline:
            status = json.loads(client.call("LARDER.JOURNAL"))
            if all(source["waiting"] == 0 for source in status["sources"]):
                break
            time.sleep(0.02)
        node.stop()
        wrong = check(database, writers)
    except RuntimeError as problem:
        wrong = [str(problem)]
        writers = []
    finally:
        stop.set()
        database.close()
    return {
        "killed": killed,
        "seconds": round(time.monotonic() - began, 1),
        "acknowledged": sum(w.answered for w in writers),
        "without_answer": sum(w.lost for w in writers),
        "refused": sum(w.refused for w in writers),
        "bytes_taken_away": power.taken if power else 0,
        "wrong": wrong,
    }


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, metavar="N", help="how often (100)")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="postgres")
    parser.add_argument("--power", action="store_true", help="the power goes, too")
    parser.add_argument("--lies", action="store_true", help="fsync does nothing: must be noticed")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; 0: another one each time")
    parser.add_argument("--larder", default=ROOT / "build" / "larder", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    options.seed = options.seed or int(time.time()) % 99999 + 1
    folder = pathlib.Path(tempfile.mkdtemp(prefix="larder-kill-"))
    result = run(options, folder) | {"seed": options.seed, "database": options.database}
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{options.database}, seed {options.seed}: killed {result['killed']} in {result['seconds']} s; "
            f"{result['acknowledged']} writes acknowledged, {result['without_answer']} without an answer, "
            f"{result['refused']} refused, {result['bytes_taken_away']} bytes that were not durable taken away"
        )
        for line in result["wrong"][:20]:
            print(f"  {line}")
        print("everything acknowledged is there, once" if not result["wrong"] else "WRONG")
    if result["wrong"] and not options.lies:
        print(f"kept: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
