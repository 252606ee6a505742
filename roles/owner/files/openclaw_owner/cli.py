# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: who has what for people and playbooks, the service itself for systemd, and ``off`` for when that has died."""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import logging
import os
import sys
import time

from . import config, files, units

#: Seconds that the daemon may take to answer: it does from memory.
DEADLINE = 10


def main(arguments=None):
    """Run one command; returns the exit status: 0, 1 when the daemon, or what is asked of it, is not there, 2 when the configuration is wrong."""
    options = _parser().parse_args(arguments)
    try:
        settings = config.load(options.config)
        return _COMMANDS[options.command](options, settings)
    except config.ConfigError as error:
        print(f"openclaw-owner: {error}", file=sys.stderr)
        return 2
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"openclaw-owner: the daemon of this host does not answer: {error or 'no answer in time'}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="openclaw-owner", description="Which replica has what only one may have.")
    parser.add_argument("--config", default=config.PATH, help="configuration file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="be the service (for systemd)")
    commands.add_parser("status", help="show who has what, as this host's daemon sees it").add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("off", help="turn everything off in this host's replicas (for systemd, when the service has ended)")
    commands.add_parser("check", help="check the configuration file")
    wait = commands.add_parser("wait", help="wait until a drained replica of this host has handed over all that it has")
    wait.add_argument("replica", metavar="REPLICA")
    wait.add_argument("--seconds", type=float, default=60.0, help="for at most so long (default: %(default)g)")
    commands.add_parser("give", help="let another host have a singleton").add_argument("id", metavar="ID")
    return parser


def _ask(settings, method, path, body=None):
    """(HTTP status, JSON) of this host's daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", settings["status_port"], timeout=DEADLINE)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


#: What systemd calls the end of a service that it starts again as it was. It goes on with the leases of its former life.
_AGAIN = ("signal", "core-dump", "watchdog", "oom-kill")


def _check(_options, _settings):
    return 0


def _off(_options, settings):
    # OpenClaw breaks off what it is sending when an account is turned off: not for a service that is back in half a second.
    if os.environ.get("SERVICE_RESULT") in _AGAIN and files.held(settings, units.now()):
        return 0
    failed = files.off(settings)
    for path, why in failed:
        print(f"openclaw-owner: {path} cannot be written: {why}", file=sys.stderr)
    return 1 if failed else 0


def _status(options, settings):
    found = _ask(settings, "GET", "/health")[1]
    if options.json:
        print(json.dumps(found))
        return 0
    rows = [("SINGLETON", "STATE", "HOLDER", "HOST", "SINCE", "TOKEN", "FREE IN")]
    for name, one in sorted(found["singletons"].items()):
        since = datetime.datetime.fromtimestamp(one["since"], datetime.timezone.utc).isoformat(timespec="seconds") if one["since"] else "-"
        waiting = f"{one['waiting_seconds']:g} s" if one["waiting_seconds"] else "-"
        rows.append((name, one["state"], one["holder"] or "-", one["host"] or "-", since, str(one["token"]), waiting))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    for problem in found["problems"]:
        print(f"degraded: {problem}")
    return 0


def _give(options, settings):
    status, found = _ask(settings, "POST", "/give", {"id": options.id})
    if status != 200:
        print(f"openclaw-owner: {found['error']}.", file=sys.stderr)
        return 1
    print(f"{options.id}: {found['replica']} gives it up, and this host does not take it for {found['seconds']:g} s")
    return 0


def _wait(options, settings):
    if options.replica not in {one["id"] for one in settings["replicas"]}:
        print(f"openclaw-owner: {options.replica} is no replica of this host.", file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.seconds
    while has := [name for name, one in _ask(settings, "GET", "/health")[1]["singletons"].items() if one["replica"] == options.replica]:
        if time.monotonic() >= deadline:
            print(f"openclaw-owner: after {options.seconds:g} s {options.replica} still has {', '.join(sorted(has))}.", file=sys.stderr)
            return 1
        time.sleep(0.25)  # between two looks
    return 0


def _serve(_options, settings):
    import asyncio  # here and below: the other commands do without

    from . import service

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    try:
        asyncio.run(service.serve(settings))
    except OSError as error:
        print(f"openclaw-owner: {error}", file=sys.stderr)
        return 1
    return 0


_COMMANDS = {"serve": _serve, "status": _status, "off": _off, "check": _check, "give": _give, "wait": _wait}
