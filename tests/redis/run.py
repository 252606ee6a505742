# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: clients write, a fault comes and goes, what is left is judged. And the comparison of all faults with a plain set."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import redis

from lab.cluster import ROOT
from lab.shell import say, wait_for

from .checker import check
from .faults import ALL_HOSTS, FAULTS
from .record import Record
from .servers import of_lab, plain, remove_plain
from .writer import Load, LoadOptions

CACHE = ROOT / ".cache" / "redis"
#: A plain set calls its primary down after 30 s; everything that is waited for takes longer there.
PATIENCE = 90


def under_load(servers, action, options, directory, name, pinned=False, hold=0):
    """Let clients write while ``action`` (a context manager) comes and goes, until all is well again; then judge.

    :param pinned: with one more client that stays with the primary of the beginning
    :param hold: seconds that the action lasts at least, else until writes are acknowledged again
    :returns: what :func:`tests.redis.checker.check` finds, with ``ok``, ``name``, ``servers``, ``options``, ``down_after`` (s)
    """
    directory.mkdir(parents=True, exist_ok=True)
    servers.settle(PATIENCE)
    key = f"{servers.prefix}written:{time.time_ns()}"
    with servers.pinned() if pinned else contextlib.nullcontext() as node:
        load = Load(servers, options, key, node)
        try:
            _resumed(load, load.began)
            began = time.monotonic()
            with action:
                _resumed(load, time.monotonic())
                wait_for(f"{hold} s", lambda: time.monotonic() >= began + hold, hold + 1)
            ended = time.monotonic()
            # Clients go on while an old primary still has to learn that it is none.
            servers.settle(PATIENCE)
            _resumed(load, time.monotonic())
        finally:
            writes = load.stop()
    servers.settle(PATIENCE)
    record = Record(writes, servers.stored(key), load.began, load.ended, began, ended)
    record.save(directory / "record.json")
    found = check(record)
    result = {
        "name": name,
        "servers": servers.name,
        "ok": not any(found["violations"].values()),
        "down_after": servers.down_after(),
        "options": dataclasses.asdict(options),
        **found,
    }
    (directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _resumed(load, moment, count=40):
    """Wait until so many writes were acknowledged that began after a moment."""
    wait_for(f"{count} acknowledged writes", lambda: load.acknowledged_since(moment) >= count, PATIENCE, 0.02)


def _shared(fault, servers):
    """A fault that two sets on the same hosts suffer together: two context managers; the first acts once both loads run."""
    ready, done = threading.Barrier(2), threading.Event()

    @contextlib.contextmanager
    def acts():
        ready.wait(PATIENCE)
        try:
            with fault.run(servers):
                done.set()
                yield
        finally:
            done.set()

    @contextlib.contextmanager
    def suffers():
        ready.wait(PATIENCE)
        done.wait(PATIENCE)
        yield

    return acts(), suffers()


def compare(cluster, names, directory, options=LoadOptions(), alone=False):
    """Every fault on the cluster's own servers, and beside it on plain sets on the same hosts, all in one run.

    Each fault has a plain set of its own, so that those with their long down-after run beside each other.

    :param alone: without the plain sets
    :returns: JSON data, written to comparison.json: ``faults``: name -> ``ours`` and ``plain`` (a result, an ``error``, or None)
    """
    ours = of_lab(cluster)
    ours.settle(PATIENCE)
    sets = {} if alone else {name: plain(ours, number, name) for number, name in enumerate(names)}

    def run(name, servers, action, wait):
        fault = FAULTS[name]
        where = directory / ("plain" if wait == 0 else "ours") / name
        return under_load(servers, action, dataclasses.replace(options, wait=wait), where, name, fault.pinned, fault.hold)

    def beside(name, action):
        try:
            return run(name, sets[name], action, 0)
        except (RuntimeError, redis.RedisError) as error:  # it need not survive
            return {"error": str(error)}

    found = {}
    try:
        with ThreadPoolExecutor(max(1, len(sets))) as pool:
            others = {
                name: pool.submit(beside, name, FAULTS[name].run(sets[name])) for name in sets if name not in ALL_HOSTS
            }
            for name in sorted(names, key=lambda name: name in ALL_HOSTS):
                say(FAULTS[name].title)
                action = FAULTS[name].run(ours)
                if name in ALL_HOSTS and sets:
                    concurrent.futures.wait(others.values())
                    action, suffered = _shared(FAULTS[name], ours)
                    others[name] = pool.submit(beside, name, suffered)
                found[name] = {"ours": run(name, ours, action, options.wait), "plain": None}
            for name, other in others.items():
                found[name]["plain"] = other.result()
    finally:
        for servers in sets.values():
            remove_plain(servers)
    result = {"cluster": cluster, "version": ours.version(), "options": dataclasses.asdict(options), "faults": found}
    (directory / "comparison.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


COLUMNS = ("fault", "acknowledged", "lost", "refused", "unknown (stored)", "write gap")


def table(result):
    """A comparison as Markdown."""
    title = f"Redis {result['version']}, WAIT {result['options']['wait']}"
    heading = [f"{title}: {COLUMNS[0]}", *COLUMNS[1:], *(f"plain: {column}" for column in (*COLUMNS[1:3], COLUMNS[5]))]
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    for name, pair in result["faults"].items():
        ours, other = _cells(pair["ours"]), _cells(pair["plain"])
        lines.append(f"| {' | '.join([FAULTS[name].title, *ours, *other[:2], other[4]])} |")
    return "\n".join(lines)


def _cells(found):
    """The columns after the fault's name."""
    if not found or "error" in found:
        return ["-"] * 4 + [found["error"] if found else "-"]
    broken = ", ".join(f"{len(tokens)} {kind}" for kind, tokens in found["violations"].items() if tokens and kind != "lost")
    lost = str(len(found["violations"]["lost"])) + (f", {broken}" if broken else "")
    unknown = f"{found['unknown']} ({found['unknown_stored']})"
    gap = f"{found['gap']:.1f} s (down-after {found['down_after']:g} s)"
    return [str(found["acknowledged"]), lost, str(found["refused"]), unknown, gap]
