# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rolling change did and when, as data and as one page without anything from elsewhere. Pure."""

from __future__ import annotations

import datetime
import html
import itertools

#: Step with which a phase of a replica begins -> (the phase in words, its colour). "done" and "back" end the last one.
PHASES = {
    "look": ("looked at: what has to change, and how its peers are", "#a8a8a8"),
    "drain": ("drained, finishing what it has", "#e0a030"),
    "restart": ("restarted, not yet proven", "#4878a8"),
    "live": ("changed while it serves, not yet proven", "#8868b0"),
    "ready": ("proven, being put back or watched", "#58a868"),
    "failed": ("failed, going back", "#c04848"),
}
#: What a replica's change consists of at least: emptying it, stopping and starting the unit, getting healthy, and answering a message.
FLOOR = ("drain", "restart", "start", "gate")
_WIDTH, _LEFT, _ROW, _BARS = 960, 120, 34, 120


def collect(hosts, version):
    """The report as JSON data.

    :param hosts: for each host ``events`` ([replica, step, seconds since 1970]), ``counts`` ([seconds since 1970, requests, errors] of all
        balancers together), ``failure`` (text or empty) and ``floors``: replica -> seconds of what cannot be left out (``drain``, ``restart``,
        ``start``, ``gate``) and of its ``soak``
    :returns: dict with ``version``, ``began``, ``ended`` (text), ``failures``, ``replicas`` (id, ``phases`` with ``phase``, ``at`` and
        ``seconds``, ``outcome``, ``total_seconds``, ``floor_seconds`` and ``ratio``, which leaves the soak out of the total; both null for one
        that did not get through) and ``traffic`` (``at``, ``seconds``, ``requests``, ``errors``); seconds since the beginning
    """
    events = sorted((event for host in hosts for event in host["events"]), key=lambda event: event[2])
    looked_at = {event[0] for event in events if event[1] != "look"}
    events = [event for event in events if event[0] in looked_at]
    floors = {name: floor for host in hosts for name, floor in host.get("floors", {}).items()}
    counts = _apart(sorted(count for host in hosts for count in host["counts"]))
    start = min([event[2] for event in events] + [count[0] for count in counts], default=0)
    end = max([event[2] for event in events] + [count[0] for count in counts], default=0)
    replicas = []
    for name in dict.fromkeys(event[0] for event in events):
        own = [event for event in events if event[0] == name]
        while own[-1][1] == "look":  # it was looked at again, and nothing was left to do
            own.pop()
        phases = [
            {"phase": step, "at": _seconds(at - start), "seconds": _seconds(after - at)}
            for (_name, step, at), (_same, _next, after) in itertools.pairwise(own)
            if step in PHASES
        ]
        total, outcome = own[-1][2] - own[0][2], own[-1][1]
        floor = floors.get(name, {}) if outcome == "done" else {}
        least = sum(floor.get(part, 0) for part in FLOOR)
        replicas.append(
            {
                "id": name,
                "phases": phases,
                "outcome": outcome,
                "total_seconds": _seconds(total),
                "floor_seconds": _seconds(least) if least else None,
                "ratio": round((total - floor.get("soak", 0)) / least, 2) if least else None,
            }
        )
    traffic = [
        {"at": _seconds(before[0] - start), "seconds": _seconds(after[0] - before[0]), "requests": after[1] - before[1], "errors": after[2] - before[2]}
        for before, after in itertools.pairwise(counts)
        # A balancer that was reloaded in between has begun to count anew.
        if after[0] > before[0] and after[1] >= before[1] and after[2] >= before[2]
    ]
    return {
        "version": version,
        "began": _clock(start) if events else "",
        "ended": _clock(end) if events else "",
        "seconds": _seconds(end - start),
        "failures": [" ".join(host["failure"].split()) for host in hosts if host["failure"]],
        "replicas": replicas,
        "traffic": traffic,
    }


def _apart(counts):
    """Of counts that were taken within a second, as by replicas that are changed side by side, the first: the next one holds their requests too."""
    kept = []
    for count in counts:
        if not kept or count[0] - kept[-1][0] >= 1:
            kept.append(count)
    return kept


