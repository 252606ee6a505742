# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that balances: which one it is, and another one for a while."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import threading

import requests

from lab.cluster import Cluster as LabCluster
from lab.shell import run_logged, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENGINES = ("haproxy", "nginx")


def engine(cluster, host=None):
    """The engine that runs on a balancer's host (default: the first balancer's)."""
    host = host or cluster.topology["balancers"][0]["host"]
    for name in ENGINES:
        if is_active(cluster, host, f"{name}.service"):
            return name
    raise RuntimeError(f"{host}: neither haproxy nor nginx is active")


def is_active(cluster, host, unit):
    command = ["docker", "exec", cluster.containers[host], "systemctl", "is-active", unit]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout.strip() == "active"


def answers(url):
    """Whether a gateway is seen behind a URL."""
    try:
        return "replica" in requests.get(f"{url}/api/v1/health", timeout=2).json()
    except (requests.RequestException, ValueError):
        return False


def converge(cluster, **variables):
    """Run engine.yml with these variables."""
    lab = LabCluster(cluster.name)
    command = [ROOT / ".venv/bin/ansible-playbook", *lab.inventories, "--extra-vars", json.dumps(variables), ROOT / "tests/traffic/engine.yml"]
    run_logged(command, lab.directory / "engine.log", lambda line: None, cwd=ROOT, env=os.environ | {"ANSIBLE_NOCOLOR": "1"})


#: Runs on a balancer's host: what HAProxy makes of its servers, one line when it changes, until its input ends.
#: All containers share the machine's monotonic clock.
WATCH = """
import json, select, socket, sys, time
known = {}
while not select.select([sys.stdin], [], [], 0.1)[0]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect("/run/haproxy/admin.sock")
            connection.sendall(b"show stat\\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except OSError:
        text = ""
    head, *rows = [line.split(",") for line in text.splitlines() if line] or [[]]
    for row in rows:
        one = dict(zip(head, row))
        state = (one["status"].split()[0], int(one["weight"] or 0)) if row[0] == "gateways" and row[1] != "BACKEND" else None
        if state and known.get(row[1]) != state:
            known[row[1]] = state
            print(json.dumps([time.monotonic(), row[1], *state]), flush=True)
"""


@contextlib.contextmanager
def watched(cluster):
    """Yields a list that gets [moment, replica, state, weight] whenever HAProxy on the first balancer changes its mind; with nginx none."""
    changes, host = [], cluster.topology["balancers"][0]["host"]
    command = ["docker", "exec", "--interactive", cluster.containers[host], "python3", "-c", WATCH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watcher:
        reader = threading.Thread(target=lambda: changes.extend(json.loads(line) for line in watcher.stdout), daemon=True)
        reader.start()
        try:
            yield changes
        finally:
            watcher.stdin.close()
            reader.join()


@contextlib.contextmanager
def with_profile(cluster, name):
    """The virtual address with this profile; afterwards with the inventory's again."""
    converge(cluster, vip_profile=name)
    try:
        yield
    finally:
        converge(cluster)


@contextlib.contextmanager
def with_engine(cluster, name, hosts="openclaw_balancers", **variables):
    """Balancers with this engine, and with these variables of the role; afterwards with the inventory's again."""
    converge(cluster, engine_hosts=hosts, balancer_engine=name, **variables)
    try:
        for balancer in cluster.topology["balancers"]:
            if hosts in ("openclaw_balancers", balancer["host"]):
                url = f"http://{balancer['address']}:{balancer['port']}"
                wait_for(f"{name} on {balancer['host']}", lambda url=url: answers(url))
        yield
    finally:
        converge(cluster, engine_hosts=hosts)
