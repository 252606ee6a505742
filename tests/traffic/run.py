# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: a steady load, a fault that comes and goes, the evidence, and what it shows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time

import requests

from tests.history import collect
from tests.history.history import History, Window
from tests.history.run import judge, warm_up

from . import evidence, faults, logs
from .engines import engine, watched
from .load import Traffic
from .report import Visit, report


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of load before the fault, with the fault, and after its repair was seen; sick replicas may take longer to be asked again."""

    before: float = 6
    hold: float = 15
    after: float = 6
    back: float = 60


@contextlib.contextmanager
def slow_streams(cluster, run, seconds):
    """The model's answers to the streams of a run are spread over so many seconds."""
    host, port = cluster.llm_url.rsplit(":", 1)

    def behave(**wanted):
        requests.post(f"{host}:{int(port) + 1}/behaviour", json=wanted, timeout=10).raise_for_status()

    behave(mode="slow", seconds=seconds, match=f"stream-{run}-")
    try:
        yield
    finally:
        behave(mode="ok")


def run(options, fault, *, cluster, directory, name, timing=Timing(), look=lambda _cluster: {}, variant=""):
    """Load a cluster, break it meanwhile, and say what clients saw.

    :param fault: cluster -> context manager that yields a :class:`tests.traffic.faults.Broken`
    :param directory: gets sent.jsonl and operations.jsonl while it runs, then requests.jsonl, history.json and result.json
    :param variant: what is set up otherwise than by default, for the table's column of the engine
    :param look: called when the fault is about to be repaired; what it returns is in the result
    :returns: the result as JSON data
    """
    directory.mkdir(parents=True, exist_ok=True)
    warm_up(cluster)
    since = time.time() - 1
    load = Traffic(cluster, options, directory)
    seen, has_vip = {}, any(one["address"] for one in cluster.topology.get("vips", ()))
    with slow_streams(cluster, load.run, options.stream_seconds), watched(cluster) as changes:
        load.start()
        try:
            _pass(timing.before)
            with fault(cluster) as broken:
                broke = time.monotonic()
                _pass(timing.hold)
                seen = look(cluster)
                repaired = time.monotonic()
            healed = time.monotonic()
            _pass(timing.after)
            _until_back(load, broken.replicas, repaired, timing.back)
        finally:
            load.stop()
            sent, operations = load.join()
            evidence.write(directory / "requests.jsonl", sent)  # it may be all that a run leaves
    visit = Visit(name, broken.at, repaired, healed, broken.replicas, tuple(changes), broke) if fault is not faults.nothing else None
    sent = logs.add(sent, logs.lines(cluster, load.run, since), cluster.topology["replicas"])
    evidence.write(directory / "requests.jsonl", sent)
    client = cluster.redis()
    unsettled = collect.settle(cluster, client, load.run)
    window = Window(name, visit.began, visit.healed) if visit else None
    History(operations, collect.stored(client, load.run), cluster.model_calls(load.run), (), window).save(directory / "history.json")
    result = {
        "name": name,
        "engine": f"{engine(cluster)}{', ' if variant else ''}{variant}",
        "run": load.run,
        "options": dataclasses.asdict(options),
        "visit": dataclasses.asdict(visit) if visit else None,
        "seen": seen,
        "vip": {"of": broken.balancer, "then": faults.one_holder(cluster)} if has_vip and broken.balancer else {},
        "traffic": report(sent, visit),
        "history": judge(directory, fault=name, run=load.run, unsettled=unsettled, options=dataclasses.asdict(options.of_messages())),
    }
    (directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _pass(seconds):
    """Let the load go on for so long."""
    time.sleep(seconds)


def _until_back(load, replicas, since, seconds):
    """Wait until each of these replicas has answered a GET that was sent after a moment, or for so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(load.answered.get(replica, 0) > since for replica in replicas):
        time.sleep(0.05)  # between two looks


def again(directory):
    """The result of an earlier run, its report made anew from its requests."""
    result = json.loads((directory / "result.json").read_text())
    visit = Visit(**{name: tuple(value) if isinstance(value, list) else value for name, value in result["visit"].items()}) if result["visit"] else None
    return result | {"traffic": report(evidence.read(directory / "requests.jsonl"), visit)}
