#!/usr/bin/env python3
"""Miss ratios of Larder's eviction policy on recorded traces, beside other policies

Runs `larder bench trace` over the traces of a folder: what Larder ships (its policy with the
controller, and with fixed parameters), known policies, and a bound that nothing can beat. A miss of
an object counts as one, whatever its size. Targets are those of the design; figures of another
simulator stand beside ours where the folder's README.md has them.
"""

import argparse
import concurrent.futures
import html
import json
import math
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "traces"
SUFFIX = ".trace.zst"

OURS = ["larder", "larder-fixed"]
OTHERS = ["fifo", "lru", "sieve", "s3-fifo", "w-tinylfu", "gdsf"]

# trace -> (unit, capacities): 0.1, 1, 5, 10 and 30 % of the objects or bytes, where it makes sense
CELLS = {
    "arc_OLTP": ("entries", [186, 1_868, 9_344, 18_688, 56_064]),
    "c2k_orm-busy": ("entries", [76, 763, 3_817, 7_634, 22_904]),
    "c2k_web12": ("entries", [137, 687, 1_375, 4_126]),
    "scarab_recs": ("entries", [258, 2_583, 12_918, 25_836, 77_510]),
    "mooncake_conv": ("entries", [1_827, 9_139, 18_279, 54_837]),
    "metakv_syn": ("bytes", [173_619, 1_736_191, 8_680_956, 17_361_912, 52_085_738]),
    "adaptsize_req": ("bytes", [304_213, 3_042_135, 15_210_678, 30_421_357, 91_264_072]),
}

# To be reached, to three digits.
TARGETS = {
    ("arc_OLTP", 1_868): 0.535,
    ("c2k_orm-busy", 7_634): 0.108,
    ("scarab_recs", 25_836): 0.373,
    ("metakv_syn", 1_736_191): 0.320,
    ("metakv_syn", 17_361_912): 0.170,
    ("adaptsize_req", 3_042_135): 0.715,
}


def bound_of(unit):
    return "opt" if unit == "entries" else "pfoo-l"


def measure(larder, folder, cell):
    trace, unit, capacity = cell
    policies = [*OURS, *OTHERS, bound_of(unit)]
    command = [larder, "bench", "trace", folder / (trace + SUFFIX), "--capacity", capacity]
    command += ["--unit", unit, "--policy", ",".join(policies), "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip() or f"{command[0]} failed with exit code {done.returncode}")
    ratios = {row["policy"]: row["miss_ratio"] for row in map(json.loads, done.stdout.splitlines())}
    return {"trace": trace, "unit": unit, "capacity": capacity, "miss_ratio": ratios}


def references(folder):
    """(trace, capacity) -> (fixed, with controller), from the table in the folder's README.md."""
    found = {}
    names = []
    readme = folder / "README.md"
    for line in readme.read_text().splitlines() if readme.is_file() else []:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "trace, capacity":
            names = cells
        match = re.fullmatch(r"(\S+), ([\d,]+) (entries|bytes)", cells[0])
        if not match or len(cells) != len(names):
            continue
        row = dict(zip(names, cells))
        fixed = next((v for k, v in row.items() if k.startswith("small+ghost+size-aware")), "-")
        key = (match[1], int(match[2].replace(",", "")))
        figures = (fixed, row.get("with controller", "-"))
        found[key] = [float(figure) for figure in figures if figure != "-"]
    return found


def verdict(row):
    """Of a cell with a target: reached if it is not above it to three digits."""
    target = TARGETS.get((row["trace"], row["capacity"]))
    if target is None:
        return None
    return {"target": target, "reached": round(row["miss_ratio"]["larder"], 3) <= target}


def thousands(row):
    return f"{row['capacity']:,}" + (" B" if row["unit"] == "bytes" else "")


def table(rows):
    heads = ["trace", "capacity", "target", *OURS, "before", *OTHERS, "bound"]
    lines = []
    for row in rows:
        ratios = row["miss_ratio"]
        best = min(ratios[name] for name in OTHERS)
        target = row.get("target")
        mark = "" if target is None else f"{target:.3f} {'ok' if row['reached'] else 'MISSED'}"
        before = row["reference"]
        lines.append(
            [row["trace"], thousands(row), mark]
            + [f"{ratios[name]:.4f}" for name in OURS]
            + ["" if before is None else f"{before:.4f}"]
            + [f"{ratios[name]:.4f}{'*' if ratios[name] == best else ' '}" for name in OTHERS]
            + [f"{ratios[bound_of(row['unit'])]:.4f}"]
        )
    return heads, lines


def print_table(rows):
    heads, lines = table(rows)
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
    for number, line in enumerate([heads, *lines]):
        if number > 1 and line[0] != lines[number - 2][0]:
            print()
        cells = (text.ljust(w) if i in (0, 2) else text.rjust(w)
                 for i, (text, w) in enumerate(zip(line, widths)))
        print("  ".join(cells).rstrip())
    print()
    print(summary(rows))


def summary(rows):
    def beaten(name):
        return sum(
            row["miss_ratio"][name] <= min(row["miss_ratio"][o] for o in OTHERS) for row in rows
        )

    def against(name):
        """Mean change of misses against the best of the other policies, cell by cell."""
        logs = [
            math.log(row["miss_ratio"][name] / min(row["miss_ratio"][o] for o in OTHERS))
            for row in rows
        ]
        return math.expm1(sum(logs) / len(logs))

    reached = [row["reached"] for row in rows if "reached" in row]
    lines = [f"Targets reached: {sum(reached)} of {len(reached)}."] if reached else []
    for name in OURS:
        lines.append(
            f"{name}: no other is better in {beaten(name)} of {len(rows)} cells; misses against "
            f"the best of the others in each cell: {against(name):+.1%} on average."
        )
    lines.append("before: the better of the two figures for such a policy in the folder's README.")
    return "\n".join(lines)


def markdown(rows):
    heads, lines = table(rows)
    out = ["| " + " | ".join(heads) + " |", "|---|--:|---|" + "--:|" * (len(heads) - 3)]
    for line in lines:
        cells = [re.sub(r"^([\d.]+)\*$", r"**\1**", text.strip()) for text in line]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, "", *summary(rows).splitlines()])