def page(report):
    """The report as one HTML page."""
    said = f"<p>{html.escape(report['began'])} to {html.escape(report['ended'])}, {report['seconds']:g} s, version {html.escape(report['version'])}.</p>"
    said += "".join(f'<p class="failure">{html.escape(text)}</p>' for text in report["failures"])
    if not report["replicas"]:
        said = "<p>Nothing had to be changed.</p>"
    legend = "".join(f'<span style="background:{colour}"></span>{words} ' for words, colour in PHASES.values())
    rows = "".join(
        f"<tr><td>{html.escape(one['id'])}</td>"
        + "".join(f"<td>{_of_phase(one, phase)}</td>" for phase in PHASES)
        + f"<td>{one['total_seconds']:g}</td><td>{_or_none(one['floor_seconds'])}</td><td>{_or_none(one['ratio'])}</td>"
        + f"<td>{html.escape(one['outcome'])}</td></tr>"
        for one in report["replicas"]
    )
    heads = "".join(f"<th>{phase} s</th>" for phase in PHASES)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Rolling change</title><style>\n'
        "body{font:15px sans-serif;margin:2em;max-width:1000px;color:#222;background:#fff}td,th{text-align:right;padding:.2em .8em}"
        "td:first-child,th:first-child{text-align:left}.failure{color:#a02020}.legend span{display:inline-block;width:1em;height:1em;margin:0 .4em 0 1em}"
        "\n</style></head><body>\n<h1>Rolling change</h1>\n"
        f'{said}\n<p class="legend">{legend}</p>\n{_picture(report)}\n'
        f"<table><tr><th>replica</th>{heads}<th>together</th><th>floor s</th><th>ratio</th><th>outcome</th></tr>{rows}</table>\n"
        "<p>Floor: what the drain, the restart, the start and the message took by themselves. Ratio: all the time, the watched one excepted, to the floor.</p>"
        "\n</body></html>\n"
    )


def _of_phase(replica, phase):
    return f"{sum(one['seconds'] for one in replica['phases'] if one['phase'] == phase):g}"


def _or_none(value):
    return "" if value is None else f"{value:g}"


def _picture(report):
    """Replicas as rows of bars over time, and below them the requests a second that the balancers counted, failed ones in red."""
    scale = (_WIDTH - _LEFT - 10) / (report["seconds"] or 1)
    parts, top = [], 10
    for replica in report["replicas"]:
        parts.append(f'<text x="0" y="{top + 20}">{html.escape(replica["id"])}</text>')
        for one in replica["phases"]:
            words, colour = PHASES[one["phase"]]
            parts.append(_box(_LEFT + one["at"] * scale, top + 5, one["seconds"] * scale, _ROW - 12, colour, f"{replica['id']} {words}: {one['seconds']:g} s"))
        top += _ROW
    most = max((one["requests"] / one["seconds"] for one in report["traffic"] if one["seconds"]), default=0)
    if most:
        base = top + _BARS
        parts.append(f'<text x="0" y="{top + 20}">requests/s</text><text x="0" y="{top + 38}">to {most:.0f}</text>')
        for one in report["traffic"]:
            rate, bad = one["requests"] / one["seconds"], one["errors"] / one["seconds"]
            told = f"{one['requests']} requests in {one['seconds']:g} s, {one['errors']} failed at a replica"
            for value, colour in ((rate, "#b8c8d8"), (bad, "#c04848")):
                height = value / most * (_BARS - 20)
                if value:
                    parts.append(_box(_LEFT + one["at"] * scale, base - height, one["seconds"] * scale, height, colour, told))
        top = base
    axis = "".join(
        f'<text x="{_LEFT + second * scale:.0f}" y="{top + 18}">{second:g} s</text>' for second in [report["seconds"] * part / 4 for part in range(4)]
    )
    return f'<svg viewBox="0 0 {_WIDTH} {top + 26}" font-size="13" font-family="sans-serif" role="img">{"".join(parts)}{axis}</svg>'


def _box(left, top, width, height, colour, words):
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" fill="{colour}"><title>{html.escape(words)}</title></rect>'
    )


def _seconds(value):
    return round(value, 1)


def _clock(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).isoformat(sep=" ", timespec="seconds")
