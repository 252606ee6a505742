"""HAProxy, the real one, and what it makes of the agent's words."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from agent_rig import until

from tests.ports import free_port

CONFIG = """
global
    stats socket {directory}/socket level admin
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout check 10s
listen gateways
    bind 127.0.0.1:{port}
    balance roundrobin
    option redispatch 1
    retries 3
    default-server weight 100 check inter 500ms agent-check agent-addr 127.0.0.1 agent-inter 100ms
{servers}
"""


class Balancer:
    """HAProxy in front of an agent's gateways, with no other check worth the name than the agent's."""

    def __init__(self, program, directory, agent):
        self.directory, self.port = directory, free_port()
        self.agent = agent
        servers = [f"    server {one['id']} 127.0.0.1:{one['port']} agent-port {one['check_port']}" for one in agent.replicas]
        (directory / "haproxy.cfg").write_text(CONFIG.format(directory=directory, port=self.port, servers="\n".join(servers)))
        self.process = subprocess.Popen([program, "-f", str(directory / "haproxy.cfg")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: (directory / "socket").exists() and self.heard())

    def command(self, text):
        with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{self.directory}/socket")
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return ""

    def rows(self):
        lines = [line.split(",") for line in self.command("show stat").splitlines()]
        return {line[1]: dict(zip(lines[0], line)) for line in lines if line[0] == "gateways" and line[1] not in ("FRONTEND", "BACKEND")}

    def heard(self):
        """Whether the agent has been asked about every replica."""
        rows = self.rows().values()
        return rows and all(row["agent_status"] == "L7OK" for row in rows)

    def state(self, name="r1"):
        """(status, weight) of a server."""
        row = self.rows()[name]
        return row["status"], row["weight"]

    def ask(self, times=1):
        """Who answered that many requests; a status where nobody did."""
        found = []
        for _request in range(times):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/x", timeout=10) as response:
                    found.append(json.load(response)["from"])
            except urllib.error.HTTPError as error:
                found.append(error.code)
        return collections.Counter(found)

    def close(self):
        self.process.terminate()
        self.process.wait(5)


@pytest.fixture
def balancer(agent, tmp_path):
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert program, "haproxy is not installed, and these tests ask it what it makes of the agent's words: run lab/bootstrap"
    started = []

    def start(count=2, **settings):
        started.append(Balancer(program, tmp_path, agent(count, **settings)))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_up_stalled_down_and_back(balancer):
    running = balancer(stalled_after=0.5, dead_after=2.0, gateway_timeout=0.4)
    first = running.agent.gateways[0]
    until(lambda: running.state() == running.state("r2") == ("UP", "100"))
    assert set(running.ask(10)) == {"r1", "r2"}

    first.freeze()
    until(lambda: running.state() == ("UP", "1"))
    until(lambda: running.state()[0].startswith("DOWN"))
    assert running.ask(10) == {"r2": 10} and running.state("r2") == ("UP", "100")

    first.thaw()
    until(lambda: running.state() == ("UP", "100"))


def test_a_stalled_replica_is_passed_over_at_once(balancer):
    """Weight 1 is not 0: one request in a hundred is still caught. It waits, and is not lost."""
    running = balancer(stalled_after=0.5, dead_after=60, gateway_timeout=0.4)
    running.agent.gateways[0].freeze()
    until(lambda: running.state() == ("UP", "1"))
    before = int(running.rows()["r1"]["stot"])
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(running.ask) for _request in range(20)]
        until(lambda: sum(one.done() for one in answers) >= 19)
        assert int(running.rows()["r1"]["stot"]) - before <= 1
        running.agent.gateways[0].thaw()
    assert sum((one.result() for one in answers), collections.Counter()).keys() <= {"r1", "r2"}
    until(lambda: running.state() == ("UP", "100"))


def test_when_all_are_stalled_none_is_lost(balancer):
    running = balancer(stalled_after=0.3, dead_after=60, gateway_timeout=0.2)
    for gateway in running.agent.gateways:
        gateway.freeze()
    until(lambda: running.state() == running.state("r2") == ("UP", "1"))
    for gateway in running.agent.gateways:
        gateway.thaw()
    assert sum(running.ask(4).values()) == 4
    assert 503 not in running.ask(4)


def test_a_gateway_that_is_gone(balancer):
    running = balancer()
    running.agent.gateways[0].stop()
    until(lambda: running.state()[0].startswith("DOWN") and running.rows()["r1"]["agent_status"] == "L7STS", 2)
    assert "nothing listens on its port" in running.rows()["r1"]["last_agt"]
    assert running.ask(6) == {"r2": 6}


def test_drained_gets_nothing_new_also_without_the_agent(balancer):
    running = balancer()
    assert running.agent.command("drain", "r1").returncode == 0
    # HAProxy calls a server of weight 0 UP all the same.
    until(lambda: running.state() == ("UP", "0"))
    assert running.ask(6) == {"r2": 6}

    running.agent.stop()
    assert running.ask(6) == {"r2": 6}
    running.agent.start()
    assert running.ask(6) == {"r2": 6} and running.state() == ("UP", "0")

    assert running.agent.command("ready", "r1").returncode == 0
    until(lambda: running.state() == ("UP", "100"))


@pytest.mark.parametrize("word, shown", [("drain", "DRAIN"), ("maint", "MAINT")])
def test_what_an_operator_sets_at_the_balancer_is_not_undone_by_the_agent(balancer, word, shown):
    running = balancer()
    running.command(f"set server gateways/r1 state {word}")
    for status, weight in (("draining", "0"), ("started", "100")):
        running.agent.gateways[0].status = status
        until(lambda weight=weight: running.rows()["r1"]["uweight"] == weight)
        assert running.state()[0].split()[0] == shown and running.ask(6) == {"r2": 6}
    # And the other way: ready at the balancer does not undo the agent's switch.
    assert running.agent.command("drain", "r1").returncode == 0
    running.command("set server gateways/r1 state ready")
    until(lambda: running.state() == ("UP", "0"))
    assert running.ask(6) == {"r2": 6}


def test_a_draining_gateway_gets_nothing_new(balancer):
    running = balancer()
    running.agent.gateways[0].status = "draining"
    until(lambda: running.state()[1] == "0")
    assert running.ask(6) == {"r2": 6}


def test_a_dead_agent_changes_nothing(balancer):
    running = balancer()
    until(lambda: running.state() == ("UP", "100"))
    running.agent.stop()
    assert set(running.ask(10)) == {"r1", "r2"} and running.state() == ("UP", "100")
