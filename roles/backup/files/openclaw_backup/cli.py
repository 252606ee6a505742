# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: for timers, for playbooks and for people."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from . import actions, config, plan, records, restore

TIMERS = {action: f"openclaw-backup-{action}.timer" for action in records.ACTIONS}


def main(arguments=None):
    """Run one command. Exit status 1: it was not done, and a sentence says why; 2: the configuration is wrong."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)
    host = ""
    try:
        settings = config.load(options.config)
        host = f"{settings['host']}: "
        return _command(options, settings)
    except plan.Problem as problem:
        print(f"{host}{problem}.".replace("..", "."), file=sys.stderr)
        return 2 if problem.kind == "config" else 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}.", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="openclaw-backup", description="Encrypted backups of Redis and of the gateways, and their restore.")
    parser.add_argument("--config", default=config.PATH, help="configuration file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, text, *arguments):
        one = commands.add_parser(name, help=text, description=text)
        for words, more in arguments:
            one.add_argument(*words, **more)

    snapshot = (("snapshot",), {"metavar": "SNAPSHOT", "help": "latest, or the first digits of an ID"})
    stamp = (("--stamp",), {"required": True, "help": "name of this restore"})
    within = (("--within",), {"type": float, "default": 600, "help": "seconds (default: %(default)s)"})
    dry = (("--dry",), {"action": "store_true", "help": "say what would be done, and change nothing"})
    add("make", "make a backup now", dry)
    add("check", "check the repository, and read the next part of its data")
    add("prove", "restore the newest snapshot of Redis aside, and compare it with its manifest")
    add("init", "make the repository if there is none")
    add("list", "show the snapshots")
    add("status", "show the records of the last runs, as JSON")
    add("holds", "show whether Redis of this host holds data, as JSON")
    add(
        "stage",
        "fetch a snapshot of Redis, prove it, and have it ready beside the data",
        snapshot,
        (("--site",), {"help": "datacenter that it was made in (default: this host's)"}),
        (("--discard",), {"action": "store_true", "help": "prove it only"}),
    )
    add("swap", "put what is staged in the place of the data, which is kept", stamp, (("--follow",), {"metavar": "ADDRESS:PORT", "help": "be a replica"}))
    add("ready", "wait until Redis has loaded its data", within)
    add("synced", "wait until Redis follows a primary", (("primary",), {"metavar": "ADDRESS:PORT"}), within)
    add("manifest", "show the manifest of what is staged, as JSON")
    add("compare", "compare the data of Redis with a manifest on standard input")
    add("gateway", "put configuration and workspaces of the gateways back", snapshot, stamp, dry)
    add("check-config", "check the configuration file")
    return parser


def _endpoint(text):
    address, _colon, port = text.rpartition(":")
    if not address or not port.isdecimal():
        raise plan.Problem(f"{text!r} is no ADDRESS:PORT", "config")
    return address, int(port)


def _command(options, settings):
    name = options.command
    if name == "check-config":
        return 0
    if name == "make" and options.dry:
        actions.opened(settings, actions.repositories(settings)[0])
        return _show({"would": actions.outlook(settings)})
    if name in records.ACTIONS:
        record = actions.run(settings, name)
        _show(record)
        for problem in record["problems"]:
            print(f"{settings['host']}: {problem}", file=sys.stderr)
        return 0 if record["ok"] else 1
    if name == "init":
        return _show({"made": actions.init(settings)})
    if name == "list":
        return _list(settings)
    if name == "status":
        return _show(_status(settings))
    return _restore(options, settings)


def _restore(options, settings):
    name = options.command
    if name == "gateway":
        if settings["gateway"] is None:
            raise plan.Problem("there is no gateway on this host", "config")
        return _show(restore.gateway(settings, options.snapshot, options.stamp, options.dry))
    if settings["redis"] is None:
        raise plan.Problem("there is no Redis on this host", "config")
    if name == "holds":
        return _show(restore.holds(settings))
    if name == "stage":
        return _show(restore.stage(settings, options.snapshot, options.site, options.discard))
    if name == "swap":
        return _show(restore.swap(settings, options.stamp, _endpoint(options.follow) if options.follow else None))
    if name == "ready":
        restore.ready(settings, options.within)
    if name == "synced":
        restore.synced(settings, options.primary, options.within)
    if name == "manifest":
        return _show(restore.manifest_of(settings))
    if name == "compare":
        try:
            manifest = json.load(sys.stdin)
        except ValueError:
            raise plan.Problem("what came on standard input is no manifest", "config") from None
        report = restore.compare(settings, manifest)
        _show(report)
        return 0 if report["equal"] else 1
    return 0


def _show(value):
    print(json.dumps(value))
    return 0


def _list(settings):
    for one in sorted(actions.opened(settings, actions.repositories(settings)[0]).snapshots(), key=lambda one: one["time"]):
        print(f"{one['id'][:8]}  {one['time'][:19]}  {one['hostname']}  {' '.join(one.get('tags') or [])}")
    return 0


def _status(settings):
    """What status.yml shows: records, how old they may be, and whether the timers run."""
    wanted = {action: unit for action, unit in TIMERS.items() if action == "make" or settings["redis"]}
    done = subprocess.run(["systemctl", "is-active", "--", *wanted.values()], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return {
        "records": records.read(settings["state_directory"]),
        "timers": dict(zip(wanted.values(), done.stdout.split())),
        "max_age": settings["max_age"],
        "restore_max_age": settings["restore_max_age"],
        "kinds": [what for what in ("redis", "gateway") if settings[what]],
    }