# ---- a picture: one panel a trace, miss ratio by capacity ----

STYLES = {  # policy -> colour, width, dashes
    "larder": ("#c2410c", 2.6, ""),
    "lru": ("#64748b", 1.3, ""),
    "s3-fifo": ("#2563eb", 1.3, ""),
    "w-tinylfu": ("#7c3aed", 1.3, ""),
    "gdsf": ("#059669", 1.3, ""),
    "bound": ("#94a3b8", 1.2, "3 3"),
}
PANEL_W, PANEL_H = 300, 210
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 20, 30, 30
COLUMNS = 3


def short(number, unit):
    size, letter = next((s, c) for s, c in [(1e6, "M"), (1e3, "k"), (1, "")] if number >= s)
    digits = 0 if number >= 10 * size or size == 1 else 1
    return f"{number / size:.{digits}f}{letter}{'B' if unit == 'bytes' else ''}"


def element(name, text="", **attributes):
    """font_size="3" becomes font-size="3", kind="x" class="x"; numbers to a tenth."""
    words = [name]
    for key, value in attributes.items():
        key = "class" if key == "kind" else key.replace("_", "-")
        value = f"{value:.1f}" if isinstance(value, float) else str(value)
        words.append(f'{key}="{html.escape(value)}"')
    return f"<{' '.join(words)}>{html.escape(text)}</{name}>" if text else f"<{' '.join(words)}/>"


def stroke(style):
    colour, width, dashes = STYLES[style]
    dash = {"stroke_dasharray": dashes} if dashes else {}
    return {"fill": "none", "stroke": colour, "stroke_width": str(width), **dash}


