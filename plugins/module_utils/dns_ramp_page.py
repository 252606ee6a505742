# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a ramp as one page without anything from elsewhere. Pure."""

from __future__ import annotations

import datetime
import html

_WIDTH, _LEFT, _ROW = 960, 120, 110
#: (key of a look, title, colour of its bars)
_ROWS = (
    ("percent", "% of clients", "#4878a8"),
    ("requests", "requests", "#b8c8d8"),
    ("failures", "failed", "#c04848"),
    ("burn", "burn rate", "#e0a030"),
)


def page(report):
    """The report that ``dns_ramp.summary`` made, as HTML."""
    looks = report["looks"]
    began = datetime.datetime.fromtimestamp(report["began"], datetime.timezone.utc).isoformat(sep=" ", timespec="seconds")
    failed = "" if report["outcome"] == "reached" else ' class="failure"'
    rows = "".join(
        f"<tr><td>{one['at']:g}</td><td>{one['percent']}</td><td>{one['requests']}</td><td>{one['failures']}</td><td>{_burn(one)}</td></tr>" for one in looks
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>DNS ramp</title><style>\n'
        "body{font:15px sans-serif;margin:2em;max-width:1000px;color:#222;background:#fff}td,th{text-align:right;padding:.2em .8em}.failure{color:#a02020}"
        f"\n</style></head><body>\n<h1>DNS ramp to {html.escape(report['to'])}</h1>\n"
        f"<p{failed}>{html.escape(report['outcome'])}: {html.escape(report['why'])}</p>\n"
        f"<p>Begun {began}. Before: {html.escape(report['before'])}. At the end: {html.escape(report['weights'])}. "
        f"Budget {report['slo']:g} %, limit of the burn rate {report['limit']:g}.</p>\n{_picture(report)}\n"
        f"<table><tr><th>s</th><th>% of clients</th><th>requests</th><th>failed</th><th>burn rate</th></tr>{rows}</table>\n</body></html>\n"
    )


def _burn(one):
    return "" if one["burn"] is None else f"{one['burn']:.1f}"


def _picture(report):
    """Each quantity as a row of bars over time, a bar from one look to the next."""
    looks = report["looks"]
    if len(looks) < 2:
        return ""
    scale, parts = (_WIDTH - _LEFT - 10) / (looks[-1]["at"] or 1), []
    for row, (key, title, colour) in enumerate(_ROWS):
        base = (row + 1) * _ROW
        most = max((one[key] or 0 for one in looks), default=0)
        parts.append(f'<text x="0" y="{base - 40}">{title}</text><text x="0" y="{base - 22}">to {most:.4g}</text>')
        for before, one in zip(looks, looks[1:]):
            height = (one[key] or 0) / most * (_ROW - 20) if most else 0
            if height:
                told = f"{before['at']:g} to {one['at']:g} s: {one[key]:.4g} {title}"
                parts.append(
                    f'<rect x="{_LEFT + before["at"] * scale:.1f}" y="{base - height:.1f}" width="{max((one["at"] - before["at"]) * scale, 1):.1f}" '
                    f'height="{height:.1f}" fill="{colour}"><title>{html.escape(told)}</title></rect>'
                )
    end = len(_ROWS) * _ROW
    axis = "".join(
        f'<text x="{_LEFT + second * scale:.0f}" y="{end + 18}">{second:g} s</text>' for second in [round(looks[-1]["at"] * part / 4, 1) for part in range(4)]
    )
    return f'<svg viewBox="0 0 {_WIDTH} {end + 26}" font-size="13" font-family="sans-serif" role="img">{"".join(parts)}{axis}</svg>'
