# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.traffic``: a steady load on a lab cluster while something breaks, and tables of what clients saw."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import redis
import requests

from .load import TrafficOptions
from .report import heading, row
from .run import Timing, again, run

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(arguments=None):
    """One table row on standard output. Exit code 1: a turn was lost, doubled or reordered, 2: the run could not be done."""
    parser = argparse.ArgumentParser(prog="tests.traffic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="load a cluster", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    running.add_argument("--cluster", default="demo", help="a lab cluster that is up")
    running.add_argument("--fault", default="none", help="what goes wrong meanwhile; `list` shows the names")
    running.add_argument("--out", type=pathlib.Path, help="directory for the evidence; default: .cache/traffic/<fault>-<time>")
    for field in (*dataclasses.fields(TrafficOptions), *dataclasses.fields(Timing)):
        running.add_argument(f"--{field.name.replace('_', '-')}", type=int if field.type == "int" else float, default=field.default, help=" ")
    commands.add_parser("list", help="the faults")
    tabling = commands.add_parser("table", help="one table of all runs whose evidence is below a directory")
    tabling.add_argument("directory", type=pathlib.Path)
    tabling.add_argument("--json", action="store_true", help="the same as JSON")
    given = vars(parser.parse_args(arguments))

    if given["command"] == "table":
        paths = sorted(given["directory"].rglob("result.json"), key=lambda path: path.stat().st_mtime)
        results = [again(path.parent) for path in paths]
        print(json.dumps(results, indent=1) if given["json"] else "\n".join([heading(), *map(row, results)]))
        return 0

    from tests.history.cluster import Cluster  # only here: a table needs no lab

    from .faults import FAULTS, way_in

    if given["command"] == "list":
        print("\n".join(f"{name}: {' '.join((fault.__doc__ or '').split())}".rstrip(": ") for name, fault in FAULTS.items()))
        return 0
    fault = given["fault"]
    if fault not in FAULTS:
        parser.error(f"there is no fault {fault!r}; known are {', '.join(FAULTS)}")
    directory = given["out"] or ROOT / ".cache" / "traffic" / f"{fault.replace(' ', '-')}-{int(time.time())}"
    options, timing = (kind(**{one.name: given[one.name] for one in dataclasses.fields(kind)}) for kind in (TrafficOptions, Timing))
    cluster = way_in(Cluster.of_lab(given["cluster"]))
    result = run(options, FAULTS[fault], cluster=cluster, directory=directory, name=fault, timing=timing)
    print(f"{heading()}\n{row(result)}\n\n{directory / 'result.json'}")
    for cut in result["traffic"]["stream"]["cut"]:
        print(f"  {cut['id']} on {cut['replica'] or 'an unknown replica'}: {cut['error']} after {cut['after']:.1f} s, {cut['chunks']} chunks")
    for violation in result["history"]["violations"][:20]:
        print(f"  {violation['kind']}: {violation['conversation']} {violation['token']}: {violation['detail']}")
    return 0 if result["history"]["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, ValueError, redis.RedisError, requests.RequestException) as error:
        print(f"tests.traffic: {error}", file=sys.stderr)
        sys.exit(2)