def panel(rows, x0, y0):
    unit = rows[0]["unit"]
    names = {style: bound_of(unit) if style == "bound" else style for style in STYLES}
    values = [row["miss_ratio"][name] for row in rows for name in names.values()]
    low, high = min(values), max(values)
    low, high = max(0.0, low - 0.06 * (high - low)), high + 0.06 * (high - low)
    first, last = math.log(rows[0]["capacity"]), math.log(rows[-1]["capacity"])
    left, right = x0 + MARGIN_LEFT, x0 + PANEL_W - MARGIN_RIGHT
    height = PANEL_H - MARGIN_TOP - MARGIN_BOTTOM

    def x(row):
        return left + (right - left) * (math.log(row["capacity"]) - first) / (last - first)

    def y(ratio):
        return y0 + MARGIN_TOP + height * (high - ratio) / (high - low)

    out = [element("text", rows[0]["trace"], kind="name", x=left, y=y0 + 18)]
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 5)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        at = y(number * step)
        out.append(element("line", kind="grid", x1=left, x2=right, y1=at, y2=at))
        where = {"x": left - 5, "y": at + 3.5}
        out.append(
            element("text", f"{number * step:.2f}", kind="tick", text_anchor="end", **where)
        )
    free_from = 0.0
    for row in rows:
        if x(row) < free_from:
            continue  # no room beside the one before
        free_from = x(row) + 40
        where = {"x": x(row), "y": y0 + PANEL_H - 12}
        text = short(row["capacity"], unit)
        out.append(element("text", text, kind="tick", text_anchor="middle", **where))
    for style in reversed(STYLES):
        points = " ".join(f"{x(row):.1f},{y(row['miss_ratio'][names[style]]):.1f}" for row in rows)
        out.append(element("polyline", points=points, **stroke(style)))
    return out


def picture(rows):
    panels = [[row for row in rows if row["trace"] == trace] for trace in CELLS]
    panels = [cells for cells in panels if len(cells) > 1]
    lines = math.ceil((len(panels) + 1) / COLUMNS)
    width, height = COLUMNS * PANEL_W, lines * PANEL_H + 10
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>Miss ratio by capacity, one panel a trace</title>",
        "<style>text{font-family:system-ui,sans-serif;fill:#334155}",
        ".name{font-size:13px;font-weight:600}.tick{font-size:10px;fill:#64748b}",
        ".key{font-size:12px}.grid{stroke:#e2e8f0;stroke-width:1}</style>",
        element("rect", width=width, height=height, fill="#ffffff"),
    ]
    for number, cells in enumerate(panels):
        out += panel(cells, number % COLUMNS * PANEL_W, number // COLUMNS * PANEL_H)
    x0 = len(panels) % COLUMNS * PANEL_W + MARGIN_LEFT
    y0 = len(panels) // COLUMNS * PANEL_H + 18
    out.append(element("text", "miss ratio by capacity", kind="name", x=x0, y=y0))
    for number, style in enumerate(STYLES):
        y = y0 + 22 + number * 20
        text = "nothing can be below" if style == "bound" else style
        out.append(element("line", x1=x0, x2=x0 + 26, y1=y, y2=y, **stroke(style)))
        out.append(element("text", text, kind="key", x=x0 + 34, y=y + 4))
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=pathlib.Path, default=TRACES, metavar="FOLDER",
                        help=f"where the traces NAME{SUFFIX} are (default: ../shared/traces)")
    parser.add_argument("--only", action="append", metavar="TRACE", help="this trace; repeatable")
    parser.add_argument("--targets", action="store_true", help="only the cells that have a target")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="also as markdown")
    parser.add_argument("--svg", type=pathlib.Path, metavar="FILE",
                        help="also draw miss ratio by capacity")
    parser.add_argument("--larder", type=pathlib.Path, default=ROOT / "build" / "larder")
    options = parser.parse_args()
    unknown = [name for name in options.only or [] if name not in CELLS]
    if unknown:
        parser.error(f"no trace {unknown[0]!r} is known; there are {', '.join(CELLS)}")
    cells = [
        (trace, unit, capacity)
        for trace, (unit, capacities) in CELLS.items()
        for capacity in capacities
        if trace in (options.only or CELLS)
        and (not options.targets or (trace, capacity) in TARGETS)
    ]
    missing = sorted({t for t, _, _ in cells if not (options.traces / (t + SUFFIX)).is_file()})
    if missing:
        sys.exit(
            f"{options.traces} has no {missing[0]}{SUFFIX}"
            + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
            + ": say where the traces are with --traces FOLDER, or choose some with --only TRACE"
        )
    known = references(options.traces)
    rows = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(lambda cell: measure(options.larder, options.traces, cell), cells):
            before = min(known.get((row["trace"], row["capacity"]), []), default=None)
            rows.append({**row, "reference": before, **(verdict(row) or {})})
    if options.svg:
        options.svg.write_text(picture(rows))
    if options.markdown:
        options.markdown.write_text(markdown(rows) + "\n")
    if options.json:
        print(json.dumps({"results": rows}, indent=2))
    else:
        print_table(rows)
    return 0 if all(row.get("reached", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
