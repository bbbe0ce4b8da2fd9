"""Write-behind under `kill -9`: what was acknowledged is in the database, once (bench/kill.py)."""

import json
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
import redis
from conftest import LARDER, ROOT, free_ports, wait_for_ping


def kill(*words):
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "kill.py", "--json", "--larder", LARDER, *words],
        capture_output=True, text=True, timeout=600,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_node_and_database_are_killed():
    if not list(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL's server is not installed")
    result = kill("--times", "40", "--database", "postgres")
    assert result["wrong"] == []
    assert result["acknowledged"] > 1000
    assert min(result["killed"].values()) > 0


def test_the_power_goes():
    if not preloads():
        pytest.skip("a program with AddressSanitizer is not preloaded into")
    result = kill("--times", "100", "--database", "sqlite", "--power")
    assert result["wrong"] == []
    assert result["bytes_taken_away"] > 0, "nothing was lost: not tested"


def test_without_fsync_something_is_missing():
    if not preloads():
        pytest.skip("a program with AddressSanitizer is not preloaded into")
    assert kill("--times", "10", "--database", "sqlite", "--power", "--lies")["wrong"]


def preloads():
    return shutil.which("clang-19") and b"__asan_init" not in LARDER.read_bytes()


CONFIG = """
[node]
listen   = ["127.0.0.1:{port}"]
admin    = ""
data_dir = "{data}"

[source.shop]
url = "sqlite:{folder}/shop.db"

[cache.note]
key    = "note:{{id:int}}"
load   = "SELECT text FROM note WHERE id = :id"
store  = "INSERT INTO note VALUES (:id, :value) ON CONFLICT (id) DO UPDATE SET text = :value"
result = "value"
write  = "behind"
"""


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_and_loses_nothing(tmp_path, small_disk):
    (port,) = free_ports(1)
    shop = sqlite3.connect(tmp_path / "shop.db", isolation_level=None, timeout=30)
    shop.execute("PRAGMA journal_mode = WAL")
    shop.execute("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    config, log = tmp_path / "larder.toml", tmp_path / "log"
    config.write_text(CONFIG.format(port=port, data=small_disk / "data", folder=tmp_path))
    subprocess.run([LARDER, "source", "prepare", "--config", config, "shop"], check=True)
    with log.open("w") as out:
        node = subprocess.Popen([LARDER, "serve", "--config", config], stdout=out, stderr=out)
    try:
        wait_for_ping(node, port, log)
        client = redis.Redis(port=port)
        shop.execute("BEGIN IMMEDIATE")  # nothing is flushed
        acknowledged = 0
        with pytest.raises(redis.ResponseError, match="LARDER_OVERLOADED.*full"):
            for acknowledged in range(10_000):
                client.set(f"note:{acknowledged}", "x" * 1000)
        assert acknowledged > 500
        assert client.get("note:0") == b"x" * 1000
        shop.execute("COMMIT")
        for _ in range(1000):
            if all(s["waiting"] == 0 for s in json.loads(client.execute_command("LARDER.JOURNAL"))["sources"]):
                break
            time.sleep(0.02)
        assert shop.execute("SELECT count(*) FROM note").fetchone() == (acknowledged,)
        for i in range(200):  # there is room again
            client.set(f"note:{i}", "y")
    finally:
        node.terminate()
        node.wait(60)
    assert shop.execute("SELECT count(*) FROM note WHERE text = 'y'").fetchone() == (200,)
