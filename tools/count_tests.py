#!/usr/bin/env python3
"""Sums the tests of a folder of results and prints `N passed, N failed, N skipped`.

GoogleTest programs leave NAME.xml, ctest leaves ctest.junit (one test a program), pytest leaves
clients.junit. A program that ended without a file of its own, or failed with no failed test in it,
counts as one failed test.
"""

import pathlib
import sys
import xml.etree.ElementTree as xml


def cases(file):
    """(name, outcome) of every test case of one file."""
    for case in xml.parse(file).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        states = {child.tag for child in case}
        if states & {"failure", "error"}:
            yield name, "failed"
        elif "skipped" in states or case.get("result") == "skipped":
            yield name, "skipped"
        else:
            yield name, "passed"


def outcomes_of(folder):
    yield from (case for file in sorted(folder.glob("clients.junit")) for case in cases(file))
    programs = folder / "ctest.junit"
    if not programs.exists():
        yield "ctest left no result", "failed"
        return
    for case, state in cases(programs):
        name = case.rsplit(".", 1)[1]
        own = folder / f"{name}.xml"
        try:
            results = list(cases(own))
        except (OSError, xml.ParseError):
            results = []
        if not results and state == "passed":
            yield name, "passed"  # not a GoogleTest program
        if state == "failed" and not any(outcome == "failed" for _, outcome in results):
            yield f"{name} (the program)", "failed"
        yield from results


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    count = {"passed": 0, "failed": 0, "skipped": 0}
    for name, outcome in outcomes_of(pathlib.Path(sys.argv[1])):
        count[outcome] += 1
        if outcome != "passed":
            print(f"{outcome}: {name}")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
