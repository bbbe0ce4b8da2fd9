"""Bar charts as SVG: groups of horizontal bars, written by hand, for a light background."""

import math
from xml.sax.saxutils import escape

FONT = "font-family='system-ui, sans-serif'"
INK, FAINT, GRID = "#1f2933", "#61707f", "#dfe4ea"
# Larder's bars in full colour, those of the others in grey; the shade tells the series apart.
OURS = ["#0b6e4f", "#4cb08a", "#a9dcc7"]
THEIRS = ["#7b8794", "#a9b3bd", "#d3d9df"]

WIDTH, LEFT, RIGHT = 860, 272, 90
BAR, GAP, TOP = 13, 10, 92


def text(x, y, content, size=12, colour=INK, anchor="start", weight="normal"):
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{colour}' "
        f"text-anchor='{anchor}' font-weight='{weight}'>{escape(content)}</text>"
    )


class Linear:
    """From 0; grid lines at round distances, at most six."""

    def __init__(self, largest, width):
        self.width, self.largest = width, largest
        power = 10.0 ** math.floor(math.log10(largest))
        steps = (power * factor for factor in (0.1, 0.2, 0.5, 1, 2))
        step = next(step for step in steps if largest / step <= 6)
        self.ticks = [step * i for i in range(int(largest / step) + 1)]

    def at(self, value):
        return value / self.largest * self.width


class Logarithmic:
    """From the power of ten below the least value; grid lines at powers of ten."""

    def __init__(self, least, largest, width):
        self.low, self.high = math.floor(math.log10(least)), math.log10(largest)
        self.width = width
        self.ticks = [10.0**i for i in range(self.low, math.floor(self.high) + 1)]

    def at(self, value):
        return max(0.0, math.log10(value) - self.low) / (self.high - self.low) * self.width


def short(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def bars(title, subtitle, unit, series, rows, ours, logarithmic=False):
    """rows: [(label, [value or None, one a series])]; `ours` is the label that stands out."""
    known = [v for _, values in rows for v in values if v] or [1]
    width_of_all = WIDTH - LEFT - RIGHT
    if logarithmic:
        axis = Logarithmic(min(known), max(known), width_of_all)
    else:
        axis = Linear(max(known), width_of_all)
    height_of_row = BAR * len(series) + GAP
    height = TOP + height_of_row * len(rows) + 40
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
        f"width='{WIDTH}' height='{height}' role='img' {FONT}>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        text(16, 28, title, 17, weight="600"),
        text(16, 48, subtitle, 12, FAINT),
    ]
    x = LEFT
    for i, name in enumerate(series):
        out.append(f"<rect x='{x}' y='62' width='11' height='11' fill='{OURS[i]}'/>")
        out.append(f"<rect x='{x + 13}' y='62' width='11' height='11' fill='{THEIRS[i]}'/>")
        out.append(text(x + 30, 72, name, 12))
        x += 52 + 7 * len(name)
    bottom = TOP + height_of_row * len(rows)
    for tick in axis.ticks:
        at = LEFT + axis.at(tick)
        line = f"<line x1='{at:.1f}' y1='{TOP - 6}' x2='{at:.1f}' y2='{bottom}' stroke='{GRID}'/>"
        out += [line, text(at, bottom + 15, f"{tick:,.10g}", 11, FAINT, "middle")]
    out.append(text(WIDTH - RIGHT, bottom + 31, unit, 11, FAINT, "end"))
    for number, (label, values) in enumerate(rows):
        top = TOP + number * height_of_row
        weight, colours = ("600", OURS) if label == ours else ("normal", THEIRS)
        middle = top + BAR * len(series) / 2 + 4
        out.append(text(LEFT - 10, middle, label, 12, anchor="end", weight=weight))
        for i, value in enumerate(values):
            y = top + i * BAR
            if value is None:
                out.append(text(LEFT + 4, y + BAR - 3, "-", 11, FAINT))
                continue
            width = max(1.0, axis.at(value)) if value > 0 else 1.0
            out.append(
                f"<rect x='{LEFT}' y='{y}' width='{width:.1f}' height='{BAR - 2}' "
                f"fill='{colours[i]}'/>"
            )
            out.append(text(LEFT + width + 5, y + BAR - 3, short(value), 11, weight=weight))
    out.append("</svg>")
    return "\n".join(out) + "\n"
