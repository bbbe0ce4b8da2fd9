#!/usr/bin/env python3
"""The near tier beside other in-process caches: operations a second, latency, bytes an entry

One process a system, one after the other on the same cores, all asked for the same keys in the same
order (bench/near/workload.h). Keys are 14 bytes of text that each system hashes and compares by
itself, within the measured operation; nobody has expiry configured.

  get, zero copy   keys drawn uniformly, all are hits; reads the value's first word where it lies
  get, copying     the same, and copies the whole value
  get, Zipf        as zero copy, keys drawn by Zipf 0.99
  get or load      Zipf 0.99 over twice the keys that fit; a miss makes a value and fills it in
  insert           new keys into a full cache: each evicts

Operations a second: median of the repetitions. Percentiles: one of 7 operations between two
readings of the monotonic clock, what an empty pair takes subtracted. Bytes an entry: growth of
resident memory by a full cache (after evictions) less keys and values; of Java and Go what is live
after a collection. Maps without eviction are measured for hits alone.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "near"))
import chart  # noqa: E402
import peers  # noqa: E402
from nodes import busy_seconds  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPERATIONS = {
    "get_view": "get, zero copy",
    "get_copy": "get, copying",
    "get_zipf": "get, Zipf",
    "get_or_load": "get or load",
    "insert": "insert",
}
OF_THIS_PLACE = ("executable", "host_name", "library_build_type")
PERCENTILES = {"p50_ns": "p50", "p99_ns": "p99", "p999_ns": "p99.9"}


class Plan:
    """How much is measured."""

    def __init__(self, quick):
        self.quick = quick
        self.cases = [(100_000, 128)]  # entries, bytes of value
        if not quick:
            self.cases += [(1_000_000, 128), (100_000, 1024)]
        self.memory = (250_000 if quick else 1_000_000, 128)
        self.seconds = 0.08 if quick else 0.2
        self.jit_seconds = 0.6 if quick else 1.5
        self.repetitions = 3  # a round
        self.rounds = 1 if quick else 2
        self.threads = (1, 2)

    def rounds_of(self, entries):
        return self.rounds if entries <= 100_000 else 1  # filling takes most of the time

    def chunk_keys(self, entries):
        return 1 << (21 if entries > 100_000 else 19 if self.quick else 20)


class Bench:
    def __init__(self, options, commands, names):
        self.options, self.commands, self.names = options, commands, names
        self.plan = Plan(options.quick)
        self.records, self.failed, self.context = [], {}, {}
        self.others = 0.0  # the greatest share of a core that other programs used meanwhile
        self.cores = sorted(os.sched_getaffinity(0))

    def run(self, name, entries, value_bytes, threads, operations, sequences):
        if name in self.failed:
            return
        language = peers.SYSTEMS[name][1]
        seconds = self.plan.seconds
        command = [*self.commands[language], f"--system={name}", f"--operations={operations}"]
        command += [f"--entries={entries}", f"--value_bytes={value_bytes}", f"--threads={threads}"]
        command += [f"--seconds={seconds}", f"--repetitions={self.plan.repetitions}"]
        command += [f"--sequences={sequences}"]
        if language == "cc":
            command += ["--benchmark_format=json"]
        else:
            warm = self.plan.jit_seconds if language == "java" else seconds
            command += [f"--warm_seconds={warm}"]
        env = dict(os.environ)
        if self.options.huge_pages and language == "java":
            command.insert(1, "-XX:+UseTransparentHugePages")
        elif self.options.huge_pages:
            env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        cores = self.cores[:threads]
        before, own, started = busy_seconds(), children_seconds(), time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=env, timeout=600, check=False,
                stdin=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            self.collect(name, language, threads, done)
        except subprocess.TimeoutExpired:
            self.failed[name] = "it did not end within 10 minutes"
        wall = time.monotonic() - started
        others = busy_seconds() - before - (children_seconds() - own)
        self.others = max(self.others, others / wall)
        label = f"{entries:,} x {value_bytes}, {threads} thread{'s' * (threads > 1)}"
        print(f"{label}: {name} in {wall:.1f} s", file=sys.stderr)

    def collect(self, name, language, threads, done):
        if done.returncode != 0:
            self.failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return
        if language == "cc":
            answer = json.loads(done.stdout)
            self.context = {k: v for k, v in answer["context"].items() if k not in OF_THIS_PLACE}
            found = [r for r in answer["benchmarks"] if r["run_type"] == "iteration"]
        else:
            found = [json.loads(line) for line in done.stdout.splitlines()]
        for record in found:
            if record.get("error_occurred"):
                self.failed[name] = record["error_message"]
                return
            operation, system, entries, value_bytes = record["name"].split("/")[:4]
            record |= {"operation": operation, "system": system, "threads": threads}
            record |= {"entries": int(entries), "value_bytes": int(value_bytes)}
            self.records.append(record)

    def write_sequences(self, folder, entries):
        command = [*self.commands["cc"], f"--write_sequences={folder}", f"--entries={entries}"]
        command += [f"--chunks={self.plan.repetitions + 1}"]
        command += [f"--chunk_keys={self.plan.chunk_keys(entries)}"]
        subprocess.run(command, check=True)

    def run_all(self, folder):
        threads = [t for t in self.plan.threads if t <= len(self.cores)]
        for entries in sorted({entries for entries, _ in self.plan.cases}):
            self.write_sequences(folder, entries)
        for round_ in range(self.plan.rounds):
            order = self.names if round_ % 2 == 0 else self.names[::-1]
            for entries, value_bytes in self.plan.cases:
                if round_ >= self.plan.rounds_of(entries):
                    continue
                for count in threads:
                    for name in order:
                        self.run(name, entries, value_bytes, count, ",".join(OPERATIONS), folder)
        for name in self.names:
            self.run(name, *self.plan.memory, 1, "memory", folder)


def children_seconds():
    times = os.times()
    return times.children_user + times.children_system


class Results:
    """Medians over repetitions and rounds."""

    def __init__(self, records):
        self.samples = {}
        for record in records:
            case = (record["entries"], record["value_bytes"], record["threads"])
            for field, value in record.items():
                if isinstance(value, (int, float)):
                    key = (record["operation"], record["system"], *case, field)
                    self.samples.setdefault(key, []).append(value)

    def get(self, operation, system, case, field="items_per_second"):
        values = self.samples.get((operation, system, *case, field))
        return statistics.median(values) if values else None

    def cases(self):
        return sorted({key[2:5] for key in self.samples if key[0] != "memory"})

    def memory_case(self):
        return next((key[2:5] for key in self.samples if key[0] == "memory"), (0, 0, 1))


def label_of(name, versions):
    version = versions.get(name)
    return f"{peers.SYSTEMS[name][0]} {version}" if version else peers.SYSTEMS[name][0]


def case_text(case):
    entries, value_bytes, threads = case
    return f"{entries:,} entries of {value_bytes} B, {threads} thread{'s' * (threads > 1)}"


def print_operations(results, names, labels, case):
    print(f"\n{case_text(case)}: million operations a second (Larder's by theirs)")
    print(f"{'':37}" + "".join(f"{title:>18}" for title in OPERATIONS.values()))
    for name in names:
        line = f"{labels[name]:37}"
        for operation in OPERATIONS:
            value = results.get(operation, name, case)
            ours = results.get(operation, "larder", case)
            if value is None:
                line += f"{'-':>18}"
            elif name == "larder" or ours is None:
                line += f"{value / 1e6:10.2f}{'':8}"
            else:
                line += f"{value / 1e6:10.2f} {f'({ours / value:.2f}x)':7}"
        print(line.rstrip())


def print_latencies(results, names, labels, case):
    print(f"\n{case_text(case)}: nanoseconds, p50 / p99 / p99.9; share of hits in get or load")
    wanted = ("get_view", "get_zipf", "get_or_load", "insert")
    print(f"{'':37}" + "".join(f"{OPERATIONS[o]:>25}" for o in wanted) + f"{'hits':>9}")
    for name in names:
        line = f"{labels[name]:37}"
        for operation in wanted:
            values = [results.get(operation, name, case, field) for field in PERCENTILES]
            known = None not in values
            line += f"{' / '.join(f'{v:,.0f}' for v in values) if known else '-':>25}"
        hits = results.get("get_or_load", name, case, "hit_ratio")
        print(line + (f"{hits:9.4f}" if hits is not None else f"{'-':>9}"))


def print_memory(results, names, labels, live):
    case = results.memory_case()
    size = f"{case[0]:,} entries of {case[1]} B"
    print(f"\nBytes an entry beside key and value, {size}, cache full")
    for name in names:
        value = results.get("memory", name, case, "overhead_bytes")
        if value is None:
            continue
        note = " (live heap after a collection)" if name in live else ""
        own = results.get("memory", name, case, "own_overhead_bytes")
        if own is not None:
            note = f" (by its own count {own:.1f})"
        print(f"{labels[name]:37}{value:10.1f}{note}")


def print_scaling(results, names, labels):
    print("\nTwo threads by one: " + "; ".join(OPERATIONS.values()))
    for entries, value_bytes, threads in results.cases():
        if threads != 2:
            continue
        for name in names:
            ratios = []
            for operation in OPERATIONS:
                one, two = (
                    results.get(operation, name, (entries, value_bytes, t)) for t in (1, 2)
                )
                ratios.append(f"{two / one:.2f}" if one and two else "-")
            print(f"{labels[name]:37}{entries:>10,} x {value_bytes:<6}" + "  ".join(ratios))


def print_tables(results, names, labels, live):
    for case in results.cases():
        print_operations(results, names, labels, case)
    for case in results.cases():
        print_latencies(results, names, labels, case)
    print_scaling(results, names, labels)
    print_memory(results, names, labels, live)


def write_charts(folder, results, names, labels):
    folder.mkdir(parents=True, exist_ok=True)
    ours = labels.get("larder")
    sizes = sorted({case[:2] for case in results.cases()})
    for operation, title in OPERATIONS.items():
        for size in sizes:
            rows = []
            for name in names:
                values = [results.get(operation, name, (*size, t)) for t in (1, 2)]
                if any(values):
                    rows.append((labels[name], [v / 1e6 if v else None for v in values]))
            subtitle = f"{size[0]:,} entries of {size[1]} bytes, keys of 14 bytes; more is better"
            drawn = chart.bars(
                f"Near tier: {title}", subtitle, "million operations a second",
                ["1 thread", "2 threads"], rows, ours,
            )
            file = f"near-{operation.replace('_', '-')}-{size[0]}-{size[1]}.svg"
            (folder / file).write_text(drawn)
    for operation in ("get_view", "get_or_load", "insert"):
        for size in sizes:
            rows = []
            for name in names:
                values = [results.get(operation, name, (*size, 1), f) for f in PERCENTILES]
                if None not in values:
                    rows.append((labels[name], values))
            subtitle = f"{size[0]:,} entries of {size[1]} bytes, 1 thread; less is better"
            drawn = chart.bars(
                f"Near tier: {OPERATIONS[operation]}, single operations", subtitle,
                "nanoseconds, logarithmic", list(PERCENTILES.values()), rows, ours, True,
            )
            file = f"near-latency-{operation.replace('_', '-')}-{size[0]}-{size[1]}.svg"
            (folder / file).write_text(drawn)
    rows, case = [], results.memory_case()
    for name in names:
        value = results.get("memory", name, case, "overhead_bytes")
        if value is not None:
            rows.append((labels[name], [value]))
    subtitle = f"full cache, {case[0]:,} entries of {case[1]} bytes; less is better"
    title, unit = "Near tier: memory beside key and value", "bytes an entry"
    drawn = chart.bars(title, subtitle, unit, ["overhead"], rows, ours)
    (folder / "near-memory.svg").write_text(drawn)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 x 128 B only; two minutes")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="all repetitions")
    parser.add_argument("--svg", metavar="FOLDER", type=pathlib.Path, help="charts")
    parser.add_argument("--only", help=f"some of {','.join(peers.SYSTEMS)}")
    parser.add_argument("--huge-pages", action="store_true", help="for malloc and the Java heap")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    options = parser.parse_args()
    options.names = options.only.split(",") if options.only else list(peers.SYSTEMS)
    unknown = [name for name in options.names if name not in peers.SYSTEMS]
    if unknown:
        parser.error(f"no system {', '.join(unknown)}; there are {', '.join(peers.SYSTEMS)}")
    return options


def main():
    options = parse_options()
    build = options.build.resolve()
    print("building the drivers", file=sys.stderr)
    commands, skipped = peers.build_all(build, options.names)
    names = [name for name in peers.SYSTEMS if name in options.names and name not in skipped]
    bench = Bench(options, commands, names)
    with tempfile.TemporaryDirectory(prefix="larder-near-") as folder:
        try:
            bench.run_all(folder)
        except KeyboardInterrupt:
            print("stopped: here is what there is", file=sys.stderr)
    versions = peers.versions(build)
    labels = {name: label_of(name, versions) for name in names}
    results = Results(bench.records)
    live = {r["system"] for r in bench.records if r.get("live_heap")}
    report = {"context": bench.context, "versions": versions, "skipped": skipped}
    report |= {"failed": bench.failed, "others_share_of_core": round(bench.others, 3)}
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    report |= {"peak_resident_mib": peak_kib // 1024, "quick": options.quick}
    report["huge_pages"] = options.huge_pages
    report["benchmarks"] = bench.records
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        print_tables(results, names, labels, live)
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.svg:
        write_charts(options.svg, results, names, labels)
    out = sys.stderr if options.json == "-" else sys.stdout
    print(f"\nOther programs used up to {bench.others:.0%} of a core meanwhile.", file=out)
    for name, why in skipped.items():
        print(f"left out: {peers.SYSTEMS[name][0]}: {why}", file=out)
    for name, why in bench.failed.items():
        print(f"FAILED: {peers.SYSTEMS[name][0]}: {why}", file=out)
    if bench.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
