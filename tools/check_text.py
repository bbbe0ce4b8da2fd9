#!/usr/bin/env python3
"""Refuses text that does not belong into a repository.

  tools/check_text.py              looks at every tracked file
  tools/check_text.py --self-test  shows that each rule refuses what it should

Refused: absolute paths of one machine (home and work folders everywhere, temporary folders in the
docs), hosts of package registries, merge markers, C++ lines of more than 100 columns.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
CPP = {".h", ".cc", ".hpp", ".cpp", ".c"}
DOCS = {".md", ".txt"}
MAX_COLUMNS = 100

# An absolute path starts where no name, drive or URL comes before its slash.
START = r"(?<![\w./:$}~*-])"
MACHINE_PATH = re.compile(START + r"/(work|root|mnt|Users|workspaces?|builds?|home/(?!USER\b)\w+)/\w")
TEMPORARY_PATH = re.compile(START + r"/(var/)?tmp/\w")
# Written in two halves: this file is tracked too.
REGISTRY = re.compile(
    "|".join(
        re.escape(a + b)
        for a, b in [
            ("registry.npm", "js.org"),
            ("registry.yarn", "pkg.com"),
            ("files.python", "hosted.org"),
            ("pypi.", "org/simple"),
            ("repo.maven.", "apache.org"),
            ("repo1.maven", ".org"),
            ("proxy.", "golang.org"),
            ("sum.", "golang.org"),
            ("deb.debian", ".org"),
            ("static.crates", ".io"),
            ("arti", "factory"),
        ]
    ),
    re.IGNORECASE,
)
RAW_STRING = re.compile(r'R"(\w*)\(')
MERGE = re.compile(r"^(<{7} |>{7} |={7}$)")


def problems_of(path, text):
    """The broken rules of one file; `path` is relative to the root, with forward slashes."""
    suffix = pathlib.PurePosixPath(path).suffix
    raw_end = None  # of a raw string literal, whose lines are data and as long as they are
    for number, line in enumerate(text.split("\n"), 1):
        in_raw = raw_end is not None
        if in_raw and raw_end in line:
            raw_end = None
        opened = RAW_STRING.search(line)
        if raw_end is None and opened and f'){opened.group(1)}"' not in line[opened.end():]:
            raw_end = f'){opened.group(1)}"'
        where = f"{path}:{number}"
        if MACHINE_PATH.search(line):
            yield f"{where}: a path of one machine: {MACHINE_PATH.search(line).group().strip()}"
        if suffix in DOCS and TEMPORARY_PATH.search(line):
            yield f"{where}: a temporary path in a document"
        if REGISTRY.search(line):
            yield f"{where}: the host of a registry: {REGISTRY.search(line).group()}"
        if MERGE.match(line):
            yield f"{where}: a merge marker"
        if suffix in CPP and len(line) > MAX_COLUMNS and not in_raw:
            yield f"{where}: {len(line)} columns, at most {MAX_COLUMNS}"


def tracked_files():
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [name for name in listed.split("\0") if name]


def self_test():
    slash = "/"
    refused = [
        ("a.md", f"see {slash}work/main/a.h"),
        ("a.cc", f'open("{slash}home/ann/a")'),
        ("a.md", f"written to {slash}tmp/x.log"),
        ("package-lock.json", '"resolved": "https://registry.npm' + 'js.org/a"'),
        ("a.cc", "x" * 101),
        ("a.py", "<" * 7 + " HEAD"),
    ]
    accepted = [
        ("a.md", "framework/main, https://example.com/work/x, ./tmp/x, build/work/y"),
        ("a.cc", "x" * 100),
        ("a.md", "x" * 200),
        ("a_test.cc", f'TempDir dir("{slash}tmp/x")'),
    ]
    wrong = [case for case in refused if not list(problems_of(*case))]
    wrong += [case for case in accepted if list(problems_of(*case))]
    for path, line in wrong:
        print(f"self-test: {path}: {line}: wrongly judged", file=sys.stderr)
    print(f"self-test: {len(refused) + len(accepted)} lines judged, {len(wrong)} wrongly")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    problems, looked_at = [], 0
    for name in tracked_files():
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture, or deleted in the work tree
        looked_at += 1
        problems += problems_of(name, text)
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    print(f"text: {looked_at} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
