"""Each host as an auditor would look at it: units, versions, sockets, files, secrets."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from conftest import NAME, ROOT

from plugins.module_utils.channels import FIRST_LISTENER

OPENCLAW_VERSION = "2026.9.6"
NODE_VERSION = "24.19.0"
SSH = 22
HAPROXY_METRICS = 8405
#: Where files must not carry secrets readable by everyone. The releases are npm's content, the same on every machine.
PLACES = "/etc /home /opt/openclaw/node /opt/openclaw/plugins /opt/openclaw/skills /root /run /srv /tmp /usr/local /var/lib /var/log /var/tmp"


def test_units_are_enabled_and_running(hosts, topology):
    from plugins.module_utils.status import units_of

    for name, host in hosts.items():
        for unit in units_of(topology, name):
            service = host.service(unit)
            assert service.is_running, f"{name}: {unit} does not run"
            assert service.is_enabled, f"{name}: {unit} would not start at boot"
            restart = host.check_output("systemctl show --property=Restart --value %s", unit)
            assert restart == "always", f"{name}: {unit} has Restart={restart}"


def test_versions_are_the_pinned_ones(hosts, topology):
    for replica in topology["replicas"]:
        host = hosts[replica["host"]]
        node = f"/opt/openclaw/node/{NODE_VERSION}/bin/node"
        assert host.check_output(f"{node} --version") == f"v{NODE_VERSION}"
        package = f"/opt/openclaw/releases/{OPENCLAW_VERSION}/node_modules/openclaw/package.json"
        assert f'"version": "{OPENCLAW_VERSION}"' in host.file(package).content_string
        command = host.check_output("ps -o args= -p $(systemctl show --property=MainPID --value %s)", replica["unit"])
        assert command.startswith("openclaw"), command
        executable = host.check_output("readlink /proc/$(systemctl show --property=MainPID --value %s)/exe", replica["unit"])
        assert f"/opt/openclaw/node/{NODE_VERSION}/" in executable


def test_listening_sockets_are_exactly_the_expected_ones(hosts, topology):
    for name, host in hosts.items():
        address = topology["hosts"][name]["address"]
        expected = {("0.0.0.0", SSH), ("[::]", SSH)}
        for kind in ("redis", "sentinels"):
            expected |= {(where, node["port"]) for node in topology[kind] if node["host"] == name for where in (address, "127.0.0.1")}
        expected |= {(where, one["port"]) for one in topology["replicas"] if one["host"] == name for where in (address, "127.0.0.1")}
        own = [one for one in topology["replicas"] if one["host"] == name]
        expected |= {(where, one["verdict_port"]) for one in own for where in (address, "127.0.0.1")} | {(address, one["check_port"]) for one in own}
        expected |= {(address, node["port"]) for node in topology["ollama"] if node["host"] == name}
        for node in topology["balancers"]:
            if node["host"] == name:
                expected |= {(address, node["port"]), ("127.0.0.1", HAPROXY_METRICS)}
                expected |= {(node["vip"], node["port"])} if node["vip"] else set()
                if node["tls_port"]:
                    expected |= {(where, node["tls_port"]) for where in (address, node["vip"]) if where}
        # What channels need: the door for webhooks, what it and the owners say to their own host, and each replica's listener of Telegram.
        expected |= {where for one in topology["ingresses"] if one["host"] == name for where in ((address, one["port"]), ("127.0.0.1", one["status_port"]))}
        expected |= {("127.0.0.1", one["port"]) for one in topology["owners"] if one["host"] == name}
        telegram = [path for path in topology["webhooks"] if path.startswith("/webhooks/telegram/")]
        expected |= {(address, one["port"] + FIRST_LISTENER + number) for one in own for number in range(len(telegram))}
        lines = host.check_output("ss --no-header --listening --tcp --numeric --processes").splitlines()
        # Ollama's server reaches its own model runner on a port of loopback that changes.
        lines = [line for line in lines if not ('"ollama"' in line and line.split()[3].startswith("127.0.0.1:"))]
        found = {(where, int(port)) for where, port in (line.split()[3].rsplit(":", 1) for line in lines)}
        found = {(where, port) for where, port in found if where != "127.0.0.11"}  # Docker's name server
        assert found == expected, f"{name}: unexpected {found - expected}, missing {expected - found}"


def test_redis_is_one_primary_with_replicas_and_append_only_files(hosts, topology, cluster):
    roles = []
    for node in topology["redis"]:
        cli = cluster.cli("redis", node)
        host = hosts[node["host"]]
        roles.append(host.check_output(f"{cli} role").splitlines()[0])
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory": str(256 * 1024 * 1024),
            "maxmemory-policy": "noeviction",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": str(64 * 1024 * 1024),
            "save": "900 1 300 10 60 10000",
            "min-replicas-to-write": "1" if len(topology["redis"]) > 1 else "0",
        }
        for setting, value in wanted.items():
            assert host.check_output(f"{cli} config get {setting}").splitlines()[1] == value, f"{node['host']}: {setting}"
    assert sorted(roles) == ["master"] + ["slave"] * (len(topology["redis"]) - 1)


def test_sentinels_agree(hosts, topology, cluster):
    named = set()
    for node in topology["sentinels"]:
        cli = cluster.cli("sentinel", node)
        host = hosts[node["host"]]
        named.add(host.check_output(f"{cli} sentinel get-master-addr-by-name openclaw"))
        usable = host.check_output(f"{cli} sentinel ckquorum openclaw")
        assert usable.startswith(f"OK {len(topology['sentinels'])} usable"), usable
    assert len(named) == 1, named


def test_redis_and_sentinel_know_their_users_and_nobody_else(hosts, topology, cluster):
    for kind, nodes in (("redis", topology["redis"]), ("sentinel", topology["sentinels"])):
        for node in nodes:
            found = hosts[node["host"]].check_output(f"{cluster.cli(kind, node)} acl list").splitlines()
            assert sorted(line.split()[1] for line in found) == sorted({"default", *cluster.passwords[kind]}), f"{kind} on {node['host']}"
            assert next(line for line in found if line.startswith("user default ")).split()[2] == "off"


def test_no_member_of_the_cluster_was_ever_refused(hosts, topology, cluster):
    """Every user's rules are enough for its work: all that the scenario did so far left no entry about a host of the cluster."""
    members = tuple(f" addr={host['address']}:" for host in topology["hosts"].values())
    for kind, nodes in (("redis", topology["redis"]), ("sentinel", topology["sentinels"])):
        for node in nodes:
            log = hosts[node["host"]].check_output(f"{cluster.cli(kind, node)} --json acl log")
            # Ansible itself may have knocked with a password that was to be.
            refused = [entry for entry in json.loads(log) if entry["username"] != "admin" and any(member in entry["client-info"] for member in members)]
            assert not refused, f"{kind} on {node['host']}: {refused}"


