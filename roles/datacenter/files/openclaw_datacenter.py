# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part in what several datacenters agree on: it follows the active one, or stops when another one has taken over.

    openclaw-datacenter serve                             the service: looks every second, acts, and is ready after its first look
    openclaw-datacenter status                            what it saw last, as JSON
    openclaw-datacenter fence --reason TEXT               stop what could take a message, and keep it from starting
    openclaw-datacenter claim --datacenter D --epoch N    remember that D has the conversations, as failover does before it promotes
    openclaw-datacenter release                           forget both, as fail-back does with an emptied host

``--config FILE`` first, else /etc/openclaw-datacenter/config.json. What it decides, and why, is in datacenter.py.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import inspect
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import datacenter
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CONFIG = "/etc/openclaw-datacenter/config.json"
#: Seconds between two looks.
PERIOD = 1
#: Units that can take a message or a write; patterns match what is there, since not every host has channels.
UNITS = ("openclaw-gateway@*.service", "openclaw-ingress*.service", "openclaw-owner*.service", "redis-sentinel.service", "redis-server.service")


@dataclasses.dataclass(frozen=True)
class Host:
    """The configuration, and the files of the host's state."""

    #: This host's datacenter.
    datacenter: str
    #: Each datacenter's Redis servers, as ``host``, ``address`` and ``port``, by its name.
    sites: dict
    #: ``address:port`` of this host's own Redis, None where it has none.
    local: str | None
    #: ``username`` and ``password_file``, and where TLS is spoken ``tls_ca``, ``tls_cert`` and ``tls_key``.
    access: dict
    #: Seconds to wait for a connection or a reply.
    timeout: float
    #: Directory of what must outlive a restart of the host.
    state: pathlib.Path
    #: Directory of what it saw last.
    run: pathlib.Path

    @classmethod
    def read(cls, path):
        document = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        known = {field.name: document[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**known, "state": pathlib.Path(known["state"]), "run": pathlib.Path(known["run"])})

    @property
    def fence(self):
        """The file that keeps the units from starting (ConditionPathExists)."""
        return self.state / "fenced"

    @property
    def claim(self):
        """The newest claim that this host has seen."""
        return self.state / "claim.json"

    def remembered(self):
        """The claim in the file, None without one."""
        return datacenter.parse(self.claim.read_text(encoding="utf-8")) if self.claim.exists() else None


def write(path, content):
    """Replace a file at once, and for good."""
    beside = path.with_name(f"{path.name}.new")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def remember(host, claim):
    """Keep a claim, unless it is known."""
    if claim is not None and claim != host.remembered():
        write(host.claim, datacenter.text(claim))


def fence(host, reason):
    """Keep the units from starting, then stop them; returns whether anything was changed.

    A gateway has no time to finish what it is answering: whoever is asked here has no say in the conversations any more.
    """
    changed = not host.fence.exists()
    if changed:
        write(host.fence, json.dumps({"reason": reason, "since": now()}))
    subprocess.run(["systemctl", "kill", "--signal=SIGKILL", UNITS[0]], check=False, capture_output=True)
    subprocess.run(["systemctl", "stop", *UNITS], check=True, capture_output=True, timeout=120)
    return changed


def now():
    """This moment, as text."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def unnamed():
    """Keeps newer versions of the library from sending CLIENT SETINFO: each one refused is an entry in the server's ACL log."""
    known = inspect.signature(redis.Redis.__init__).parameters
    return {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None} if "lib_name" in known else {}


class Servers:
    """The Redis servers of all datacenters; connections are kept between two looks."""

    def __init__(self, host):
        self._host = host
        self._clients = {}
        nodes = [node for nodes in host.sites.values() for node in nodes]
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(nodes)))

    def client(self, node):
        """The connection to a node."""
        key = datacenter.at(node)
        if key not in self._clients:
            access = self._host.access
            tls = {}
            if access.get("tls_ca"):
                names = {"ssl_ca_certs": "tls_ca", "ssl_certfile": "tls_cert", "ssl_keyfile": "tls_key"}
                tls = {"ssl": True, **{option: access[name] for option, name in names.items()}}
            self._clients[key] = redis.Redis(
                host=node["address"], port=node["port"], username=access["username"],
                password=pathlib.Path(access["password_file"]).read_text(encoding="utf-8").strip(), **tls,
                socket_timeout=self._host.timeout, socket_connect_timeout=self._host.timeout, decode_responses=True,
                # Newer versions of the library retry by themselves, and tell the server their name, which the user may not.
                retry=Retry(NoBackoff(), 0), **unnamed(),
            )  # fmt: skip
        return self._clients[key]

    def look(self):
        """What everybody says, by datacenter."""
        asked = {name: [self._pool.submit(self._ask, node) for node in nodes] for name, nodes in self._host.sites.items()}
        return {name: [one.result() for one in answers] for name, answers in asked.items()}

    def _ask(self, node):
        try:
            client = self.client(node)
            info = client.info()
            primary = info["role"] == "master"
            size = info.get("db0", {}).get("keys", 0)
            return {
                **node,
                "role": info["role"],
                "primary": None if primary else f"{info['master_host']}:{info['master_port']}",
                "link": primary or info["master_link_status"] == "up",
                "offset": info["master_repl_offset"] if primary else info["slave_repl_offset"],
                "heard": 0 if primary else info.get("master_last_io_seconds_ago", -1),
                "size": size,
                "claim": datacenter.parse(client.get(datacenter.KEY)) if size else None,
            }
        except (redis.RedisError, OSError) as error:
            # A connection that broke is no answer; the next look makes a new one.
            self._clients.pop(datacenter.at(node), None)
            return {**node, "error": str(error) or type(error).__name__}

    def follow(self, node, address):
        """Make this host's own Redis a replica of another server, in its file too."""
        upstream, port = address.rsplit(":", 1)
        client = self.client(node)
        client.execute_command("REPLICAOF", upstream, port)
        client.config_rewrite()


