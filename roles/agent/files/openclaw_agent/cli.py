# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: the drain switch for people and playbooks, and the service itself for systemd."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import tempfile
import time
import urllib.error
import urllib.request

from . import config, drain

#: Seconds that the service may take to answer: it does from memory.
_TIMEOUT = 3


def main(arguments=None):
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = config.load(options.config)
        if options.command == "check":
            return 0
        if options.command == "serve":
            return _serve(settings)
        if options.command == "certificates":
            return _certificates(settings)
        return _switch(options, settings)
    except config.ConfigError as error:
        print(f"openclaw-agent: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"openclaw-agent: {error.filename}: {error.strerror}: run this as root", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="openclaw-agent", description="The verdict on this host's gateway replicas, and the switch that drains them.")
    parser.add_argument("--config", default=config.PATH, help="configuration file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("drain", "send no new requests to replicas; what they have, they finish"),
        ("ready", "the opposite of drain"),
        ("status", "show the verdict on replicas, all of this host by default"),
    ):
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("replicas", nargs="*", metavar="REPLICA", help="a replica's id, such as node1-1")
        one.add_argument("--all", action="store_true", help="all replicas of this host")
        one.add_argument("--json", action="store_true", help="print JSON")
        if name == "drain":
            one.add_argument("--reason", default="", help="why, for those who find it drained")
    commands.add_parser("serve", help="be the service (for systemd)")
    commands.add_parser("certificates", help="write down when this host's certificates end (for systemd)")
    commands.add_parser("check", help="check the configuration file")
    return parser


def _switch(options, settings):
    known = {one["id"]: one for one in settings["replicas"]}
    if strangers := [name for name in options.replicas if name not in known]:
        raise config.ConfigError(f"no replica {', '.join(strangers)} on this host; it has {', '.join(known) or 'none'}.")
    if options.all and options.replicas:
        raise config.ConfigError("name replicas, or say --all, not both.")
    if not options.all and not options.replicas and options.command != "status":
        raise config.ConfigError(f"name the replicas ({', '.join(known)}), or say --all.")
    chosen = list(dict.fromkeys(options.replicas)) or list(known)
    if options.command == "status":
        return _status(options, settings, [known[name] for name in chosen])

    directory, results = settings["drain_directory"], []
    for name in chosen:
        if options.command == "drain":
            changed = drain.drain(directory, name, _person(), options.reason)
        else:
            changed = drain.ready(directory, name)
        results.append({"replica": name, "changed": changed, "drain": drain.read(directory, name)})
    if options.json:
        print(json.dumps(results))
    else:
        for one in results:
            print(f"{one['replica']}: {_switched(one)}")
    return 0


def _switched(one):
    already = "" if one["changed"] else "already "
    return f"{already}drained{_since(one['drain'])}" if one["drain"] else f"{already}ready"


def _since(switch):
    parts = [f" since {switch['since']}" if switch["since"] else "", f" by {switch['by']}" if switch["by"] else ""]
    return "".join(parts) + (f" ({switch['reason']})" if switch["reason"] else "")


def _person():
    """Who does this, also behind sudo."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def _status(options, settings, replicas):
    """Show the service's verdicts; without the service, what the switch says. Exit status 1 when it does not answer."""
    found, silent = [], False
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for replica in replicas:
        try:
            body = _ask(opener, replica["verdict_port"])
        except (OSError, ValueError) as error:
            silent = True
            switch = drain.read(settings["drain_directory"], replica["id"])
            body = {"status": "unknown", "replica": replica["id"], "problems": [f"the agent does not answer: {error}"], "drain": switch}
        found.append(body)
    if options.json:
        print(json.dumps(found))
    else:
        for body in found:
            switch = f"; drained{_since(body['drain'])}" if body["drain"] else ""
            print(f"{body['replica']}: {body['status']}{switch}")
            for problem in body["problems"]:
                print(f"  {problem}")
    return 1 if silent else 0


def _ask(opener, port):
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=_TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return json.load(error)


def _serve(settings):
    import asyncio  # here and below: the switch works without what only the service needs
    import logging

    from . import service

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(service.serve(settings))
    return 0


def _certificates(settings):
    """Runs with the right to read all files, and hands the service nothing but dates."""
    from . import probes

    body = {"looked_at": time.time(), "ends": probes.certificates(settings["certificates"])}
    path = settings["certificates_file"]
    handle, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(body, file)
        os.fchmod(file.fileno(), 0o644)
    os.replace(temporary, path)
    return 0
