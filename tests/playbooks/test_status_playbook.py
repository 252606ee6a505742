"""status.yml where it has to refuse."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_limit_without_the_host_that_shows_the_status_is_refused(tmp_path):
    inventory = tmp_path / "inventory.yml"
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(f"openclaw: {{children: {{openclaw_gateways: {{hosts: {{node1: {host}, node2: {host}}}}}}}}}\n")
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1"}
    program = pathlib.Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), "-i", str(inventory), str(ROOT / "playbooks/status.yml"), "--limit", "node1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--limit node1 leaves out localhost, which shows the status: add it, as in --limit node1,localhost." in done.stdout
