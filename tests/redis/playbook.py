# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's playbooks, run on a lab cluster as an operator would."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess

from lab.cluster import ROOT
from lab.cluster import Cluster as LabCluster
from lab.shell import wait_for


@dataclasses.dataclass(frozen=True)
class Played:
    """``code``: of ansible-playbook; ``changed``: host -> tasks that changed something; ``output``: all that was printed."""

    code: int
    changed: dict
    output: str

    @property
    def changes(self):
        """The lines of the tasks that changed something, each behind its task's name."""
        lines = []
        for task in re.split(r"^TASK ", self.output, flags=re.M)[1:]:
            changed = re.findall(r"^changed: .*", task, re.M)
            lines += [f"{task.splitlines()[0].rstrip(' *')}: {line}" for line in changed]
        return lines


def run(cluster, name, *options, **more):
    """Run ``playbooks/<name>.yml``; see :func:`run_file`."""
    return run_file(cluster, ROOT / f"playbooks/{name}.yml", *options, **more)


def run_file(cluster, path, *options, variables=None, check=True, seconds=900):
    """Run a playbook on a lab cluster. :raises RuntimeError: when it fails and ``check`` is set"""
    command = [ROOT / ".venv/bin/ansible-playbook", *LabCluster(cluster).inventories, path, *options]
    if variables:
        command += ["--extra-vars", json.dumps(variables)]
    environment = os.environ | {
        # Molecule asks for colours, which would be in the recap that is read below.
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
    }
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
    )
    output = done.stdout + done.stderr
    if check and done.returncode:
        raise RuntimeError(f"{path.name} ended with {done.returncode}:\n{output[-3000:]}")
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.M)
    return Played(done.returncode, {host: int(count) for host, count in recap}, output)


def switch(servers, to=None, seconds=120):
    """Run the planned switch, again while it refuses because something has not been seen yet by all. Leaves all well."""
    variables = {"redis_switch_to": to["host"]} if to else None

    def done():
        played = run(servers.cluster, "redis_switch", variables=variables, check=False)
        if played.code and "Nothing was changed" not in played.output:
            raise RuntimeError(played.output[-3000:])
        return played.code == 0

    wait_for("the planned switch", done, seconds)
    servers.settle()
