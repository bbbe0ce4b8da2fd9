"""Builds what bench/near.py runs, below BUILD/peers; what cannot be built is left out by name."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BOOST_HEADER = pathlib.Path("boost/unordered/concurrent_flat_map.hpp")

# name -> (what people call it, the language of its driver), in the order of tables and charts
SYSTEMS = {
    "larder": ("Larder", "cc"),
    "boost_flat_map": ("Boost concurrent_flat_map", "cc"),
    "tbb_hash_map": ("oneTBB concurrent_hash_map", "cc"),
    "rocksdb_hyperclock": ("RocksDB HyperClockCache", "cc"),
    "rocksdb_lru": ("RocksDB LRUCache", "cc"),
    "quick_cache": ("quick_cache (Rust)", "rust"),
    "moka": ("moka (Rust)", "rust"),
    "caffeine": ("Caffeine (Java)", "java"),
    "otter": ("otter (Go)", "go"),
    "mutex_lru": ("map, list and mutex", "cc"),
}

# What brings a C++ peer that near_bench was built without.
INSTALL = {
    "boost_flat_map": "Boost 1.83 or later: bookworm-backports has its headers, see boost.log",
    "tbb_hash_map": "install libtbb-dev",
    "rocksdb_hyperclock": "install librocksdb-dev",
    "rocksdb_lru": "install librocksdb-dev",
}


class Missing(Exception):
    """A runtime is not there, or a driver could not be built."""


def need(program, hint):
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is not there: {hint}")
    return path


def run(commands, log, cwd=None):
    with log.open("w") as out:
        for command in commands:
            done = subprocess.run(
                command, cwd=cwd, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False
            )
            if done.returncode != 0:
                raise Missing(f"'{pathlib.Path(command[0]).name}' failed, see {log}")


def once(folder, inputs, result, make):
    """Calls make() unless the stamp says that these very inputs were built."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    stamp = folder / "stamp"
    if not (result.exists() and stamp.exists() and stamp.read_text() == digest):
        folder.mkdir(parents=True, exist_ok=True)
        make()
        stamp.write_text(digest)