def look(host, servers, contact=None):
    """One look, and what follows from it; returns what is to be shown.

    :param contact: when the active datacenter's primary was seen last, as ``seen``, its ``offset`` and this host's ``own``
    """
    if host.fence.exists():
        return {"state": "fenced", **json.loads(host.fence.read_text(encoding="utf-8")), "seen": now()}
    sites = servers.look()
    own = next((node for node in sites.get(host.datacenter, []) if datacenter.at(node) == host.local), None)
    shown = {"seen": now(), "contact": contact, "sites": {name: [_plain(node) for node in nodes] for name, nodes in sites.items()}}
    try:
        decision = datacenter.decide(host.datacenter, host.remembered(), own, sites)
    except ValueError as error:
        return {**shown, "state": "disagreed", "why": f"{error}. Nothing is done until an operator has decided; see docs/dr.md."}
    if decision.action == "fence":
        fence(host, decision.why)
    remember(host, decision.claim)
    if decision.state == "standby":
        source = datacenter.primary_of(sites.get(decision.claim.datacenter, []))
        if source is not None:
            shown["contact"] = {"seen": shown["seen"], "offset": source["offset"], "own": (own or {}).get("offset")}
    if decision.action == "follow":
        try:
            servers.follow(own, decision.address)
        except redis.RedisError as error:
            return {**shown, "state": decision.state, "claim": _plain(decision.claim), "why": f"{decision.why} It refused: {error}"}
    return {**shown, "state": decision.state, "claim": _plain(decision.claim), "why": decision.why}


def _plain(value):
    """Data without tuples of ours."""
    if isinstance(value, datacenter.Claim):
        return value._asdict()
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def notify(text):
    """Tell systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def serve(host):
    """Look until told to stop; a change of state is said once."""
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    servers, said, shown = Servers(host), None, {}
    if host.fence.exists():
        # An earlier life may have ended before all of it was stopped.
        fence(host, "")
    while not stop.is_set():
        shown = look(host, servers, shown.get("contact"))
        write(host.run / "status.json", json.dumps(shown))
        line = f"{shown['state']}: {shown.get('why') or shown.get('reason')}"
        if line != said:
            print(line, flush=True)
            said = line
        notify("READY=1\nWATCHDOG=1")
        stop.wait(PERIOD)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="openclaw-datacenter", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--config", default=CONFIG)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "status", "release"):
        commands.add_parser(name)
    commands.add_parser("fence").add_argument("--reason", required=True)
    claims = commands.add_parser("claim")
    claims.add_argument("--datacenter", required=True)
    claims.add_argument("--epoch", type=int, required=True)
    arguments = parser.parse_args()
    host = Host.read(arguments.config)
    if arguments.command == "serve":
        serve(host)
    elif arguments.command == "status":
        try:
            print((host.run / "status.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            sys.exit("Nothing was seen yet: openclaw-datacenter.service has just been started, or does not run (systemctl status openclaw-datacenter).")
    elif arguments.command == "fence":
        print(json.dumps({"changed": fence(host, arguments.reason)}))
    elif arguments.command == "claim":
        if host.fence.exists():
            reason = json.loads(host.fence.read_text(encoding="utf-8"))["reason"]
            sys.exit(f"This host is fenced ({reason}): it cannot claim anything.")
        wanted = datacenter.Claim(arguments.datacenter, arguments.epoch)
        before = host.remembered()
        if before is not None and before.epoch > wanted.epoch:
            sys.exit(f"This host knows of epoch {before.epoch} ({before.datacenter}); epoch {wanted.epoch} is older.")
        remember(host, wanted)
        print(json.dumps({"changed": before != wanted}))
    else:
        present = [path for path in (host.fence, host.claim) if path.exists()]
        for path in present:
            path.unlink()
        print(json.dumps({"changed": bool(present)}))


if __name__ == "__main__":
    main()
