#!/usr/bin/env python3
"""Four nodes on Redis over PostgreSQL in a storm of faults: is any answer older than it may be?

Readers on every node check each answer against what was acknowledged before they asked: nothing may
be older than the bound (500 ms). One writer writes through the nodes, one by SQL past them. Meanwhile,
at random: the feed's connection is killed, the database crashes and comes back, the engine is flushed,
killed, paused, loses its scripts and connections, a node is cut off, a transaction stays open.

Then the same without one of the rules each, which the checker must notice; and the races by
themselves: a commit that is in the log but not visible, a change between a load and its fill.

It is tests/integration/consistency_test.cc, for longer than in the test suite.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build/tests/integration_consistency_test"


def build(jobs):
    for command in (["cmake", "--preset", "release"], ["ninja", "-C", "build", "-j", jobs, PROGRAM.name]):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}\ncannot build {PROGRAM.name}")


def run(title, tests, seconds, seed, *more):
    print(f"== {title}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [PROGRAM, f"--gtest_filter={tests}", f"--gtest_random_seed={seed}", *more],
        env=dict(os.environ, LARDER_CONSISTENCY_SECONDS=str(seconds)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = ("faults:", "fills refused", "caught:", "[  FAILED", "[  SKIPPED", "[       OK")
    for line in done.stdout.splitlines():
        if line.startswith(shown) or " reads: " in line or "Failure" in line or "answered version" in line:
            print(f"   {line.strip()}")
    print(f"   {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench consistency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1, metavar="N", help="how long the storm takes (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; 0: another one each time")
    parser.add_argument("--no-controls", action="store_true", help="leave out the runs without a rule")
    options = parser.parse_args()
    seed = options.seed or int(time.time()) % 99999 + 1
    build(os.environ.get("JOBS", str(os.cpu_count())))
    seconds = max(1, int(options.minutes * 60))
    good = run(f"storm, {seconds} s, seed {seed}", "Storm.*", seconds, seed)
    good &= run("races", "Logged.*:OnPostgres.*", seconds, seed)
    if not options.no_controls:
        good &= run(
            "a rule less each: must be caught", "*StormWithout*", seconds, seed, "--gtest_also_run_disabled_tests"
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
