# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: the journal for people and playbooks, and the service itself for systemd."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import logging
import sys

from . import config, decision

#: Seconds that Redis has for an answer to a command, at least: no provider waits for it, and a busy machine is no outage.
_PATIENCE = 3.0


def main(arguments=None):
    """Run one command; returns the exit status: 0, 1 when something is away or an id is not there, 2 when the configuration is wrong."""
    options = _parser().parse_args(arguments)
    from .primary import RedisAway  # `check` works without what only the others need

    try:
        settings = config.load(options.config)
        if options.command == "check":
            return 0
        if options.command == "serve":
            return _serve(settings)
        return asyncio.run(_command(options, settings))
    except config.ConfigError as error:
        print(f"openclaw-ingress: {error}", file=sys.stderr)
        return 2
    except RedisAway as error:
        print(f"openclaw-ingress: Redis is away: {error}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="openclaw-ingress", description="The journal of webhooks in front of the gateways.")
    parser.add_argument("--config", default=config.PATH, help="configuration file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--json", action="store_true", help="print JSON")
        return one

    listed = command("list", "list the events that wait, oldest first")
    listed.add_argument("--dead", action="store_true", help="list the dead letters instead")
    shown = command("show", "show one event")
    shown.add_argument("id", metavar="ID", type=_id)
    shown.add_argument("--body", action="store_true", help="with its headers and body, which are somebody's words")
    replayed = command("replay", "put dead letters at the end of their conversations, as if they had come now")
    replayed.add_argument("ids", metavar="ID", type=_id, nargs="*")
    replayed.add_argument("--all", action="store_true", help="all dead letters but those whose turn is stored (unsent)")
    command("drop", "forget events, waiting or dead").add_argument("ids", metavar="ID", type=_id, nargs="+")
    command("status", "show what the journal holds")
    commands.add_parser("serve", help="be the service (for systemd)")
    commands.add_parser("check", help="check the configuration file")
    return parser


def _id(text):
    first, dash, second = text.partition("-")
    if not (dash and first.isdecimal() and second.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of an event, such as 1764230000000-0")
    return text


async def _command(options, settings):
    from .journal import Journal
    from .primary import Primary

    # What it says of Redis, the exit status and its line say too.
    logging.getLogger("openclaw_ingress").setLevel(logging.ERROR)
    primary = Primary(settings | {"redis_timeout": max(settings["redis_timeout"], _PATIENCE)})
    try:
        return await _COMMANDS[options.command](options, Journal(settings, primary, "cli"))
    finally:
        await primary.close()


async def _list(options, journal):
    entries = [one async for one in journal.entries(options.dead)]
    if options.json:
        print(json.dumps([_document(one, options.dead) for one in entries]))
        return 0
    rows = [("ID", "ACCOUNT", "EVENT", "CONVERSATION", "SINCE" if options.dead else "AGE", "ATTEMPTS", "BYTES", "STATE")]
    for one in entries:
        age = _duration(one.now - one.at)
        conversation = one.conversation.removeprefix(f"{one.meta.account}/")
        rows.append((one.id, one.meta.account, one.meta.event, conversation, age, str(one.state.attempts), str(one.bytes), _state(one, options.dead)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    return 0


async def _show(options, journal):
    entry, dead = await journal.entry(options.id)
    if entry is None:
        return _missing([options.id])
    found = _document(entry, dead)
    if options.body:
        body = await journal.body(options.id)
        found |= {"headers": [list(one) for one in entry.meta.headers], "body": (body or b"").decode("utf-8", "replace")}
    if options.json:
        print(json.dumps(found))
        return 0
    for key, value in found.items():
        if key == "headers":
            value = "; ".join(f"{name}: {text}" for name, text in value)
        print(f"{key + ':':<15}{'-' if value in (None, '') else value}")
    return 0


async def _replay(options, journal):
    if bool(options.ids) == options.all:
        raise config.ConfigError("name the events to replay, or say --all.")
    reasons = {one.id: one.state.reason async for one in journal.entries(dead=True)}
    if stored := [one for one in options.ids if reasons.get(one) == decision.UNSENT]:
        raise config.ConfigError(f"{', '.join(stored)}: the turn is stored, so nobody runs it again; see whether the person has the answer, and drop it.")
    ids = options.ids or [one for one, reason in reasons.items() if reason != decision.UNSENT]
    return _changed(options, ids, await journal.replay(ids) if ids else [], "replayed")


async def _drop(options, journal):
    return _changed(options, options.ids, await journal.drop(options.ids), "dropped")


async def _status(options, journal):
    size = await journal.look()
    if options.json:
        print(json.dumps(dataclasses.asdict(size)))
    else:
        high = " (above the high-water mark)" if size.high else ""
        print(f"{size.events} events of {size.conversations} conversations wait, {size.bytes} bytes{high}; the oldest for {_duration(size.oldest)}")
        print(f"{size.dead} dead letters, {size.dead_bytes} bytes")
    return 0


def _document(entry, dead):
    return {
        "id": entry.id,
        "account": entry.meta.account,
        "event": entry.meta.event,
        "conversation": entry.conversation.removeprefix(f"{entry.meta.account}/"),
        "accepted": _time(int(entry.id.partition("-")[0]) / 1000),
        "died" if dead else "waits_since": _time(entry.at),
        "state": "dead" if dead else "waiting" if entry.state.delivered is None else "delivered",
        "reason": entry.state.reason,
        "attempts": entry.state.attempts,
        "replica": entry.state.replica,
        "bytes": entry.bytes,
    }


def _state(entry, dead):
    if dead:
        return entry.state.reason
    if entry.state.delivered is not None:
        return f"{'claimed' if entry.state.claimed else 'delivered'} on {entry.state.replica}"
    return f"failed on {entry.state.replica}" if entry.state.attempts else "waiting"


def _time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="milliseconds")


def _duration(seconds):
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def _changed(options, wanted, done, word):
    missing = [one for one in wanted if one not in done]
    if options.json:
        print(json.dumps({word: done, "missing": missing}))
    else:
        for one in done:
            print(f"{one}: {word}")
    return _missing(missing) if missing else 0


def _missing(ids):
    print(f"openclaw-ingress: no such event: {', '.join(ids)}", file=sys.stderr)
    return 1


_COMMANDS = {"list": _list, "show": _show, "replay": _replay, "drop": _drop, "status": _status}


def _serve(settings):
    from . import service

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # What the library says of a bad request may quote it.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    asyncio.run(service.serve(settings))
    return 0