def test_keys_of_certificates_are_for_their_service(hosts, topology, cluster):
    for name, host in hosts.items():
        groups = topology["hosts"][name]["groups"]
        places = {"/etc/redis/openclaw/tls": "redis"} if {"openclaw_redis", "openclaw_sentinels"} & set(groups) else {}
        places |= {"/etc/openclaw/tls": "openclaw"} if "openclaw_gateways" in groups else {}
        for directory, group in places.items():
            assert host.file(directory).exists == cluster.tls
            for file in ("key.pem", "cert.pem", "ca.pem") if cluster.tls else ():
                found = host.file(f"{directory}/{file}")
                assert (found.user, found.group, found.mode) == ("root", group, 0o640), f"{name}: {directory}/{file}"


def test_skills_are_read_only_for_the_gateway(hosts, topology):
    for replica in topology["replicas"]:
        host = hosts[replica["host"]]
        assert host.file("/opt/openclaw/skills").user == "root"
        pid = host.check_output("systemctl show --property=MainPID --value %s", replica["unit"])
        mounts = host.check_output(f"cat /proc/{pid}/mountinfo")
        (options,) = [line.split()[5] for line in mounts.splitlines() if line.split()[4] == "/opt/openclaw/skills"][:1]
        assert options.startswith("ro"), options


