# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dr_ playbooks, and those that take one datacenter at a time, refuse what they cannot mean before they ask any host. Needs no lab."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def play(inventory, name, *options):
    """Run a playbook on a sample inventory; its exit code, and what it printed, in one line."""
    ours = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1"}
    command = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", ROOT / "inventories" / inventory, ROOT / f"playbooks/{name}.yml", *options]
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **ours}, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", ["dr_rollout", "dr_failover", "dr_failback"])
@pytest.mark.parametrize(
    "inventory, options, said",
    [
        ("two_datacenters", (), "dr_to is not set; say which datacenter is meant, with -e dr_to=main or -e dr_to=west. Nothing was changed."),
        ("two_datacenters", ("-e", "dr_to=east"), "dr_to is east; say which datacenter is meant"),
        ("two_datacenters", ("-e", "dr_to=west", "--limit", "localhost,west"), "this playbook chooses its hosts by dr_to, so it takes no limit."),
        ("three_hosts", ("-e", "dr_to=main"), "The inventory has one datacenter, main: give the hosts of the other one their own topology_datacenter"),
    ],
)
def test_what_names_no_datacenter(name, inventory, options, said):
    code, printed = play(inventory, name, *options)
    assert code == 2 and said in printed, printed[-2000:]
    assert "unreachable=1" not in printed and "TASK [Sort the hosts]" not in printed


def test_one_datacenter_at_a_time():
    code, printed = play("two_datacenters", "redis_switch")
    assert code == 2 and "The hosts of this run belong to main and west (topology_datacenter)" in printed and "add --limit" in printed, printed[-2000:]
