# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's playbooks, run on a lab cluster as an operator would."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
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


def killed_at(cluster, name, step, variables):
    """Run ``playbooks/<name>.yml``, and kill it (SIGKILL, with all its processes) when it comes to a task; a look beforehand does not count.

    :raises RuntimeError: when it never comes there
    """
    words, environment = _call(cluster, ROOT / f"playbooks/{name}.yml", (), variables)
    seen = []
    with subprocess.Popen(
        words, cwd=ROOT, env=environment | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        for line in running.stdout:
            seen.append(line)
            if line.startswith("TASK") and step in line and "only a look" not in line:
                os.killpg(running.pid, signal.SIGKILL)
                return
    raise RuntimeError(f"{name}.yml never came to {step!r}:\n{''.join(seen)[-3000:]}")


def _call(cluster, path, options, variables):
    """The words and the environment of a run."""
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
    return [str(word) for word in command], environment


def run_file(cluster, path, *options, variables=None, check=True, seconds=900):
    """Run a playbook on a lab cluster. :raises RuntimeError: when it fails and ``check`` is set"""
    words, environment = _call(cluster, path, options, variables)
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
