"""backup.yml and restore.yml where they have to refuse, before they have touched a host."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def play(tmp_path):
    """``play("restore", "--limit", "node1", key="value")``: (exit status, output) on hosts that are this machine."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}

    def run(name, *options, second=None, **variables):
        hosts = {"node1": host, "node2": {**host, **(second or {})}}
        inventory = tmp_path / "inventory.yml"
        inventory.write_text(json.dumps({"openclaw": {"children": {"openclaw_redis": {"hosts": hosts}}}}))
        command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(ROOT / f"playbooks/{name}.yml"), *options]
        passwords = {"redis_password": "x", "sentinel_password": "x"}
        ours = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1"}
        environment = {**os.environ, **ours}
        command += ["--extra-vars", json.dumps({**passwords, **variables})]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout

    return run


RESTORE = {
    "limit": (("--limit", "node1"), {"backup_repository": "/r", "restore_snapshot": "latest"}, "--limit node1: a server that is left out would bring its old"),
    "no repository": ((), {"restore_snapshot": "latest"}, "backup_repository: found none; set it to the one that the backup was made in."),
    "no snapshot": ((), {"backup_repository": "/r"}, "restore_snapshot: found none; allowed latest, or the first digits of an ID"),
    "unknown datacenter": (
        (),
        {"backup_repository": "/r", "restore_snapshot": "latest", "restore_datacenter": "nowhere"},
        "restore_datacenter: found nowhere; allowed one of main",
    ),
    "no password": ((), {"backup_repository": "/r", "restore_snapshot": "latest"}, "backup_password: found none; allowed any text"),
    "one place twice": (
        (),
        {"backup_repository": "/r", "backup_offsite_repository": "/r", "backup_password": "p", "restore_snapshot": "latest"},
        "backup_offsite_repository: found the same as backup_repository",
    ),
}


@pytest.mark.parametrize("case", RESTORE)
def test_a_restore_is_refused(case, play):
    options, variables, words = RESTORE[case]
    code, output = play("restore", "--check", *options, **variables)
    assert code == 2 and words in output and "changed=1" not in output


def test_of_two_datacenters_none_is_guessed(play):
    code, output = play("restore", "--check", second={"topology_datacenter": "second"}, backup_repository="/r", restore_snapshot="latest")
    assert code == 2 and "restore_datacenter: found none; allowed one of main, second" in output


def test_a_backup_to_nowhere_is_refused(play):
    code, output = play("backup")
    assert code == 2 and "backup_repository: found none; allowed what restic takes" in output
