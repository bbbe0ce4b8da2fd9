"""A real node, and programs in several languages that read its near tier from shared memory.

Each language's program is the one of examples/near: it reads keys and prints what they come to. A
runtime that is not on the machine skips its language by name; with CI=true that is a failure.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
import redis

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples" / "near"
sys.path[:0] = [str(ROOT / "tests" / "clients"), str(EXAMPLES / "python")]

import conftest as clients  # noqa: E402
import larder_near  # noqa: E402
import toolchain  # noqa: E402

LARDER = clients.LARDER.resolve()
LIBRARY = LARDER.parent / "liblarder_near.so"
Result = larder_near.Result

SHOP = """
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL);
INSERT INTO product VALUES (1, 'Anchor', 1250), (2, 'Bucket', 499);
"""

CACHE = '''
source   = "shop"
load     = "SELECT id, name, price FROM product WHERE id = :id"
'''

CONFIG = '''
[node]
listen   = ["127.0.0.1:{port}"]
admin    = "127.0.0.1:{admin}"
data_dir = "{folder}/data"

[near]
capacity = "16MiB"
shared   = "{name}"

[source.shop]
url = "sqlite:{folder}/shop.db"

[cache.product]
key      = "product:{{id:int}}"
store    = "UPDATE product SET name = :name, price = :price WHERE id = :id"
write    = "through"
ttl      = "10m"
negative_ttl = "10m"
tags     = ["name:{{name}}"]
depends_on = ["product(id -> id)"]
{cache}
[cache.brief]
key      = "brief:{{id:int}}"
ttl      = "300ms"
jitter   = 0
stale_while_revalidate = "1h"
{cache}
[cache.strong]
key      = "strong:{{id:int}}"
consistency = "strong"
near     = false
{cache}
'''


class Node:
    """A node with its near tier in shared memory, that may be stopped, killed and started."""

    def __init__(self, folder):
        self.name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
        self.object = pathlib.Path("/dev/shm") / f"larder-{self.name}"
        self.port, self.admin = clients.free_ports(2)
        self.log, self.shop, self.process = folder / "log", folder / "shop.db", None
        with sqlite3.connect(self.shop) as shop:
            shop.executescript(SHOP)
        self.config = folder / "larder.toml"
        self.config.write_text(
            CONFIG.format(
                port=self.port, admin=self.admin, folder=folder, name=self.name, cache=CACHE
            )
        )
        prepare = [LARDER, "source", "prepare", "--config", self.config, "shop"]
        done = subprocess.run(prepare, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        self.start()

    def start(self):
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                [LARDER, "serve", "--config", self.config], stdout=out, stderr=out
            )
        clients.wait_for_ping(self.process, self.port, self.log)
        self.redis = redis.Redis(port=self.port, socket_timeout=20)

    def end(self, how):
        self.process.send_signal(how)
        return self.process.wait(timeout=60)

    def close(self):
        if self.process.poll() is None:
            assert self.end(signal.SIGTERM) == 0, self.log.read_text()
        for path in (self.object, self.object.with_name(self.object.name + ".hits")):
            path.unlink(missing_ok=True)


@pytest.fixture
def node(tmp_path):
    with contextlib.closing(Node(tmp_path)) as running:
        yield running


# ---- the programs ----


def c_program():
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang-19")), None)
    if compiler is None:
        raise toolchain.Missing("no C compiler is installed")
    program = toolchain.BUILD / "near-c" / "near_get"
    source, header = EXAMPLES / "c" / "near_get.c", ROOT / "include" / "larder" / "near.h"
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}"]
    link = [f"-L{LIBRARY.parent}", "-llarder_near", f"-Wl,-rpath,{LIBRARY.parent}"]
    command = [compiler, *flags, str(source), *link, "-o", str(program)]
    toolchain._install("near-c", [source, header, str(command).encode()], [command], program)
    return [program], {}


def python_program():
    return [sys.executable, EXAMPLES / "python" / "near_get.py"], {}


def node_program():
    toolchain.need("node")
    source = EXAMPLES / "node"
    files = [source / "package.json", source / "package-lock.json"]
    install = [toolchain.need("npm"), "ci", "--no-audit", "--no-fund",
               "--omit-lockfile-registry-resolved"]
    modules = toolchain.BUILD / "near-node" / "node_modules"
    toolchain._install("near-node", files, [["cp", *map(str, files), "."], install], modules)
    return [toolchain.need("node"), source / "near_get.js"], {"NODE_PATH": str(modules)}


def go_program():
    go = toolchain.need("go")
    if not any(map(shutil.which, ("gcc", "clang"))):
        raise toolchain.Missing("cgo takes gcc or clang")
    source = EXAMPLES / "go"
    program = toolchain.BUILD / "near-go" / "near_get"
    inputs = [source / "go.mod", source / "main.go", source / "near" / "near.go",
              ROOT / "include" / "larder" / "near.h"]
    flags = [f"CGO_CFLAGS=-I{ROOT / 'include'}",
             f"CGO_LDFLAGS=-L{LIBRARY.parent} -Wl,-rpath,{LIBRARY.parent}"]
    commands = [
        ["cp", "-r", f"{source}/.", "."],
        ["env", "CGO_ENABLED=1", *flags, go, "build", "-o", str(program), "."],
    ]
    toolchain._install("near-go", [*inputs, str(flags).encode()], commands, program)
    return [program], {}


def java_program():
    java, maven = toolchain.need("java"), toolchain.need("mvn")
    source = EXAMPLES / "java"
    build = toolchain.BUILD / "near-java"
    inputs = [source / "pom.xml", *sorted((source / "src").rglob("*.java"))]
    command = [maven, "-B", "-q", "-f", str(source / "pom.xml"), "process-classes"]
    toolchain._install("near-java", inputs, [command], build / "classes")
    path = f"{build / 'classes'}:{build / 'lib'}/*"
    return [java, f"-Djna.library.path={LIBRARY.parent}", "-cp", path, "larder.NearGet"], {}


PROGRAMS = {
    "C": c_program,
    "Python": python_program,
    "Node": node_program,
    "Go": go_program,
    "Java": java_program,
}


class Program:
    """A running program of examples/near: one key goes in, one line comes out."""

    def __init__(self, command, environment, name):
        self.process = subprocess.Popen(
            [*map(str, command), name],
            env={**os.environ, "LARDER_NEAR_LIBRARY": str(LIBRARY), **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def look(self, key):
        self.process.stdin.write(key + "\n")
        self.process.stdin.flush()
        result, _, value = self.process.stdout.readline().rstrip("\n").partition(" ")
        return (result, value.encode()) if result == "FOUND" else result

    def until(self, key, wanted, seconds=30):
        """Looks until the answer is `wanted`; what was answered before."""
        end, before = time.monotonic() + seconds, []
        while time.monotonic() < end:
            answer = self.look(key)
            if answer == wanted:
                return before
            before.append(answer)
        pytest.fail(f"{key} does not become {wanted}, but {set(before)}")

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0, self.process.stderr.read()


@pytest.fixture(params=PROGRAMS)
def command(request):
    try:
        return PROGRAMS[request.param]()
    except toolchain.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{request.param}: {missing}")
        pytest.skip(f"{request.param}: {missing}")


def test_language(node, command):
    ask = node.redis
    with contextlib.closing(Program(*command, node.name)) as program:
        # A declared key: a miss, then what the node has loaded; with the node's own text.
        assert program.look("product:1") == "MISS"
        loaded = ask.get("product:1")
        assert b"Anchor" in loaded
        assert program.look("product:1") == ("FOUND", loaded)
        # A row that the source does not have.
        assert program.look("product:999") == "MISS"
        assert ask.get("product:999") is None
        assert program.look("product:999") == "ABSENT"
        # Written through: from the confirmation on nobody reads the old value.
        assert ask.set("product:1", '{"id":1,"name":"Anchor","price":1300}')
        after = program.look("product:1")
        assert after == "MISS" or b"1300" in after[1]
        assert b"1300" in ask.get("product:1")
        assert b"1300" in program.look("product:1")[1]
        # Invalidated, by key and by tag.
        for what in (("KEY", "product:1"), ("TAG", "name:Anchor")):
            ask.execute_command("LARDER.INVALIDATE", *what)
            assert program.look("product:1") == "MISS"
            ask.get("product:1")
            assert program.look("product:1")[0] == "FOUND"
        # Plain keys, small and larger than any first buffer.
        large = "x" * 100_000
        ask.mset({"small": "text", "large": large})
        assert program.look("small") == ("FOUND", b"text")
        assert program.look("large") == ("FOUND", large.encode())
        ask.delete("small")
        assert program.look("small") == "MISS"
        # Not in the near tier.
        ask.get("strong:1")
        assert program.look("strong:1") == "MISS"
        # What is late is for the node to answer, which may.
        ask.get("brief:1")
        program.until("brief:1", "MISS")
        # The node ends without a word, and starts again.
        node.end(signal.SIGKILL)
        before = program.until("large", "NODE_DOWN")
        assert set(before) <= {("FOUND", large.encode())}
        node.start()
        assert program.look("large") == "RESTARTED"
        assert program.look("large") == ("FOUND", large.encode())
        # It ends in order.
        assert node.end(signal.SIGTERM) == 0
        assert program.look("large") == "NODE_DOWN"


def test_language_says_what_is_not_there(command):
    words, environment = command
    done = subprocess.run(
        [*map(str, words), "no-such-tier"],
        env={**os.environ, "LARDER_NEAR_LIBRARY": str(LIBRARY), **environment},
        input="", capture_output=True, text=True, timeout=60,
    )
    assert done.returncode != 0
    assert "there is no near tier of this name" in done.stderr


# ---- the library ----


def test_library_needs_the_c_library_alone():
    needed = subprocess.check_output(["ldd", LIBRARY], text=True).split("\n")
    names = {line.split()[0].rpartition("/")[2] for line in needed if line.strip()}
    assert {name for name in names if not name.startswith(("linux-vdso", "ld-linux"))} == {
        "libc.so.6"
    }


def test_library_shows_its_api_alone():
    header = (ROOT / "include" / "larder" / "near.h").read_text()
    symbols = subprocess.check_output(["nm", "-D", "--defined-only", LIBRARY], text=True)
    names = {line.split()[2] for line in symbols.splitlines()}
    assert names == {
        f"larder_near_{name}" for name in ("open", "get", "stats", "close", "text", "version")
    }
    assert all(f"{name}(" in header for name in names)


# ---- a node's side ----


def test_only_the_group_may_read(node):
    assert stat.S_IMODE(node.object.stat().st_mode) & 0o137 == 0
    hits = node.object.with_name(node.object.name + ".hits")
    assert stat.S_IMODE(hits.stat().st_mode) & 0o117 == 0


def test_python_binding(node):
    node.redis.set("plain", b"\x00\xff")
    with larder_near.Near(node.name, str(LIBRARY)) as near:
        assert near.look(b"plain") == (Result.FOUND, b"\x00\xff")
        assert near.get("product:2", ask=node.redis.get) == node.redis.get("product:2")
        assert near.look("product:2")[0] == Result.FOUND
        assert near.get("product:77", ask=node.redis.get) is None
        assert near.get("product:77", ask=pytest.fail) is None
        info = near.stats()
        assert (info.found, info.absent, info.misses) == (2, 1, 2)
        assert 12 << 20 < info.bytes <= 16 << 20
        assert 0 < info.lease_us <= 2_000_000
    with pytest.raises(larder_near.NearError) as raised:
        larder_near.Near("no-such-tier", str(LIBRARY))
    assert raised.value.result == Result.NOT_FOUND


def test_python_threads_share_a_handle(node):
    node.redis.mset({f"key:{i}": str(i) * i for i in range(100)})
    near = larder_near.Near(node.name, str(LIBRARY))
    wrong = []

    def look():
        for round_ in range(20):
            for i in range(100):
                if near.look(f"key:{i}") != (Result.FOUND, (str(i) * i).encode()):
                    wrong.append((round_, i))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    near.close()
    assert not wrong


# Only other processes read these keys; the node keeps them all the same, and lets the others go.
def test_what_others_read_is_not_evicted(node):
    value = "v" * 50_000
    read = [f"read:{i}" for i in range(20)]
    node.redis.mset({key: value for key in read})
    with larder_near.Near(node.name, str(LIBRARY)) as near:
        for batch in range(20):
            for key in read:
                near.look(key)
            wait_for_the_nodes_turn(near)
            node.redis.mset({f"other:{batch * 50 + i}": value for i in range(50)})
        kept = sum(near.look(key)[0] == Result.FOUND for key in read)
        others = sum(near.look(f"other:{i}")[0] == Result.FOUND for i in range(1_000))
    assert others < 500, "nothing was evicted"
    assert kept == len(read)


def wait_for_the_nodes_turn(near):
    """Until it has renewed its lease, over more than the time between two looks at the hits."""
    start = time.monotonic()
    renewed = 0
    lease = near.stats().lease_us
    while renewed < 3 or time.monotonic() < start + 0.15:
        now = near.stats().lease_us
        renewed += now > lease
        lease = now
        time.sleep(0.005)
