"""Write-behind under `kill -9`: what was acknowledged is in the database, once (bench/kill.py)."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import LARDER, ROOT


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
    result = kill("--times", "100", "--database", "postgres")
    assert result["wrong"] == []
    assert result["acknowledged"] > 1000
    assert sum(result["killed"].values()) == 100


def test_the_power_goes():
    if not preloads():
        pytest.skip("a program with AddressSanitizer is not preloaded into")
    result = kill("--times", "40", "--database", "sqlite", "--power")
    assert result["wrong"] == []
    assert result["bytes_taken_away"] > 0, "nothing was lost: not tested"


def test_without_fsync_something_is_missing():
    if not preloads():
        pytest.skip("a program with AddressSanitizer is not preloaded into")
    assert kill("--times", "10", "--database", "sqlite", "--power", "--lies")["wrong"]


def preloads():
    return shutil.which("clang-19") and b"__asan_init" not in LARDER.read_bytes()
