#!/usr/bin/env python3
"""clang-tidy over all sources, or those given; a file that has not changed is not read again.

A clean file leaves a stamp below BUILD/tidy, named by the hash of everything that its verdict rests
on: its text, that of the project's headers which it reaches, .clang-tidy, the compiler's flags and
clang-tidy's version. A header that is given is checked through the sources that include it.
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIDY = "clang-tidy-19"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
# The analyzer walks paths through GoogleTest's macros for a minute a file and finds nothing there.
FOR_TESTS = ["--checks=-clang-analyzer-*"]
# A fraction of its usual bound on the paths through one function: with a quarter the findings were
# the same in a third of the time, and this takes 40 % less again.
ANALYZER = ["-Xclang", "-analyzer-config", "-Xclang", "max-nodes=8000"]
FOR_SOURCES = [f"--extra-arg={word}" for word in ANALYZER]
SEARCH = [ROOT / "src", ROOT / "include", ROOT]


class Includes:
    """Which headers of the project a file reaches."""

    def __init__(self):
        self.direct_ = {}

    def direct(self, file):
        if file not in self.direct_:
            found = []
            for name in INCLUDE.findall(file.read_text()):
                for folder in [file.parent, *SEARCH]:
                    if (folder / name).is_file():
                        found.append((folder / name).resolve())
                        break
            self.direct_[file] = found
        return self.direct_[file]

    def all(self, file):
        seen, open_ = set(), [file]
        while open_:
            for header in self.direct(open_.pop()):
                if header not in seen:
                    seen.add(header)
                    open_.append(header)
        return seen


def compile_commands(build):
    path = build / "compile_commands.json"
    wanted = {}
    for entry in json.loads(path.read_text()):
        file = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if not file.is_file() or file.is_relative_to(build.resolve()):
            continue
        if file.is_relative_to(ROOT):
            wanted[file] = entry.get("command") or shlex.join(entry["arguments"])
    return wanted


def is_test(file):
    return file.stem.endswith("_test") or file.relative_to(ROOT).parts[0] == "tests"


def options_of(file):
    return FOR_TESTS if is_test(file) else FOR_SOURCES


def stamp_name(file, command, includes, common):
    digest = hashlib.sha256(common)
    digest.update(shlex.join([command, *options_of(file)]).encode())
    for part in [file, *sorted(includes.all(file))]:
        digest.update(str(part.relative_to(ROOT)).encode())
        digest.update(part.read_bytes())
    return digest.hexdigest()


def tidy(file, build):
    started = time.monotonic()
    done = subprocess.run(
        [TIDY, "-p", str(build), "--quiet", *options_of(file), str(file)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode == 0, done.stdout + done.stderr, time.monotonic() - started


def select(commands, given, includes):
    """The sources to look at: all that ship, those given, and those which include a given header.

    Tests only when they are given: the sanitizers run them, and reading them takes as long as
    reading everything else.
    """
    if not given:
        return sorted(f for f in commands if not is_test(f))
    asked = {pathlib.Path(name).resolve() for name in given}
    return sorted(f for f in commands if f in asked or asked & includes.all(f))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--times", action="store_true", help="print the slowest files")
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()

    stamps = options.build / "tidy"
    stamps.mkdir(parents=True, exist_ok=True)
    includes, commands = Includes(), compile_commands(options.build)
    version = subprocess.check_output([TIDY, "--version"])
    common = version + (ROOT / ".clang-tidy").read_bytes() + (ROOT / "cmake/pch.h").read_bytes()

    work, known = {}, 0
    for file in select(commands, options.files, includes):
        stamp = stamps / stamp_name(file, commands[file], includes, common)
        if stamp.exists():
            stamp.touch()
            known += 1
        else:
            work[file] = stamp
    bad, times = [], []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(tidy, file, options.build): file for file in work}
        for future in concurrent.futures.as_completed(running):
            file = running[future]
            clean, text, seconds = future.result()
            times.append((seconds, file))
            if clean:
                work[file].touch()
            else:
                bad.append(file)
                print(text, flush=True)
    if options.times:
        for seconds, file in sorted(times, reverse=True)[:15]:
            print(f"{seconds:6.1f} s {file.relative_to(ROOT)}")
    month = time.time() - 30 * 86400
    for old in stamps.iterdir():
        if old.stat().st_mtime < month:
            old.unlink()
    print(f"clang-tidy: {len(work)} files read, {known} known to be clean, {len(bad)} with findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
