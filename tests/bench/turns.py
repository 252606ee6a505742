# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns with and without the plugin, side by side; turns a second with one replica and with all."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import statistics
import threading
import time

import requests

from lab.shell import wait_for
from tests.history.faults import execute, provider, started

#: Two gateways of their own beside a host's replicas: alike but for the plugin, and as new as each other.
PORTS = {"plain": 20789, "plugin": 20909}
#: Runs on the host. Arguments: instance, name, port, whether the plugin stays.
PREPARE = """
import json, pathlib, shutil, sys
instance, name, port, plugin = sys.argv[1:]
source = pathlib.Path("/etc/openclaw/gateway") / instance
home = pathlib.Path("/var/lib/openclaw") / name
config = json.loads((source / "openclaw.json").read_text())
config["gateway"]["port"] = int(port)
config["agents"]["defaults"]["workspace"] = f"{home}/workspace"
plugins = config["plugins"]
if plugin == "yes":
    plugins["entries"]["shared-state"]["config"] |= {
        "replica": name, "peers": [], "gatewayUrl": f"http://127.0.0.1:{port}", "spoolDir": f"{home}/spool"}
else:
    del plugins["entries"]["shared-state"], plugins["slots"]["contextEngine"], plugins["load"]
environment = {}
for line in (source / "replica.env").read_text().splitlines():
    key, value = line.split("=", 1)
    environment[key] = value.strip('"')
environment |= {"HOME": str(home), "OPENCLAW_CONFIG_PATH": f"{home}/openclaw.json", "OPENCLAW_STATE_DIR": f"{home}/state",
                "OPENCLAW_TRAJECTORY": "0"}
for path in (home, home / "state", home / "workspace"):
    path.mkdir(exist_ok=True)
(home / "openclaw.json").write_text(json.dumps(config))
(home / "replica.env").write_text("".join(f'{key}="{value}"\\n' for key, value in environment.items()))
state = next(pathlib.Path("/var/lib/openclaw", instance).glob("*/state/agents/*/agent/settings.json"))
target = home / "state" / state.relative_to(state.parents[3])
target.parent.mkdir(parents=True, exist_ok=True)
shutil.copy(state, target)
for path in (home, *home.rglob("*")):
    shutil.chown(path, "openclaw", "openclaw")
"""


@contextlib.contextmanager
def _gateways(cluster):
    """Start both gateways on the first replica's host; stop and remove them afterwards. Yields {name: base URL}."""
    replica = cluster.topology["replicas"][0]
    host, instance = replica["host"], str(replica["instance"])
    names = {kind: f"bench-{kind}" for kind in PORTS}
    try:
        for kind, name in names.items():
            plugin = "yes" if kind == "plugin" else "no"
            execute(cluster, host, "python3", "-c", PREPARE, instance, name, str(PORTS[kind]), plugin)
            execute(
                cluster, host, "systemd-run", "--quiet", f"--unit={name}", "--uid=openclaw", "--gid=openclaw",
                f"--property=EnvironmentFile=/etc/openclaw/gateway/{instance}/secrets.env",
                f"--property=EnvironmentFile=/var/lib/openclaw/{name}/replica.env",
                "/bin/sh", "-c", 'exec node "$OPENCLAW_RELEASE/node_modules/openclaw/openclaw.mjs" gateway run',
            )  # fmt: skip
            wait_for(name, lambda kind=kind: started({**replica, "port": PORTS[kind]}), 240)
        yield {kind: f"http://{replica['address']}:{port}" for kind, port in PORTS.items()}
    finally:
        for name in names.values():
            execute(cluster, host, "sh", "-c", f"systemctl stop {name}.service; rm -rf /var/lib/openclaw/{name}")


def _chat(session, url, token, conversation, text):
    """One turn through the gateway's own API. :returns: seconds"""
    headers = {"Authorization": f"Bearer {token}", "x-openclaw-session-key": f"agent:main:api:web:{conversation}"}
    body = {"model": "openclaw/default", "messages": [{"role": "user", "content": text}]}
    return _timed(session, f"{url}/v1/chat/completions", headers, body)


