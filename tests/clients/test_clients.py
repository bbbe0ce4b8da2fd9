"""Every client that people have, with its defaults, against one node."""

import os
import pathlib
import subprocess

import pytest
import toolchain

HERE = pathlib.Path(__file__).resolve().parent


def redis_cli():
    toolchain.need("redis-cli")
    return [HERE / "redis_cli.sh"], {}


def redis_py_debian():
    return [toolchain.redis_py_debian(), HERE / "redis_py.py"], {}


def redis_py_newest():
    return [toolchain.redis_py_newest(), HERE / "redis_py.py"], {}


def node_client(script, variable, package, least):
    def command():
        modules = toolchain.node_modules(least)
        environment = {"NODE_PATH": modules, variable: package}
        return [toolchain.need("node"), HERE / "node" / script], environment

    return command


def go_redis():
    return [toolchain.go_client()], {}


def java_client(main):
    def command():
        classpath = toolchain.java_classpath()
        return [toolchain.need("java"), "-cp", classpath, main], {}

    return command


CLIENTS = {
    "redis-cli": redis_cli,
    "redis-py (Debian)": redis_py_debian,
    "redis-py (newest)": redis_py_newest,
    "ioredis 5": node_client("ioredis.js", "IOREDIS", "ioredis-5", 18),
    "ioredis 6": node_client("ioredis.js", "IOREDIS", "ioredis-6", 20),
    "node-redis 5": node_client("node_redis.js", "NODE_REDIS", "redis-5", 18),
    "node-redis 6": node_client("node_redis.js", "NODE_REDIS", "redis-6", 20),
    "go-redis": go_redis,
    "jedis": java_client("JedisClient"),
    "lettuce": java_client("LettuceClient"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_client(node, name):
    try:
        command, environment = CLIENTS[name]()
    except toolchain.Missing as missing:
        # A machine of CI has everything, except a Node that its distribution does not have.
        if os.environ.get("CI") == "true" and "it takes Node" not in str(missing):
            pytest.fail(f"{name}: {missing}")
        pytest.skip(f"{name}: {missing}")
    before = node.price()
    done = subprocess.run(
        command,
        env={**node.environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"
    assert "ok: " in done.stdout
    # What the client wrote through the cache is in the database.
    assert node.price() > before
