# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.history``: load a lab cluster and judge what happened, or judge an earlier run again."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import redis

from .faults import FAULTS
from .load import LoadOptions
from .run import Timing, figures, heading, judge_again, row, run


def main(arguments=None):
    """One table row on standard output. Exit code 1: something was found, 2: the run itself could not be done."""
    parser = argparse.ArgumentParser(
        prog="tests.history", description="No acknowledged turn is lost, doubled or reordered: a check."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser(
        "run", help="load a cluster, then judge", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    running.add_argument("--cluster", default="demo", help="a lab cluster that is up")
    running.add_argument("--fault", default="none", choices=sorted(FAULTS), help="what goes wrong meanwhile")
    running.add_argument(
        "--out", type=pathlib.Path, help="directory for the evidence; default: .cache/history/<fault>-<time>"
    )
    for field in (*dataclasses.fields(LoadOptions), *dataclasses.fields(Timing)):
        option = f"--{field.name.replace('_', '-')}"
        if field.type == "bool":
            running.add_argument(option, action="store_true", default=field.default, help=" ")
        else:
            kind = {"int": int, "float": float, "str": str}[field.type]
            running.add_argument(option, type=kind, default=field.default, help=" ")
    again = commands.add_parser("check", help="judge the evidence of an earlier run again")
    again.add_argument("directory", type=pathlib.Path)
    tabling = commands.add_parser("table", help="one table of all runs whose evidence is below a directory")
    tabling.add_argument("directory", type=pathlib.Path)
    tabling.add_argument("--json", action="store_true", help="the same as JSON")
    given = vars(parser.parse_args(arguments))

    if given["command"] == "table":
        paths = sorted(given["directory"].glob("*/result.json"), key=lambda path: path.stat().st_mtime)
        results = [json.loads(path.read_text()) for path in paths]
        if given["json"]:
            print(json.dumps([figures(result) for result in results], indent=1))
        else:
            print("\n".join([heading(), *map(row, results)]))
        return 0

    if given["command"] == "check":
        directory = given["directory"]
        result = judge_again(directory)
    else:
        from .cluster import Cluster  # only here: judging needs neither a lab nor Redis
        from .crosscheck import CACHE, binary

        binary()  # better now than after the load
        fault = given["fault"]
        directory = given["out"] or CACHE / f"{fault.replace(' ', '-')}-{int(time.time())}"
        options, timing = (
            kind(**{one.name: given[one.name] for one in dataclasses.fields(kind)}) for kind in (LoadOptions, Timing)
        )
        result = run(
            options,
            FAULTS[fault],
            cluster=Cluster.of_lab(given["cluster"]),
            directory=directory,
            name=fault,
            timing=timing,
        )
    print(f"{heading()}\n{row(result)}\n\n{directory / 'result.json'}")
    for violation in result["violations"][:20]:
        print(f"  {violation['kind']}: {violation['conversation']} {violation['token']}: {violation['detail']}")
    if result.get("unsettled"):
        print(f"  not settled: {result['unsettled']}")
    if not result["agree"]:
        print("  the two checkers do not agree")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, ValueError, redis.RedisError) as error:
        print(f"tests.history: {error}", file=sys.stderr)
        sys.exit(2)
