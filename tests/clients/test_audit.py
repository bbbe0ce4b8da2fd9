"""`larder audit` on a node that runs, over each engine: what a foreign program changes without
telling anybody is found, said by age, and repaired; the node finds it by itself, too."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import urllib.request

import pytest
from conftest import LARDER, free_ports, wait_for_ping

# Nothing tells of changes of `price`: there are no triggers, and `depends_on` is not declared.
CONFIG = """
[node]
listen = ["127.0.0.1:{port}"]
admin  = "127.0.0.1:{admin}"

[engine]
url = "{engine}"

[source.shop]
url = "sqlite:{folder}/shop.db"

[audit]
enabled = {enabled}
rate    = 50
delay   = "200ms"
recheck = ["300ms", "10m"]

[cache.price]
key    = "price:{{id:int}}"
load   = "SELECT id, price FROM price WHERE id = :id"
ttl    = "1h"
"""


class Node:
    def __init__(self, folder, engine, enabled):
        self.folder = folder
        self.port, self.admin = free_ports(2)
        with sqlite3.connect(folder / "shop.db") as shop:
            shop.execute("CREATE TABLE price(id INTEGER PRIMARY KEY, price INTEGER)")
            shop.executemany("INSERT INTO price VALUES (?, ?)", [(i, 100) for i in range(1, 21)])
        config = folder / "larder.toml"
        config.write_text(
            CONFIG.format(
                port=self.port, admin=self.admin, folder=folder, engine=engine, enabled=enabled
            )
        )
        self.log = folder / "larder.log"
        with self.log.open("w") as out:
            command = [LARDER, "serve", "--config", config]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        wait_for_ping(self.process, self.port, self.log)

    def stop(self):
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0, self.log.read_text()

    def get(self, key):
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(f"GET {key}\r\n".encode())
            answer = connection.makefile("rb")
            size = answer.readline()
            assert size.startswith(b"$"), size
            return json.loads(answer.read(int(size[1:])))

    def set_price(self, number, price):
        """As somebody else's program does it."""
        with sqlite3.connect(self.folder / "shop.db", timeout=10) as shop:
            shop.execute("UPDATE price SET price = ? WHERE id = ?", (price, number))

    def audit(self, *arguments):
        command = [LARDER, "audit", "--address", f"127.0.0.1:{self.port}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def admin_get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10) as answer:
            return answer.read().decode()


def engine_url(kind, folder, request):
    if kind == "embedded":
        return "embedded:"
    server = shutil.which("redis-server")
    if server is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    path = folder / "redis.sock"
    command = [server, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)

    def end():
        process.kill()
        process.wait()

    request.addfinalizer(end)
    return f"redis+unix:{path}"


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_audit_on_demand(kind, tmp_path, request):
    node = Node(tmp_path, engine_url(kind, tmp_path, request), "false")
    try:
        # An engine that is not ready yet answers without storing.
        end = time.monotonic() + 20
        while True:
            for number in range(1, 21):
                assert node.get(f"price:{number}")["price"] == 100
            done = node.audit("--json")
            assert done.returncode == 0, done.stdout + done.stderr
            counts = json.loads(done.stdout)["caches"][0]
            if counts["checked"] == 20 or time.monotonic() > end:
                break
        assert counts["checked"] == 20
        assert [age["entries"] for age in counts["stale"]] == [0, 0, 0]

        node.set_price(7, 250)
        assert node.get("price:7")["price"] == 100, "nobody has told"
        done = node.audit()
        assert done.returncode == 1, done.stdout + done.stderr
        tiers = "near" if kind == "embedded" else "near, engine"
        assert f"price:7 ({tiers})" in done.stdout and "no feed tells of changes" in done.stdout
        assert "repair: done" in done.stdout
        assert node.get("price:7")["price"] == 250

        done = node.audit("--json", "--sample", "1000")
        assert done.returncode == 0, done.stdout + done.stderr
        done = node.audit("--watch", "--rounds", "1", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        total = json.loads(done.stdout)
        counts = total["caches"][0]
        # The second look came after the 300 ms of the first age.
        assert [age["entries"] for age in counts["stale"]] == [1, 1, 0]
        assert (counts["violations"], counts["repaired"], counts["skipped"]) == (0, 1, 0)
        assert total["findings"][0]["key"] == "price:7"
        assert total["findings"][0]["steps"]

        metrics = node.admin_get("/metrics")
        assert 'larder_audit_stale_total{cache="price",age="0"} 1' in metrics
        assert 'larder_audit_checked_total{cache="price"} ' in metrics
        assert 'larder_audit_repaired_total{cache="price"} 1' in metrics
        status = json.loads(node.admin_get("/api/v1/status"))
        assert status["node"]["audit"]["findings"][0]["repair"] == "done"
        assert "audit: price:7 (cache price" in node.log.read_text()
    finally:
        node.stop()


def test_audit_by_itself(tmp_path):
    node = Node(tmp_path, "embedded:", "true")
    try:
        for number in range(1, 21):
            node.get(f"price:{number}")
        node.set_price(7, 250)
        end = time.monotonic() + 30
        while node.get("price:7")["price"] == 100 and time.monotonic() < end:
            time.sleep(0.05)
        assert node.get("price:7")["price"] == 250
        counts = json.loads(node.audit("-w", "-n", "1", "--json").stdout)["caches"][0]
        # Seen, seen again after 300 ms, repaired.
        assert [age["entries"] for age in counts["stale"]] == [1, 1, 0]
        assert (counts["violations"], counts["repaired"]) == (0, 1)
    finally:
        node.stop()


def test_audit_says_what_it_cannot_do(tmp_path):
    port = free_ports(1)[0]
    done = subprocess.run(
        [LARDER, "audit", "--address", f"127.0.0.1:{port}"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "cannot connect" in done.stderr
    for wrong in ["0", "many"]:
        done = subprocess.run([LARDER, "audit", "--sample", wrong], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
    done = subprocess.run([LARDER, "audit", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "larder audit --sample 1000" in done.stdout