def fetch_boost(folder):
    """Headers of a newer Boost than Debian 12's, unpacked beside the build and not installed.

    They come from bookworm-backports, of the archive that this machine's apt already uses.
    """
    headers = folder / "boost" / "usr" / "include"
    for include in (headers, pathlib.Path("/usr/include"), pathlib.Path("/usr/local/include")):
        if (include / BOOST_HEADER).exists():
            return
    apt, keys = folder / "apt", "/usr/share/keyrings/debian-archive-keyring.gpg"
    get = need("apt-get", INSTALL["boost_flat_map"])
    form = "$(LABEL) $(CODENAME) $(COMPONENT) $(REPO_URI)"
    known = subprocess.run(
        [get, "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout
    archive = re.search(r"^Debian bookworm main (\S+)$", known, re.MULTILINE)
    if archive is None:
        raise Missing("apt knows no archive of Debian 12")
    for part in ("lists/partial", "cache/archives/partial", "etc"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    sources = apt / "etc" / "sources.list"
    sources.write_text(f"deb [signed-by={keys}] {archive[1]} bookworm-backports main\n")
    places = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
    }
    options = [word for name, value in places.items() for word in ("-o", f"{name}={value}")]
    log = folder / "boost.log"
    commands = [[get, *options, "-qq", "update"]]
    commands += [[get, *options, "-qq", "download", "libboost1.83-dev"]]
    run(commands, log, cwd=apt)
    package = next(apt.glob("libboost1.83-dev_*.deb"))
    run([["dpkg-deb", "-x", str(package), str(folder / "boost")]], log)
    shutil.rmtree(apt)


def build_cc(build, jobs):
    """The program, and which systems it was built with."""
    folder = build / "peers"
    skipped = {}
    try:
        fetch_boost(folder)
    except Missing as reason:
        skipped["boost_flat_map"] = str(reason)
    log = folder / "near_bench.log"
    commands = [["cmake", "--preset", "bench", "-B", str(build)]]
    commands += [["ninja", "-C", str(build), "-j", str(jobs), "near_bench"]]
    try:
        run(commands, log, cwd=ROOT)
    except Missing as failure:
        sys.exit(f"near: {failure}\n{log.read_text()[-2000:]}")
    program = build / "bench" / "near_bench"
    has = subprocess.run([program, "--systems"], capture_output=True, text=True, check=True)
    for name, (_, language) in SYSTEMS.items():
        if language == "cc" and name not in has.stdout.split():
            skipped.setdefault(name, INSTALL.get(name, "not built"))
    return [str(program)], skipped


def build_rust(folder):
    cargo = need("cargo", "install Rust 1.89 or later, for instance with rustup")
    source, folder = HERE / "rust", folder / "rust"
    program = folder / "release" / "near-bench"
    inputs = [source / "Cargo.toml", source / "Cargo.lock", *sorted((source / "src").glob("*.rs"))]
    build = [cargo, "build", "--release", "--locked", "--target-dir", str(folder)]
    build += ["--manifest-path", str(source / "Cargo.toml")]
    once(folder, inputs, program, lambda: run([build], folder.with_suffix(".log")))
    return [str(program)]


def build_go(folder):
    go = need("go", "install Go 1.24 or later (Debian 12 has 1.19)")
    source, folder = HERE / "go", folder / "go"
    program = folder / "near-bench"
    inputs = [source / "main.go", source / "go.mod", source / "go.sum"]
    build = [go, "build", "-mod=readonly", "-o", str(program), "."]
    once(folder, inputs, program, lambda: run([build], folder.with_suffix(".log"), cwd=source))
    return [str(program)]


def build_java(folder):
    java = need("java", "install default-jdk-headless")
    maven = need("mvn", "install maven")
    source, folder = HERE / "java", folder / "java"
    inputs = [source / "pom.xml", *sorted((source / "src").rglob("*.java"))]
    build = [maven, "-B", "-q", "-f", str(source / "pom.xml"), f"-Dlarder.build={folder}"]
    build += ["process-classes"]
    once(folder, inputs, folder / "classes", lambda: run([build], folder.with_suffix(".log")))
    # The server's usual collector, also where a single core would choose another one.
    flags = ["-XX:+UseG1GC", "-Xms3g", "-Xmx3g"]
    return [java, *flags, "-cp", f"{folder / 'classes'}:{folder / 'lib'}/*", "NearBench"]


def build_all(build, only):
    """({language: command}, {system: why it is left out}); builds no more than `only` needs."""
    folder = build / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("JOBS", str(os.cpu_count()))
    program, skipped = build_cc(build, jobs)
    commands = {"cc": program}
    for language, make in (("rust", build_rust), ("java", build_java), ("go", build_go)):
        names = [n for n in only if SYSTEMS[n][1] == language]
        if not names:
            continue
        try:
            commands[language] = make(folder)
        except Missing as reason:
            skipped |= {name: str(reason) for name in names}
    return commands, {name: why for name, why in skipped.items() if name in only}


def versions(build):
    """What was measured, as far as it is known."""
    found = {}
    boost = [build / "peers" / "boost" / "usr" / "include", pathlib.Path("/usr/include")]
    for include in boost:
        if (include / BOOST_HEADER).exists():
            text = (include / "boost" / "version.hpp").read_text()
            number = int(re.search(r"#define BOOST_VERSION (\d+)", text)[1])
            found["boost_flat_map"] = f"{number // 100000}.{number // 100 % 1000}"
            break
    packages = {"tbb_hash_map": "libtbb-dev", "rocksdb_lru": "librocksdb-dev"}
    if shutil.which("dpkg-query"):
        for name, package in packages.items():
            query = ["dpkg-query", "-W", "-f", "${Version}", package]
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name] = done.stdout.split("-")[0]
    if "rocksdb_lru" in found:
        found["rocksdb_hyperclock"] = found["rocksdb_lru"]
    patterns = {
        "moka": ("rust/Cargo.toml", r'moka = .*?"=([\d.]+)"'),
        "quick_cache": ("rust/Cargo.toml", r'quick_cache = "=([\d.]+)"'),
        "otter": ("go/go.mod", r"otter/v2 v([\d.]+)"),
        "caffeine": ("java/pom.xml", r"caffeine</artifactId>\s*<version>([\d.]+)"),
    }
    for name, (file, pattern) in patterns.items():
        match = re.search(pattern, (HERE / file).read_text())
        if match:
            found[name] = match[1]
    return found
