# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster that a load talks to: addresses and secrets of a running lab cluster, and nothing that changes it."""

from __future__ import annotations

import dataclasses
import shlex

from lab.cluster import Cluster as LabCluster
from lab.demo import topology as build_topology

from . import collect


@dataclasses.dataclass(frozen=True)
class Cluster:
    """``replicas``: address:port of each gateway; ``topology``: the roles' own; ``containers``: host -> container."""

    name: str
    url: str
    token: str
    replicas: tuple[str, ...]
    llm_url: str
    containers: dict[str, str]
    topology: dict
    lab: LabCluster = dataclasses.field(repr=False)

    @classmethod
    def of_lab(cls, name):
        """A running lab cluster by its name. :raises OSError: when it was never brought up"""
        lab = LabCluster(name)
        lines = (lab.directory / "env").read_text().splitlines()
        env = {key: shlex.split(value)[0] for key, value in (line.split("=", 1) for line in lines)}
        return cls(
            name=name,
            url=env["OPENCLAW_URL"],
            token=env["OPENCLAW_TOKEN"],
            replicas=tuple(env["OPENCLAW_REPLICAS"].split()),
            llm_url=env["LLM_DOUBLE_URL"],
            containers={host: lab.container(host) for host in lab.hosts},
            topology=build_topology(lab),
            lab=lab,
        )

    def redis(self):
        """A client of the present primary, with the present passwords."""
        sentinels = [(one["address"], one["port"]) for one in self.topology["sentinels"]]
        access = self.lab.access("redis", "admin"), self.lab.access("sentinel", "client")
        return collect.primary_by_sentinel(sentinels, self.topology["monitor"]["name"], *access)

    def model_calls(self, run):
        """What all model doubles were shown in a run: the cloud's, and the fallback's on each of its hosts."""
        calls = collect.model_calls(self.llm_url, run)
        for node in self.topology["ollama"]:
            calls += collect.model_calls(f"http://{node['address']}:{node['port']}", run, "ollama")
        return tuple(calls)
