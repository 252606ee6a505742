# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: clients talk, a fault comes and goes, the evidence is read, two checkers judge it."""

from __future__ import annotations

import dataclasses
import json
import time

import requests

from . import collect, crosscheck
from .checker import check
from .faults import nothing
from .history import History, Window
from .load import Load


COLUMNS = ("fault", "conversations", "turns", "requests", "acknowledged", "refused", "unknown (stored)",
           "errors seen", "longest stall", "violations", "Porcupine")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timing:
    """When the fault comes: once this share of the turns was acknowledged; it stays for ``hold`` seconds."""

    begin_after: float = 0.25
    hold: float = 10


def warm_up(cluster, seconds=120):
    """One turn on every replica, so that a gateway's first turn is not taken for a stall.

    :raises RuntimeError: when one fails
    """
    for address in cluster.replicas:
        body = {"channel": "warm-up", "user_id": address, "message": "hello"}
        headers = {"Authorization": f"Bearer {cluster.token}"}
        response = requests.post(f"http://{address}/api/v1/message", json=body, headers=headers, timeout=seconds)
        if response.status_code != 200:
            raise RuntimeError(
                f"{address} does not answer before the run: {response.status_code} {response.text[:200]}"
            )


def run(options, fault=nothing, *, cluster, directory, name=None, timing=Timing()):
    """Load a cluster, break it meanwhile, and judge what happened.

    :param LoadOptions options: what the clients do
    :param fault: cluster -> context manager
    :param directory: gets operations.jsonl, history.json, result.json and, for a failing history, pictures/
    :returns: the result as JSON data; ``ok`` is true when both checkers found nothing and nothing was left waiting
    """
    directory.mkdir(parents=True, exist_ok=True)
    warm_up(cluster)
    load = Load(cluster, options, directory / "operations.jsonl").start()
    try:
        window = None if fault is nothing else _visit(fault, load, cluster, name, timing)
    except BaseException:
        load.stop()
        raise
    finally:
        operations, gets = load.join()
    client = cluster.redis()
    unsettled = collect.settle(cluster, client, load.run, options.channel)
    stored = collect.stored(client, load.run, options.channel)
    history = History(operations, stored, cluster.model_calls(load.run), gets, window)
    history.save(directory / "history.json")
    said = name or fault.__name__
    return judge(directory, fault=said, options=dataclasses.asdict(options), run=load.run, unsettled=unsettled)


def _visit(fault, load, cluster, name, timing):
    """Let a fault come and go while clients talk. :returns: Window"""
    options = load.options
    wanted = timing.begin_after * options.conversations * options.clients * options.turns
    while load.running and load.acknowledged < wanted:
        time.sleep(0.02)  # between two looks
    began = time.monotonic()
    with fault(cluster):
        until = time.monotonic() + timing.hold
        while load.running and time.monotonic() < until:
            time.sleep(0.02)  # between two looks
    return Window(name or fault.__name__, began, time.monotonic())


def judge(directory, **more):
    """Both opinions of the history in a run's directory; written to result.json beside it and returned."""
    history = History.read(directory / "history.json")
    report = check(history)
    second = crosscheck.judge(directory / "history.json", directory / "pictures")
    result = {
        "ok": not report.violations and second["verdict"] == "ok" and not more.get("unsettled"),
        "agree": report.atomic == (second["verdict"] == "ok"),
        "fault_seconds": round(history.window.ended - history.window.began, 3) if history.window else 0,
        **more, **report.record(), "porcupine": second,
    }  # fmt: skip
    (directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def judge_again(directory):
    """Like :func:`judge`, for an earlier run: what only the run itself could know is taken from its result."""
    earlier = json.loads((directory / "result.json").read_text())
    return judge(directory, **{name: earlier[name] for name in ("fault", "options", "run", "unsettled")})


def figures(result):
    """What a table row says, and a little more, as JSON data."""
    kept = {name: result[name] for name in ("fault", "ok", "fault_seconds", "counts", "apart", "totals")}
    return kept | {"porcupine": result["porcupine"]["verdict"]}


def row(result):
    """A result as one line of a Markdown table; see COLUMNS."""
    totals, apart = result["totals"], result["apart"]
    found = ", ".join(f"{number} {kind}" for kind, number in result["counts"].items() if number) or "none"
    errors = ", ".join(f"{number} x {kind}" for kind, number in totals["errors"].items()) or "none"
    cells = (
        result["fault"],
        *(totals[name] for name in COLUMNS[1:6]),
        f"{totals['unknown']} ({apart['unknown_stored']})",
        errors,
        f"{totals['longest_stall'] or 0:.1f} s",
        found,
        result["porcupine"]["verdict"],
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def heading():
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
