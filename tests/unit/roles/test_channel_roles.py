"""What the roles ingress and owner render is what their programs can work with, and holds no secret."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
import yaml

from ansible_collections.openclaw.ha.plugins.filter import channels as filters
from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

ROOT = pathlib.Path(__file__).resolve().parents[3]
ROLES = ROOT / "roles"
for program in ("ingress", "owner"):
    sys.path.insert(0, str(ROLES / program / "files"))

import openclaw_ingress.config as ingress_config  # noqa: E402
import openclaw_owner.config as owner_config  # noqa: E402

HOSTS = ("node1", "node2", "node3")
SECRETS = ("1:b0ttoken", "w3bhook-s3cret", "2:b0ttoken", "r3dis-pw", "s3ntinel-pw", "g4teway-token")
CHANNELS = [
    {"type": "telegram", "mode": "webhook", "secrets": {"bot_token": SECRETS[0], "webhook_secret": SECRETS[1]}, "allow_from": [42]},
    {"type": "telegram", "account": "poll", "mode": "polling", "secrets": {"bot_token": SECRETS[2]}, "allow_from": [42]},
]


@functools.cache
def rendered(role, **variables):
    """Configuration, names of the secrets and texts of the templates of a role, by Ansible itself: (dict, list, dict)."""
    directory = ROLES / role
    hosts = {name: {"ansible_host": f"198.18.0.{number}", "gateway_replicas": 4, "gateway_channels": CHANNELS} for number, name in enumerate(HOSTS, 1)}
    given = {
        "topology_cluster": build({"openclaw_gateways": list(HOSTS), "openclaw_redis": list(HOSTS)}, hosts),
        "gateway_channels": CHANNELS,
        "gateway_token": SECRETS[5],
        "redis_access_passwords": {"redis": {"ingress": SECRETS[3], "owner": SECRETS[3]}, "sentinel": {"client": SECRETS[4]}},
        "role_path": str(directory),
        **variables,
    }
    with tempfile.TemporaryDirectory() as made:
        names = sorted(path.name.removesuffix(".j2") for path in (directory / "templates").glob("*.j2"))
        tasks = [{"ansible.builtin.include_vars": str(directory / name / "main.yml")} for name in ("defaults", "vars")]
        # Variables of a play stand above those of a role, and below what it includes.
        tasks += [{"ansible.builtin.set_fact": {name: value}} for name, value in variables.items()]
        for name, content in (("config", "{{ _%s_config | to_nice_json }}" % role), ("secrets", "{{ _%s_secrets.keys() | sort | to_json }}" % role)):
            tasks.append({"ansible.builtin.copy": {"content": content, "dest": f"{made}/{name}"}})
        tasks += [{"ansible.builtin.template": {"src": f"{directory}/templates/{name}.j2", "dest": f"{made}/{name}"}} for name in names]
        pathlib.Path(made, "play.json").write_text(json.dumps([{"hosts": "node1", "gather_facts": False, "vars": given, "tasks": tasks}]))
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        pathlib.Path(made, "hosts.json").write_text(json.dumps({"all": {"hosts": {"node1": host}}}))
        environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1"}
        command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", f"{made}/hosts.json", f"{made}/play.json"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        config, secrets = (json.loads(pathlib.Path(made, name).read_text()) for name in ("config", "secrets"))
        return config, secrets, {name: pathlib.Path(made, name).read_text() for name in names}


def test_the_ingress_knows_accounts_replicas_and_the_way_to_redis():
    found = ingress_config.check(rendered("ingress")[0])
    assert [(one["channel"], one["account"], one["path"], one["secrets"]) for one in found["accounts"]] == [
        ("telegram", "default", "/webhooks/telegram/default", ["/etc/openclaw-ingress/secrets/telegram-default"])
    ]
    assert [one["id"] for one in found["replicas"]] == ["node1-1", "node2-1", "node3-1", "node1-2"]
    assert found["replicas"][3]["webhooks"] == {"telegram/default": "http://198.18.0.1:19020/webhooks/telegram/default"}
    assert found["redis"]["sentinels"] == [f"198.18.0.{number}:26379" for number in (1, 2, 3)]
    assert found["redis"]["tls"]["ca"].startswith("/etc/openclaw-ingress/")
    assert (found["wait_replicas"], found["enough_replicas"], found["address"], found["port"], found["status_port"]) == (2, 1, "198.18.0.1", 18600, 18601)


def test_variables_reach_the_ingress_with_their_types():
    given, *_rest = rendered("ingress", ingress_max_age="60", ingress_max_events="5", ingress_quiet="3", ingress_replica_events="2", ingress_max_body="2048")
    found = ingress_config.check(given)
    assert (found["max_age_seconds"], found["max_events"], found["quiet_seconds"], found["body_max_bytes"]) == (60.0, 5, 3.0, 2048)
    assert found["replica_events"] == 2


def test_the_owner_knows_what_one_may_have_and_the_replicas_of_its_host():
    found = owner_config.check(rendered("owner")[0])
    (one,) = found["singletons"]
    assert one["id"] == "telegram/poll" and list(one["content"]["telegram"]["accounts"]) == ["poll"]
    assert [(replica["id"], replica["sections"]["channels"], replica["proof_url"]) for replica in found["replicas"]] == [
        ("node1-1", "/run/openclaw-owner/1/channels.json", "http://127.0.0.1:18789/api/v1/owned"),
        ("node1-2", "/run/openclaw-owner/2/channels.json", "http://127.0.0.1:18909/api/v1/owned"),
    ]
    assert found["status_port"] == 18602 and found["lease_seconds"] > 30, "Telegram keeps the request of a dead one open for so long"


@pytest.mark.parametrize("role", ["ingress", "owner"])
def test_no_secret_is_in_what_everybody_reads(role):
    found, names, templates = rendered(role)
    text = "\n".join([json.dumps(found), *templates.values()])
    assert not [one for one in SECRETS if one in text]
    unit = templates[f"openclaw-{role}.service"].splitlines()
    assert all(f"/etc/openclaw-{role}/secrets/{name}" in text for name in names)
    assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", f"User=openclaw-{role}"} <= set(unit)
    # Later lines win: of all rights the owner has the one to kill.
    rights = [line for line in unit if line.startswith(("CapabilityBoundingSet=", "AmbientCapabilities="))]
    assert {one.partition("=")[2] for one in rights} == ({"CAP_KILL"} if role == "owner" else {""})


@pytest.mark.parametrize("role", ["ingress", "owner"])
def test_documented_defaults_are_the_real_ones(role):
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())


def test_every_filter_is_documented():
    for name in filters.FilterModule().filters():
        assert yaml.safe_load((ROLES.parent / "plugins/filter" / f"{name}.yml").read_text())["DOCUMENTATION"]["name"] == name
