"""Bad input is refused by the real playbook before any change.

Needs no lab: the hosts of the inventory are this machine under three names and addresses. npm is a double, so that the
answer does not depend on a registry.
"""

import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
NPM = """#!/bin/sh
# npm double: one version of openclaw is published.
case "$*" in
  "view openclaw@2026.9.6 "*) echo '"2026.9.6"' ;;
  "view openclaw versions "*) echo '["2026.9.5", "2026.9.6"]' ;;
  *) echo '{"error": {"code": "E404", "summary": "No match found for version"}}'; exit 1 ;;
esac
"""
SECRETS = ("gateway_token", "redis_password", "sentinel_password", "cloud_api_key")
STATEFUL = {
    "agents": {"defaults": {"heartbeat": {"every": "30m"}}},
    "cron": {"enabled": True},
    "channels": {"telegram": {"webhookUrl": "https://bot.test/hook"}},
}


class Inventory:
    """A copy of a sample inventory whose hosts are this machine."""

    def __init__(self, directory, sample):
        self.path = directory / "inventory"
        shutil.copytree(ROOT / "inventories" / sample, self.path, ignore=shutil.ignore_patterns("secrets"))
        self.secrets = {name: secrets.token_hex(32) for name in SECRETS}
        (self.path / "secrets").mkdir()
        for name, value in self.secrets.items():
            file = self.path / "secrets" / name
            file.touch(mode=0o600)
            file.write_text(value + "\n")
        self.npm = directory / "bin" / "npm"
        self.npm.parent.mkdir()
        self.npm.write_text(NPM)
        self.npm.chmod(0o755)
        # No interface of this machine holds the sample's addresses.
        self.vary(ansible_connection="local", ansible_python_interpreter=sys.executable, vip_interface="lo")

    def vary(self, host=None, **values):
        """Set variables of one host, or of all."""
        file = self.path / (f"host_vars/{host}.yml" if host else "group_vars/all.yml")
        file.parent.mkdir(exist_ok=True)
        known = yaml.safe_load(file.read_text()) if file.exists() else {}
        file.write_text(yaml.safe_dump({**known, **values}))

    def empty(self, group):
        """Take all hosts out of a group."""
        file = self.path / "hosts.yml"
        hosts = yaml.safe_load(file.read_text())
        hosts["openclaw"]["children"][group] = {"hosts": {}}
        file.write_text(yaml.safe_dump(hosts))

    def preflight(self, *options):
        """Run the playbook; returns (exit code, everything printed, sentences of the refusal)."""
        tools = os.pathsep.join((str(self.npm.parent), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]))
        environment = {
            **os.environ,
            "PATH": tools,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        command = ["ansible-playbook", "-i", str(self.path), str(ROOT / "playbooks" / "preflight.yml"), *options]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        printed = done.stdout + done.stderr
        refusal = re.search(r"Refused before any change, \d+ problems?:\n((?:  .*\n)+)", printed)
        assert "PLAY RECAP" in printed, printed
        assert set(re.findall(r"changed=(\d+)", printed)) == {"0"}, printed
        return done.returncode, printed, [line.strip() for line in refusal[1].splitlines()] if refusal else []


@pytest.fixture
def three_hosts(tmp_path):
    return Inventory(tmp_path, "three_hosts")


@pytest.mark.parametrize("sample", ["three_hosts", "single_host"])
def test_the_sample_inventory_passes_in_check_mode_too(tmp_path, sample):
    code, printed, refused = Inventory(tmp_path, sample).preflight("--check", "--diff")
    assert (code, refused) == (0, []), printed
    assert "failed=0" in printed
    assert "Refused" not in printed


def test_every_bad_input_is_refused_with_one_sentence_and_no_run_prints_a_secret(three_hosts):
    providers = [
        {
            "name": "cloud",
            "type": "openai",
            "endpoint": "https://llm.test/v1",
            "model": "m",
            "api_key": three_hosts.secrets["cloud_api_key"],
        }
    ]
    three_hosts.vary(
        gateway_replicas=6,
        gateway_port_step=0,
        sentinel_password="",
        gateway_providers=providers,
        redis_maxmemory="900gb",
        gateway_version="2026.9.99",
        gateway_node_version="22.22.0",
        gateway_extra_config=STATEFUL,
        gateway_tools_deny=["exec"],
        openclaw_packages="newest",
    )
    token = three_hosts.path / "secrets" / "gateway_token"
    token.chmod(0o644)
    password = three_hosts.path / "secrets" / "redis_password"
    password.unlink()
    three_hosts.empty("openclaw_balancers")
    hosts = yaml.safe_load((three_hosts.path / "hosts.yml").read_text())
    hosts["openclaw"]["children"]["openclaw_sentinels"] = {"hosts": {"node1": None, "node2": None}}
    (three_hosts.path / "hosts.yml").write_text(yaml.safe_dump(hosts))

    code, printed, refused = three_hosts.preflight("-vvv")

    expected = [
        "openclaw_balancers: found no host; allowed one host or more; ",
        "gateway_port_step: found replicas node1-1 and node1-2 both on 192.0.2.11:18789; allowed a distance of 120 or ",
        "openclaw_sentinels: found 2 Sentinels (node1, node2); allowed an odd number",
        "redis_maxmemory: found 900gb; allowed less than the ",
        "gateway_node_version: found 22.22.0; allowed 24.16 or newer; ",
        "gateway_version: found 2026.9.99, which is not on npm; allowed a published version of openclaw; choose one, "
        "the newest are 2026.9.6, 2026.9.5.",
        f"gateway_token: {token}: found mode 0644; allowed 0600 or 0400, so that only its owner reads it; run: chmod ",
        f"redis_password: {password}: found no file to read (No such file or directory); allowed a file of mode 0600 ",
        "sentinel_password: found nothing; allowed a secret of 16 characters or more; ",
        "gateway_providers entry 1 (cloud)",
        "gateway_extra_config sets agents.defaults.heartbeat.every to '30m'",
        "gateway_extra_config sets cron.enabled to True",
        "gateway_extra_config leaves channels.telegram.dmPolicy at pairing",
        "gateway_tools_deny leaves write, ",
        "openclaw_packages: found a value that does not fit: value of openclaw_packages must be one of: present, latest, got: newest; ",
    ]
    assert code != 0
    assert len(refused) == len(expected), refused
    for sentence, start in zip(refused, expected, strict=True):
        assert sentence.startswith(start), sentence
    assert "'openai'" in next(sentence for sentence in refused if "gateway_providers" in sentence)
    for name, value in three_hosts.secrets.items():
        assert value not in printed, f"{name} was printed"


def test_what_one_host_sets_is_judged_for_that_host(three_hosts):
    three_hosts.vary("node2", redis_maxmemory="900gb", redis_min_replicas_max_lag="often")
    three_hosts.vary("node2", gateway_memory_max="{{ absent_variable }}")
    three_hosts.vary("node3", topology_address="node3.test")
    three_hosts.vary("node2", vip_interface="")
    code, printed, refused = three_hosts.preflight()
    assert code != 0
    expected = [
        "node3: topology_address: found node3.test; ",
        "node2: vip_interface: found no interface that holds 192.0.2.12; ",
        "node2: redis_maxmemory: found 900gb; ",
        "node2: gateway_memory_max: found an expression without a value ('absent_variable' is undefined); ",
        "node2: redis_min_replicas_max_lag: found a value that does not fit: ",
    ]
    assert len(refused) == len(expected), printed
    for sentence, start in zip(refused, expected, strict=True):
        assert sentence.startswith(start), sentence


def test_a_registry_that_cannot_be_asked_is_a_warning(three_hosts):
    three_hosts.npm.write_text('#!/bin/sh\necho \'{"error": {"code": "ECONNREFUSED"}}\'; exit 1\n')
    three_hosts.vary(redis_maxmemory_policy="allkeys-lru")
    code, printed, refused = three_hosts.preflight()
    assert (code, refused) == (0, []), printed
    assert "[WARNING]: gateway_version: Whether openclaw 2026.9.6 exists could not be asked" in printed
    assert "[WARNING]: redis_maxmemory_policy: found allkeys-lru, which evicts locks" in printed


def test_what_a_balancer_cannot_do_is_refused_with_its_certificates_read_from_the_controller(three_hosts):
    three_hosts.vary(
        balancer_tls=True,
        balancer_engine="nginx",
        balancer_token_requests_per_minute=10,
        balancer_certificates=[
            {"name": "site", "cert": "{{ inventory_dir }}/tls/site.crt", "key": "{{ inventory_dir }}/secrets/gateway_token"}
        ],
    )
    code, printed, refused = three_hosts.preflight()
    assert code != 0
    expected = [
        "balancer_token_requests_per_minute: found 10 with the engine nginx",
        f"balancer_certificates entry 1 (site): found no readable file {three_hosts.path}/tls/site.crt (No such file or directory); ",
    ]
    assert len(refused) == 2, printed
    for start, sentence in zip(expected, refused):
        assert sentence.startswith(start)
