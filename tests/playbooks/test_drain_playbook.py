"""drain.yml itself, with two real HAProxy balancers on loopback. The hosts are this machine; agents and gateways are small stand-ins."""

import http.client
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from tests.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
HAPROXY = """
global
    stats socket {directory}/{name}.sock mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 5s
frontend openclaw
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance roundrobin
    default-server check inter 200ms
{servers}
"""
AGENT = """#!{python}
import json, pathlib, sys
command, *words = sys.argv[1:]
words = [word for word in words if word != "--json"]
if "--reason" in words:
    start = words.index("--reason")
    del words[start:start + 2]
found = []
for name in words:
    switch = pathlib.Path({directory!r}) / name
    changed = switch.exists() != (command == "drain")
    switch.touch() if command == "drain" else switch.unlink(missing_ok=True)
    found.append({{"replica": name, "changed": changed}})
print(json.dumps(found))
"""


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.02)  # between two looks
    return value


class Server(http.server.ThreadingHTTPServer):
    """Calls ``answer(handler)`` for each GET."""

    daemon_threads = True

    def __init__(self, address, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                answer(self)

            def say(self, body, status=200):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        super().__init__(address, Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_arguments):
        """A balancer ends connections as it likes."""


class Rig:
    """node1 and node2: on each a balancer, a replica and its agent."""

    def __init__(self, directory):
        self.directory, self.release, self.open = directory, threading.Event(), []
        self.switches = directory / "drained"
        self.switches.mkdir()
        self.down, self.servers, self.processes, hosts = set(), [], [], {}
        for number, name in enumerate(("node1", "node2"), 1):
            address = f"127.0.0.1{number}"
            hosts[name] = {
                "topology_address": address,
                "gateway_port": free_port(),
                "agent_port": free_port(),
                "balancer_port": free_port(),
                "drain_haproxy_socket": str(directory / f"{name}.sock"),
            }
            one = hosts[name]
            for where in (address, "127.0.0.1"):
                self.servers.append(Server((where, one["gateway_port"]), lambda handler, node=name: self.gateway(handler, node)))
            self.servers.append(Server((address, one["agent_port"]), lambda handler, node=name: self.agent(handler, node)))
        self.ports = {name: one["balancer_port"] for name, one in hosts.items()}
        program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
        assert program, "haproxy is needed by this test: run lab/bootstrap"
        lines = "".join(f"    server {name}-1 {one['topology_address']}:{one['gateway_port']}\n" for name, one in hosts.items())
        for name, port in self.ports.items():
            (directory / f"{name}.cfg").write_text(HAPROXY.format(directory=directory, name=name, port=port, servers=lines))
            self.processes.append(subprocess.Popen([program, "-W", "-f", str(directory / f"{name}.cfg")]))
            until(lambda name=name: (directory / f"{name}.sock").exists())
        agent = directory / "openclaw-agent"
        agent.write_text(AGENT.format(python=sys.executable, directory=str(self.switches)))
        agent.chmod(0o755)
        systemctl = directory / "bin" / "systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text("#!/bin/sh\nexit 1\n")
        systemctl.chmod(0o755)
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "gateway_token": "unused",
            "drain_agent": str(agent),
        }
        groups = {group: {"hosts": dict.fromkeys(hosts)} for group in ("openclaw_balancers", "openclaw_gateways")}
        inventory = {"openclaw": {"hosts": hosts, "children": groups, "vars": variables}}
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))

    def gateway(self, handler, node):
        if handler.path == "/startupz":
            return handler.say({"ok": True, "status": "started"})
        if handler.path != "/stream":
            return handler.say({"from": node})
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nbegin\r\n")
        self.open.append(node)
        self.release.wait(60)
        return handler.wfile.write(b"3\r\nend\r\n0\r\n\r\n")

    def agent(self, handler, node):
        drained = (self.switches / f"{node}-1").exists()
        status = "down" if node in self.down else "draining" if drained else "ok"
        handler.say({"status": status}, 503 if status == "down" else 200)

    def get(self, balancer, path="/x"):
        client = http.client.HTTPConnection("127.0.0.1", self.ports[balancer], timeout=60)
        client.request("GET", path)
        return client.getresponse().read().decode()

    def drained(self, balancer, replica):
        """Whether a balancer has been told."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.directory / f"{balancer}.sock"))
            client.sendall(b"show stat\n")
            lines = client.makefile().read().splitlines()
        return any(line.startswith(f"gateways,{replica},") and ",DRAIN," in line for line in lines)

    def nodes(self, balancer):
        """Who answers."""
        return {json.loads(self.get(balancer))["from"] for _request in range(6)}

    def play(self, *options):
        environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(self.directory / "bin"), str(pathlib.Path(sys.executable).parent), os.environ["PATH"])),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        command = ["ansible-playbook", "-i", str(self.directory / "inventory.yml"), str(ROOT / "playbooks/drain.yml"), *options]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
        return done.returncode, done.stdout + done.stderr

    def close(self):
        self.release.set()
        for process in self.processes:
            process.terminate()
            process.wait(10)
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def rig(tmp_path):
    found = Rig(tmp_path)
    yield found
    found.close()


def test_a_replica_is_drained_under_a_stream_and_brought_back(rig):
    answers = []
    stream = threading.Thread(target=lambda: answers.append(rig.get("node1", "/stream")), daemon=True)
    stream.start()
    node = until(lambda: rig.open and rig.open[0])
    other = "node2" if node == "node1" else "node1"

    code, printed = rig.play("-e", f"drain={node}-1", "--check")
    assert code == 0, printed
    assert "ready -> drained, 1 now" in printed and not list(rig.switches.iterdir())

    def release():
        until(lambda: rig.drained("node1", f"{node}-1"), 120)
        rig.release.set()

    threading.Thread(target=release, daemon=True).start()
    code, printed = rig.play("-e", f"drain={node}-1")
    assert code == 0, printed
    stream.join(10)
    assert answers == ["beginend"]
    assert "draining" in printed and "drained, 1 -> 0" in printed and "drained, 0 -> 0" in printed, printed
    assert rig.nodes("node1") == rig.nodes("node2") == {other}

    code, printed = rig.play("-e", f"drain={other}")
    assert code != 0 and f"Without {other}-1 no replica of the datacenter main would serve ({node}-1 draining)" in printed, printed
    assert [path.name for path in rig.switches.iterdir()] == [f"{node}-1"] and rig.nodes("node1") == {other}

    code, printed = rig.play("-e", f"drain={node}", "-e", "drain_state=ready")
    assert code == 0 and "ready, 0 -> 0" in printed, printed
    assert not list(rig.switches.iterdir()) and rig.nodes("node1") == rig.nodes("node2") == {"node1", "node2"}


def test_sessions_that_do_not_end_are_a_failure_that_names_them_and_can_be_cut(rig):
    stream = threading.Thread(target=lambda: pytest.raises(http.client.HTTPException, rig.get, "node2", "/stream"), daemon=True)
    stream.start()
    node = until(lambda: rig.open and rig.open[0])
    code, printed = rig.play("-e", f"drain={node}", "-e", "drain_deadline=1")
    assert code != 0 and f"{node}-1 still has 1 session on this balancer" in printed, printed
    code, printed = rig.play("-e", f"drain={node}", "-e", "drain_deadline=1", "-e", "drain_cut=true")
    assert code == 0 and "1 cut" in printed, printed
    stream.join(10)
    assert not stream.is_alive()


def test_the_last_replica_is_drained_by_force_only(rig):
    rig.down.add("node2")
    code, printed = rig.play("-e", "drain=node1")
    assert code != 0 and "(node2-1 down). Bring another one back first, or say -e drain_force=true." in printed, printed
    code, printed = rig.play("-e", "drain=nobody")
    assert code != 0 and "drain is nobody; it must be a host with replicas or a replica: node1, node2, node1-1, node2-1." in printed
    code, printed = rig.play("-e", "drain=node1", "-e", "drain_force=true")
    assert code == 0 and [path.name for path in rig.switches.iterdir()] == ["node1-1"], printed


def test_a_limit_is_refused_because_it_would_leave_balancers_untold(rig):
    code, printed = rig.play("-e", "drain=node1", "--limit", "node1,localhost")
    assert code != 0 and "--limit node1,localhost: drain.yml has to tell all balancers and agents" in printed, printed
    assert not list(rig.switches.iterdir())


def test_a_balancer_that_is_down_is_an_error_after_all_others_have_been_told(rig):
    rig.processes[0].terminate()
    rig.processes[0].wait(10)
    code, printed = rig.play("-e", "drain=node1")
    assert code != 0 and "fatal: [node1]" in printed and "node1.sock" in printed, printed
    assert [path.name for path in rig.switches.iterdir()] == ["node1-1"] and rig.nodes("node2") == {"node2"}


def test_what_is_not_handed_over_is_an_error_after_all_have_been_told(rig):
    path, owner = rig.directory / "inventory.yml", rig.directory / "openclaw-owner"
    inventory = yaml.safe_load(path.read_text())
    account = {"type": "telegram", "account": "polling", "mode": "polling", "secrets": {"bot_token": "unused"}, "settings": {"dmPolicy": "pairing"}}
    inventory["openclaw"]["vars"] |= {"gateway_channels": [account], "drain_owner": str(owner)}
    path.write_text(yaml.safe_dump(inventory))
    owner.write_text("#!/bin/sh\nif [ -e \"$0.keeps\" ]; then echo \"openclaw-owner: after 60 s $2 still has telegram/polling.\" >&2; exit 1; fi\n")
    owner.chmod(0o755)
    keeps = rig.directory / "openclaw-owner.keeps"
    keeps.touch()
    code, printed = rig.play("-e", "drain=node1")
    said = " ".join(printed.split())
    assert code != 0 and "node1: openclaw-owner: after 60 s node1-1 still has telegram/polling. The replicas are drained all the same" in said, printed
    assert rig.nodes("node1") == rig.nodes("node2") == {"node2"} and "node1-1" in printed
    keeps.unlink()
    code, printed = rig.play("-e", "drain=node1")
    assert code == 0, printed
    owner.unlink()
    code, printed = rig.play("-e", "drain=node1")
    assert code != 0 and "openclaw-owner" in printed and "drained all the same" in " ".join(printed.split()), printed


def test_a_host_that_cannot_be_reached_is_left_out_by_the_balancers_and_not_sent_to_again(rig):
    path = rig.directory / "inventory.yml"
    inventory = yaml.safe_load(path.read_text())["openclaw"]
    inventory["hosts"]["node2"] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()}
    del inventory["children"]["openclaw_balancers"]["hosts"]["node2"]
    path.write_text(yaml.safe_dump({"openclaw": inventory}))
    _code, printed = rig.play("-e", "drain=node2")
    assert "drained, 0 -> 0" in printed and "no answer" in printed, printed
    assert rig.nodes("node1") == {"node1"}
    code, printed = rig.play("-e", "drain=node2", "-e", "drain_state=ready")
    assert code != 0 and "node2: not reachable or not healthy, so the balancers leave its replicas out as before." in printed, printed
    assert rig.nodes("node1") == {"node1"}
