"""What the role renders is what the program can work with."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from openclaw_backup import cli, config, records

from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "backup"
SECRETS = ("the repository's password", "the off-site password", "an-access-key", "the backup user's password")
VARIABLES = {
    "backup_repository": "/srv/backups/openclaw",
    "backup_offsite_repository": "s3:https://s3.example.com/bucket",
    "backup_password": SECRETS[0],
    "backup_offsite_password": SECRETS[1],
    "backup_offsite_environment": {"AWS_SECRET_ACCESS_KEY": SECRETS[2]},
}


def templar(host="node1", **variables):
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    hosts = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("node1", "node2", "edge"), 1)}
    groups = {"openclaw_gateways": ["node1", "edge"], "openclaw_redis": ["node1", "node2"]}
    known = {
        "topology_cluster": build(groups, hosts),
        "inventory_hostname": host,
        "ansible_managed": "Ansible managed",
        "role_path": str(ROLE),
        "ansible_search_path": [str(ROLE)],
        "redis_access_passwords": {"redis": {"backup": SECRETS[3]}},
        "redis_access_tls": {"tls_ca": "/ca.pem", "tls_cert": "/cert.pem", "tls_key": "/key.pem"},
        "redis_access_files": {"redis": "/etc/redis/openclaw/users.acl"},
    }
    for source in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / source), trusted_as_template=True)
    return Templar(loader=loader, variables=known | {"_backup_package": {}} | VARIABLES | variables)


def rendered(name, action, host="node1", **variables):
    text = (ROLE / "templates" / name).read_text()
    return templar(host, _backup_action=action, **variables).template(trust_as_template(text))


@pytest.mark.parametrize(("host", "redis", "gateway"), [("node1", True, True), ("node2", True, False), ("edge", False, True)])
def test_the_configuration_is_accepted(host, redis, gateway):
    found = config.check(json.loads(json.dumps(templar(host).template(trust_as_template("{{ _backup_config }}")))))
    assert bool(found["redis"]) is redis and bool(found["gateway"]) is gateway and found["site"] == "main"
    if redis:
        assert [node["host"] for node in found["redis"]["nodes"]] == ["node1", "node2"] and found["redis"]["port"] == 6379
        assert found["redis"]["etc_directory"] == "/etc/redis/openclaw" and found["redis"]["tls_key"] == "/key.pem"


def test_without_tls_and_off_site():
    found = templar(redis_access_tls={}, backup_offsite_repository="").template(trust_as_template("{{ _backup_config }}"))
    found = config.check(json.loads(json.dumps(found)))
    assert found["redis"]["tls_ca"] is None and found["offsite"] is None


@pytest.mark.parametrize("action", records.ACTIONS)
def test_units_have_no_secret_and_run_what_there_is(action):
    unit, timer = rendered("openclaw-backup.service.j2", action), rendered("openclaw-backup.timer.j2", action)
    assert not any(secret in unit + timer for secret in SECRETS)
    words = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).partition("=")[2].split()
    assert words[:4] == ["/usr/bin/python3", "-B", "-m", "openclaw_backup"] and cli._parser().parse_args(words[4:]).command == action
    assert cli.TIMERS[action] == f"openclaw-backup-{action}.timer"
    assert "RandomizedDelaySec=15min" in timer and "OnCalendar=" in timer
    # A local repository may be written, an off-site one is elsewhere.
    assert "ReadWritePaths=/var/lib/openclaw-backup -/srv/backups/openclaw" in unit.splitlines()


def test_a_host_of_gateways_alone_only_makes_backups():
    assert templar("edge").template(trust_as_template("{{ _backup_actions }}")) == ["make"]
    assert templar("node2").template(trust_as_template("{{ _backup_actions }}")) == list(records.ACTIONS)


def test_what_is_secret_is_written_for_root_alone_and_not_shown():
    tasks = {task["name"]: task for task in yaml.safe_load((ROLE / "tasks/install.yml").read_text())}
    for name in ("Write the passwords", "Write the configuration"):
        assert tasks[name]["no_log"] is True and tasks[name]["diff"] is False and tasks[name]["ansible.builtin.copy"]["mode"] == "0600"


def test_defaults_and_argument_specs_name_the_same_variables():
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert {name: one["default"] for name, one in specs.items()} == defaults