def _message(session, url, token, conversation, text):
    """One turn through our own route. :returns: seconds"""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}
    return _timed(session, f"{url}/api/v1/message", headers, {"channel": "web", "user_id": conversation, "message": text})


def _timed(session, url, headers, body):
    began = time.monotonic()
    response = session.post(url, json=body, headers=headers, timeout=120)
    response.raise_for_status()
    return time.monotonic() - began


def compare(cluster, count, each=10):
    """Time turns of three kinds in turn, so that whatever else the machine does meets all of them alike.

    :param count: turns of each kind, in conversations of ``each``; five of each kind before them are not counted
    :returns: {kind: {"p50", "p95"} in seconds, and for the two with the plugin "ratio": p50 over that without}
    """
    run = secrets.token_hex(3)
    with _gateways(cluster) as urls, requests.Session() as session:
        kinds = {
            "without": (_chat, urls["plain"]),
            "with": (_chat, urls["plugin"]),
            "POST /api/v1/message": (_message, urls["plugin"]),
        }
        seconds = {kind: [] for kind in kinds}
        for number in range(-5, count):
            for kind, (send, url) in kinds.items():
                conversation = f"bench-{run}-{list(kinds).index(kind)}-{number // each}"
                taken = send(session, url, cluster.token, conversation, f"turn number {number}")
                if number >= 0:
                    seconds[kind].append(taken)
    result = {kind: {"p50": statistics.median(times), "p95": _p95(times)} for kind, times in seconds.items()}
    for kind in ("with", "POST /api/v1/message"):
        result[kind]["ratio"] = result[kind]["p50"] / result["without"]["p50"]
    return result


def _p95(times):
    return statistics.quantiles(times, n=20)[-1]


def throughput(cluster, seconds, clients=24, answer_seconds=2):
    """Turns a second with a slow LLM, first on one replica, then on all of them.

    :returns: {number of replicas: {"turns_per_second", "p50", "p95" in seconds}}
    """
    result = {}
    with provider(cluster, "slow", seconds=answer_seconds):
        for replicas in (cluster.replicas[:1], cluster.replicas):
            times = _load(replicas, cluster.token, seconds, clients)
            result[len(replicas)] = {
                "turns_per_second": len(times) / seconds,
                "p50": statistics.median(times),
                "p95": _p95(times),
            }
    return result


def _load(replicas, token, seconds, clients):
    """Clients with a conversation each, for so many seconds. :returns: seconds of each turn that ended in time"""
    run, end, times, failed = secrets.token_hex(3), time.monotonic() + seconds, [], []

    def converse(client):
        try:
            with requests.Session() as session:
                url = f"http://{replicas[client % len(replicas)]}"
                for number in itertools.count():
                    if time.monotonic() >= end:
                        return
                    taken = _message(session, url, token, f"load-{run}-{client}", f"turn number {number}")
                    if time.monotonic() < end:
                        times.append(taken)
        except requests.RequestException as error:
            failed.append(error)

    threads = [threading.Thread(target=converse, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return times


def table(result):
    """The result as Markdown lines."""
    lines = ["| a turn | p50 | p95 | p50 over the one without |", "|---|---|---|---|"]
    for kind, found in result["turn"].items():
        ratio = f"{found['ratio']:.2f}" if "ratio" in found else "1"
        lines.append(f"| {kind} | {found['p50'] * 1000:.0f} ms | {found['p95'] * 1000:.0f} ms | {ratio} |")
    lines += ["", "| replicas | turns a second | p50 | p95 |", "|---|---|---|---|"]
    for replicas, found in result["throughput"].items():
        lines.append(f"| {replicas} | {found['turns_per_second']:.1f} | {found['p50']:.1f} s | {found['p95']:.1f} s |")
    return lines
