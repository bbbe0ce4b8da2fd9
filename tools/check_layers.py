#!/usr/bin/env python3
"""Refuses includes that break the layers.

  tools/check_layers.py              looks at src/, apps/ and include/
  tools/check_layers.py --self-test  shows that each rule refuses what it should

Three rules: a folder of src/ includes only folders that stand left of it (ALLOWED); only src/net
includes Asio or Beast; include/larder names no third-party header.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# base -> {wire, near, policy, resilience, crdt, obs} -> net -> {engine, source, feed, journal}
#      -> cache -> {config, server} -> apps. What stands beside a folder is named one by one.
LAYERS = [
    ["base"],
    ["wire", "near", "policy", "resilience", "crdt", "obs"],
    ["net"],
    ["engine", "source", "feed", "journal"],
    ["cache"],
    ["config", "server"],
    ["apps"],
]
BESIDE = {
    "near": {"policy"},  # entries carry freshness and tickets
    "feed": {"source", "engine"},  # a feed reads a source's log, or listens to a Redis
    "server": {"config"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
ASIO = re.compile(r"^boost/(asio|beast)(/|\.hpp)|^asio(/|\.hpp)")
# include/larder: the C and C++ standard libraries (names without slash or suffix), <x.h> of C.
STANDARD = re.compile(r"^[a-z_]+$|^(std[a-z]+|string|errno|limits|time)\.h$")


def allowed_folders():
    allowed = {}
    for i, layer in enumerate(LAYERS):
        below = {folder for left in LAYERS[:i] for folder in left}
        for folder in layer:
            allowed[folder] = below | {folder} | BESIDE.get(folder, set())
    return allowed


ALLOWED = allowed_folders()


def problems_of(path, text):
    """The broken rules of one file; `path` is relative to the root, with forward slashes."""
    parts = path.split("/")
    folder = parts[1] if parts[0] == "src" else parts[0]
    public = path.startswith("include/larder/")
    for number, line in enumerate(text.splitlines(), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quote, name = found.groups()
        if ASIO.match(name) and not path.startswith("src/net/"):
            yield f"{path}:{number}: only src/net includes Asio or Beast: {name}"
        if public:
            if not name.startswith("larder/") and not (quote == "<" and STANDARD.match(name)):
                yield f"{path}:{number}: the public API includes no third-party header: {name}"
            continue
        target = name.split("/")[0]
        if "/" not in name or target not in ALLOWED or quote == "<":
            continue
        if folder not in ALLOWED:
            yield f"{path}:{number}: src/{folder} is in no layer, see LAYERS"
        elif target not in ALLOWED[folder]:
            yield f"{path}:{number}: {folder} may not include {target}: {name}"


def check(root):
    files = [
        file
        for top in ("src", "apps", "include")
        for file in sorted((root / top).rglob("*"))
        if file.suffix in {".h", ".cc", ".hpp", ".cpp", ".c"}
    ]
    problems = []
    for file in files:
        problems += problems_of(file.relative_to(root).as_posix(), file.read_text())
    return files, problems


def self_test():
    refused = [
        ("src/base/a.h", '#include "cache/node.h"'),
        ("src/wire/a.cc", '#include "near/store.h"'),
        ("src/policy/a.cc", '  #  include "net/runtime.h"'),
        ("src/policy/a.h", '#include "near/store.h"'),
        ("src/engine/x/a.h", '#include "source/source.h"'),
        ("src/cache/a.cc", '#include "server/session.h"'),
        ("src/config/a.cc", '#include "server/session.h"'),
        ("src/server/a.cc", "#include <boost/asio.hpp>"),
        ("src/server/a.cc", "#include <boost/asio/ip/tcp.hpp>"),
        ("apps/larder/a.cc", "#include <boost/beast/http.hpp>"),
        ("src/odd/a.cc", '#include "base/error.h"'),
        ("include/larder/a.h", "#include <fmt/format.h>"),
        ("include/larder/a.h", '#include "base/error.h"'),
        ("include/larder/a.h", "#include <boost/json.hpp>"),
    ]
    accepted = [
        ("src/base/a.h", "#include <vector>"),
        ("src/near/a.h", '#include "policy/freshness.h"'),
        ("src/net/a.cc", "#include <boost/asio/ip/tcp.hpp>"),
        ("src/cache/a.cc", '#include "engine/engine.h"'),
        ("src/server/a.cc", '#include "config/config.h"'),
        ("apps/larder/a.cc", '#include "commands.h"'),
        ("apps/larder/a.cc", '#include "server/instance.h"'),
        ("include/larder/a.h", "#include <stddef.h>"),
        ("include/larder/a.h", "#include <string_view>"),
        ("include/larder/a.h", '#include "larder/cache.h"'),
    ]
    wrong = [case for case in refused if not list(problems_of(*case))]
    wrong += [case for case in accepted if list(problems_of(*case))]
    for path, line in wrong:
        print(f"self-test: {path}: {line}: wrongly judged", file=sys.stderr)
    print(f"self-test: {len(refused) + len(accepted)} includes judged, {len(wrong)} wrongly")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    files, problems = check(ROOT)
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    print(f"layers: {len(files)} files, {len(problems)} broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
