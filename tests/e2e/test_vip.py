"""The virtual address and the drain, as a client meets them. A cluster without a virtual address has no keepalived either."""

import os
import subprocess
import sys
import threading
import time

import pytest
import requests

from conftest import NAME, ROOT
from lab.shell import wait_for

#: Seconds in which an address moves on a busy machine: a missed advert or two failed checks, and the profile's own time.
MOVE = 30


@pytest.fixture
def vips(hosts, topology):
    """The virtual addresses; where there are none, that is what is looked at."""
    if not topology["vips"]:
        for name, host in hosts.items():
            assert not host.run("pidof keepalived").stdout, f"{name}: keepalived runs without a virtual address"
    return topology["vips"]


def holders(hosts, topology, vip):
    members = [node["host"] for node in topology["balancers"] if node["vip"] == vip["address"]]
    return [name for name in members if hosts[name].check_output("ip -oneline -4 address show to %s", vip["address"])]


def only_holder(hosts, topology, vip, wanted=None):
    """Wait for one holder, which is ``wanted`` where that is given; returns it."""

    def probe():
        found = holders(hosts, topology, vip)
        return found[0] if len(found) == 1 and wanted in (None, found[0]) else None

    return wait_for(f"one holder of {vip['address']}", probe, MOVE)


def answers(vip, port):
    """Whether a replica answers on the address."""
    try:
        return requests.get(f"http://{vip['address']}:{port}/startupz", timeout=2).json().get("status") == "started"
    except (requests.RequestException, ValueError):
        return False


def test_one_balancer_holds_the_address_and_serves_on_it(hosts, topology, vips, cluster):
    for vip in vips:
        holder = only_holder(hosts, topology, vip)
        node = next(one for one in topology["balancers"] if one["host"] == holder)
        assert cluster.url == f"http://{vip['address']}:{node['port']}"
        assert answers(vip, node["port"])
        for other in topology["balancers"]:
            host = hosts[other["host"]]
            assert host.file("/etc/keepalived/keepalived.conf").mode == 0o640
            assert "ip protocol vrrp counter" in host.check_output("nft list table inet openclaw_vip")
            assert host.user("openclaw-vip").shell == "/usr/sbin/nologin"


def test_another_balancer_takes_over_when_haproxy_is_gone(hosts, topology, vips):
    for vip in vips:
        holder = only_holder(hosts, topology, vip)
        port = next(one["port"] for one in topology["balancers"] if one["host"] == holder)
        hosts[holder].check_output("systemctl stop haproxy")
        try:
            wait_for("another holder", lambda old=holder, at=vip: holders(hosts, topology, at) not in ([], [old]), MOVE)
            successor = only_holder(hosts, topology, vip)
            assert successor != holder
            wait_for("an answer on the address", lambda at=vip, on=port: answers(at, on), MOVE)
        finally:
            hosts[holder].check_output("systemctl start haproxy")
        wait_for("the local check to pass", lambda name=holder: "BACKUP" in last_word(hosts[name]), MOVE)
        assert holders(hosts, topology, vip) == [successor], "the address went back by itself"


def last_word(host):
    return host.check_output("journalctl --identifier=openclaw-vip --lines=1 --output=cat")


def test_an_address_that_a_killed_keepalived_left_is_taken_off(hosts, topology, vips):
    for vip in vips:
        holder = only_holder(hosts, topology, vip)
        before = hosts[holder].check_output("systemctl show --property=MainPID --value keepalived")
        hosts[holder].check_output("kill -9 $(pidof keepalived)")
        wait_for(
            "keepalived to be started again",
            lambda name=holder: hosts[name].check_output("systemctl show --property=MainPID --value keepalived") not in ("0", before),
            MOVE,
        )
        only_holder(hosts, topology, vip)


class Streams(threading.Thread):
    """One stream after the other through the balancer until :meth:`end`; ``seen`` has (began, ended, whether it came whole)."""

    def __init__(self, cluster, user):
        super().__init__(daemon=True)
        self.cluster, self.user, self.seen, self.stop = cluster, user, [], False
        self.start()

    def run(self):
        while not self.stop:
            began, lines = time.time(), []
            try:
                response = requests.post(
                    f"{self.cluster.url}/v1/chat/completions",
                    json={"model": "openclaw/default", "user": self.user, "stream": True, "messages": [{"role": "user", "content": self.user}]},
                    headers={"Authorization": f"Bearer {self.cluster.token}"},
                    stream=True,
                    timeout=120,
                )
                lines = [line for line in response.iter_lines(decode_unicode=True) if line]
            except requests.RequestException as error:
                lines = [f"{type(error).__name__}: {error}"]
            self.seen.append((began, time.time(), lines[-1:] == ["data: [DONE]"]))

    def end(self):
        self.stop = True
        self.join(120)
        return self.seen


def play(*options):
    command = [sys.executable, "-m", "lab", "playbook", NAME, "playbooks/drain.yml", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=os.environ | {"ANSIBLE_NOCOLOR": "1"})
    return done.returncode, done.stdout + done.stderr


def test_a_replica_is_drained_under_streams_and_none_is_cut(llm, hosts, topology, user):
    replica = topology["replicas"][0]
    llm.behave(mode="slow", seconds=4, match=user)
    streams = [Streams(llm, f"{user}-{number}") for number in range(len(topology["replicas"]))]
    try:
        wait_for("streams through the balancer", lambda: all(stream.seen for stream in streams), 120)
        code, printed = play("-e", f"drain={replica['id']}")
        assert code == 0, printed[-5000:]
        assert "drained, " in printed and "draining" in printed, printed[-5000:]
        switched = hosts[replica["host"]].file(f"/var/lib/openclaw-agent/drain/{replica['id']}").mtime.timestamp()
        others = {llm.reply(f"{user} {number}", f"{user}-turn-{number}")["replica"] for number in range(4)}
        assert replica["id"] not in others, "a drained replica was given a request"
        code, printed = play("-e", f"drain={replica['id']}", "-e", "drain_state=ready")
        assert code == 0, printed[-5000:]
    finally:
        seen = [one for stream in streams for one in stream.end()]
        play("-e", f"drain={replica['id']}", "-e", "drain_state=ready")
    assert any(began < switched < ended for began, ended, _whole in seen), "no stream was in flight when the switch was turned"
    cut = [(began, ended) for began, ended, whole in seen if not whole]
    assert not cut, f"{len(cut)} of {len(seen)} streams did not end whole"


def test_the_last_replicas_that_serve_are_not_drained(hosts, topology):
    host = topology["replicas"][0]["host"]
    elsewhere = [replica["id"] for replica in topology["replicas"] if replica["host"] != host]
    try:
        for name in elsewhere:
            assert play("-e", f"drain={name}")[0] == 0
        code, printed = play("-e", f"drain={host}")
        assert code != 0 and "would serve" in printed and "drain_force=true" in printed, printed[-3000:]
        assert not hosts[host].run("ls /var/lib/openclaw-agent/drain").stdout.split()
    finally:
        for name in elsewhere:
            assert play("-e", f"drain={name}", "-e", "drain_state=ready")[0] == 0
