# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.redis``: break a lab cluster's Redis while clients write, and judge what is left."""

import argparse
import json
import pathlib
import sys
import time

import redis

from .checker import check
from .faults import FAULTS
from .record import Record
from .run import CACHE, compare, table
from .writer import LoadOptions


def main(arguments=None):
    """A Markdown table on standard output. Exit code 1: something acknowledged was broken, 2: the run could not be done."""
    parser = argparse.ArgumentParser(prog="tests.redis", description="No acknowledged write is lost, doubled or reordered: a check.")
    commands = parser.add_subparsers(dest="command", required=True)
    comparing = commands.add_parser("compare", help="faults under load, on the cluster and beside it on plain sets")
    comparing.add_argument("--cluster", default="redis", help="a lab cluster that is up")
    comparing.add_argument("--fault", action="append", choices=sorted(FAULTS), help="only these; may be repeated")
    comparing.add_argument("--wait", type=int, default=LoadOptions.wait, help="replicas that must confirm a write")
    comparing.add_argument("--alone", action="store_true", help="without the plain sets")
    comparing.add_argument("--out", type=pathlib.Path, help="directory for the evidence; default: .cache/redis/<cluster>-<time>")
    tabling = commands.add_parser("table", help="the table of an earlier comparison")
    tabling.add_argument("directory", type=pathlib.Path)
    again = commands.add_parser("check", help="judge the record of one earlier run again")
    again.add_argument("directory", type=pathlib.Path)
    given = parser.parse_args(arguments)
    if given.command == "table":
        print(table(json.loads((given.directory / "comparison.json").read_text())))
        return 0
    if given.command == "check":
        found = check(Record.read(given.directory / "record.json"))
        print(json.dumps(found, indent=1))
        return int(any(found["violations"].values()))
    directory = given.out or CACHE / f"{given.cluster}-{int(time.time())}"
    names = given.fault or [name for name in FAULTS if name != "none"]
    result = compare(given.cluster, names, directory, LoadOptions(wait=given.wait), given.alone)
    print(f"{table(result)}\n\n{directory / 'comparison.json'}")
    return int(not all(pair["ours"]["ok"] for pair in result["faults"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, redis.RedisError) as error:
        print(f"tests.redis: {error}", file=sys.stderr)
        sys.exit(2)
