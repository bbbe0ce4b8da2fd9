#!/usr/bin/env python3
"""Turns what a program printed (standard input) into an SVG that looks like a terminal.

    build/larder demo | tools/terminal_svg.py 'larder demo' > docs/images/demo.svg
"""
import sys
from xml.sax.saxutils import escape

CHAR_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 19, 18


def main():
    title = sys.argv[1] if len(sys.argv) > 1 else ""
    lines = [line.rstrip() for line in sys.stdin.read().rstrip("\n").split("\n")]
    width = int(max(map(len, lines)) * CHAR_WIDTH) + 2 * MARGIN
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN + 24
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
          f'viewBox="0 0 {width} {height}">')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#1c2128"/>')
    for i, colour in enumerate(("#f47067", "#daaa3f", "#57ab5a")):
        print(f'<circle cx="{20 + 18 * i}" cy="16" r="5" fill="{colour}"/>')
    print(f'<text x="{width / 2:.0f}" y="20" fill="#768390" text-anchor="middle" '
          f'font-family="monospace" font-size="13">{escape(title)}</text>')
    print('<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="#cdd9e5">')
    for i, line in enumerate(lines):
        if not line:
            continue
        y = MARGIN + 24 + i * LINE_HEIGHT + 12
        colour = ' fill="#6cb6ff"' if line.lstrip().startswith((">", "sqlite>")) else ""
        colour = colour or (' fill="#8ddb8c"' if line[:1].isdigit() else "")
        print(f'<text x="{MARGIN}" y="{y}" xml:space="preserve"{colour} textLength="'
              f'{len(line) * CHAR_WIDTH:.0f}" lengthAdjust="spacingAndGlyphs">{escape(line)}</text>')
    print("</g></svg>")


if __name__ == "__main__":
    main()
