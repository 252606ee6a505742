# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bars as SVG: four small panels do not need a plotting library."""

from __future__ import annotations

import html

COLOURS = ("#1b6ca8", "#6aa9d8", "#b9d9ef")
WIDTH, LABEL, VALUE, BAR, GAP, TITLE = 900, 150, 90, 14, 10, 34


def bars(panels):
    """Panels below each other.

    :param panels: list of (title, {label: values}); the values of a label are bars below each other, in the same order everywhere
    """
    shapes, y = [], 10
    for title, rows in panels:
        y += TITLE
        shapes.append(f'<text x="10" y="{y - 12}" font-size="15" font-weight="bold">{html.escape(title)}</text>')
        most = max(value for values in rows.values() for value in values) or 1
        for label, values in rows.items():
            middle = y + len(values) * BAR / 2 + 4
            shapes.append(f'<text x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end">{html.escape(label)}</text>')
            for number, value in enumerate(values):
                width = value / most * (WIDTH - LABEL - VALUE)
                shapes.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[number % len(COLOURS)]}"/>')
                shapes.append(f'<text x="{LABEL + width + 5:.0f}" y="{y + BAR - 4}" font-size="11">{said(value)}</text>')
                y += BAR
            y += GAP
    y += 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *shapes, "</svg>"]) + "\n"


def said(value):
    """A number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
