"""Installs the pinned clients below build/clients/, once: a stamp remembers what was installed.

Each function returns what is needed to run a client, or raises Missing with the reason.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "clients"
DEBIAN_PYTHON = "/usr/bin/python3"
NEWEST_REDIS_PY = "redis==8.1.0"


class Missing(Exception):
    """A runtime is not on this machine, or a client could not be installed."""


def need(program):
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is not installed")
    return path


def _install(name, inputs, commands, result):
    """Runs the commands unless the stamp says that these very inputs were installed."""
    folder = BUILD / name
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(part if isinstance(part, bytes) else part.read_bytes())
    stamp, log = folder / "stamp", BUILD / f"{name}.log"
    wanted = digest.hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and result.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    print(f"installing {name} below {folder}", file=sys.stderr)
    with log.open("w") as out:
        for command in commands:
            done = subprocess.run(
                command, cwd=folder, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=600
            )
            if done.returncode != 0:
                raise Missing(f"{name} could not be installed, see {log}")
    stamp.write_text(wanted)


def redis_py_debian():
    check = subprocess.run([DEBIAN_PYTHON, "-c", "import redis"], stderr=subprocess.DEVNULL)
    if check.returncode != 0:
        raise Missing("python3-redis is not installed")
    return DEBIAN_PYTHON


def redis_py_newest():
    folder = BUILD / "redis-py"
    python = folder / "bin" / "python"
    base = DEBIAN_PYTHON if os.path.exists(DEBIAN_PYTHON) else need("python3")
    commands = [
        [base, "-m", "venv", "."],
        ["bin/pip", "install", "--quiet", "--disable-pip-version-check", NEWEST_REDIS_PY],
    ]
    _install("redis-py", [NEWEST_REDIS_PY.encode()], commands, python)
    return str(python)


def node_modules(major):
    """The folder for NODE_PATH; `major` is the least version of Node that the client takes."""
    version = subprocess.check_output([need("node"), "--version"], text=True).lstrip("v")
    if int(version.split(".")[0]) < major:
        raise Missing(f"it takes Node {major}, this is {version.strip()}")
    package, lock = HERE / "node" / "package.json", HERE / "node" / "package-lock.json"
    modules = BUILD / "node" / "node_modules"
    commands = [
        ["cp", str(package), str(lock), "."],
        [need("npm"), "ci", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"],
    ]
    _install("node", [package, lock], commands, modules)
    return str(modules)


def go_client():
    source = HERE / "go"
    client = BUILD / "go" / "client"
    inputs = [source / "main.go", source / "go.mod", source / "go.sum"]
    # Debian's Go 1.19 has no -C, hence the copy.
    commands = [
        ["cp", *map(str, inputs), "."],
        [need("go"), "build", "-o", str(client), "."],
    ]
    _install("go", inputs, commands, client)
    return str(client)


def java_classpath():
    need("java")
    pom = HERE / "java" / "pom.xml"
    sources = sorted((HERE / "java" / "src").rglob("*.java"))
    classes = BUILD / "java" / "classes"
    _install(
        "java",
        [pom, *sources],
        [[need("mvn"), "-B", "-q", "-f", str(pom), "process-classes"]],
        classes,
    )
    return f"{classes}:{BUILD / 'java' / 'lib'}/*"
