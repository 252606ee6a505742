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