def test_limits_hold(hosts, topology):
    for replica in topology["replicas"]:
        shown = hosts[replica["host"]].check_output(
            "systemctl show --property=MemoryMax,CPUQuotaPerSecUSec,KillMode,TimeoutStopUSec,RestartPreventExitStatus,User %s",
            replica["unit"],
        )
        for line in ("MemoryMax=2147483648", "CPUQuotaPerSecUSec=2s", "KillMode=mixed", "TimeoutStopUSec=5min 30s", "User=openclaw"):
            assert line in shown.splitlines(), shown
        assert "RestartPreventExitStatus=78" in shown


@pytest.mark.parametrize(
    "path, mode",
    [
        ("/etc/openclaw/gateway/1/secrets.env", 0o600),
        ("/etc/redis/openclaw", 0o750),
        ("/etc/redis/openclaw/settings.conf", 0o640),
        ("/etc/redis/openclaw/redis.conf", 0o640),
        ("/etc/redis/openclaw/sentinel.conf", 0o640),
        ("/etc/redis/openclaw/users.acl", 0o640),
        ("/etc/redis/openclaw/sentinel-users.acl", 0o640),
        ("/etc/openclaw/redis-admin", 0o600),
        ("/etc/openclaw/sentinel-admin", 0o600),
        ("/var/lib/openclaw/1", 0o700),
        ("/etc/openclaw/gateway/1/openclaw.json", 0o640),
    ],
)
def test_file_modes(hosts, topology, path, mode):
    for replica in topology["replicas"]:
        file = hosts[replica["host"]].file(path)
        assert file.exists, f"{replica['host']}: {path} is missing"
        assert file.mode == mode, f"{replica['host']}: {path} has mode {oct(file.mode)}"


def test_no_secret_in_a_file_that_everyone_can_read(hosts, cluster):
    patterns = "\n".join(cluster.secrets.values())
    for name, host in hosts.items():
        search = f"find {PLACES} -xdev -type f -perm /o=r -size -5M -print0 2>/dev/null | xargs -0 -r grep -lF -e {shlex.quote(patterns)}"
        found = host.run(search).stdout.split()
        # A directory that others cannot enter protects what lies in it.
        open_to_all = [path for path in found if host.run(f"su -s /bin/sh nobody -c 'test -r {path}'").rc == 0]
        assert not open_to_all, f"{name}: {open_to_all}"


def test_no_secret_in_process_lists_or_journals(hosts, cluster):
    for name, host in hosts.items():
        for what, command in (("ps", "ps axww -o args"), ("journal", "journalctl --no-pager --output=cat")):
            # Not all that a journal holds is text.
            text = host.run(command).stdout_bytes
            assert text, f"{name}: no output of {what}"
            for secret, value in cluster.secrets.items():
                assert value.encode() not in text, f"{name}: {secret} is in the output of {what}"


def test_no_secret_in_the_output_of_a_verbose_run(cluster):
    """A run that would change settings, templates and units, with everything that Ansible can print."""
    command = [sys.executable, "-m", "lab", "playbook", NAME, "playbooks/site.yml", "-vvv", "--check", "--diff"]
    command += ["-e", "redis_maxmemory=128mb", "-e", "sentinel_down_after_milliseconds=4000", "-e", "gateway_turn_timeout=90"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert re.search(r"changed=[1-9]", output), "nothing would change, so nothing was shown either"
    for secret, value in cluster.secrets.items():
        assert value not in output, f"{secret} is printed by a verbose run"
