"""What the role vip renders, judged by keepalived and nftables themselves, and its check against balancers in every state."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "vip"
#: As the role's task has it: with a script user, keepalived 2.2.7 ends its own test by SIGTERM.
TEST = ["env", "--ignore-signal=TERM", "keepalived", "--config-test", "--use-file"]


def cluster(balancers=2, **variables):
    names = [f"node{number}" for number in range(1, balancers + 1)]
    hostvars = {name: {"ansible_host": f"198.18.0.1{number}", "vip_address": "198.18.0.10", **variables} for number, name in enumerate(names, 1)}
    return build({"openclaw_balancers": names}, hostvars)


def render(template, topology, host="node1", **variables):
    """A file as it is on ``host``; the interface and the user are some that this machine has."""
    loader = DataLoader()
    known = {"topology_cluster": topology, "inventory_hostname": host, "ansible_managed": "Ansible managed"}
    for source in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / source), trusted_as_template=True)
    device = next(name for name in sorted(os.listdir("/sys/class/net")) if name != "lo" and (pathlib.Path("/sys/class/net") / name / "ifindex").exists())
    known |= {"_vip_device": device, "_vip_user": "daemon"} | variables
    text = trust_as_template((ROLE / "templates" / template).read_text())
    return str(Templar(loader=loader, variables=known).template(text)) + "\n"


def keepalived(tmp_path, text):
    environment = os.environ | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    assert shutil.which("keepalived", path=environment["PATH"]), "keepalived is needed by this test: run lab/bootstrap"
    path = tmp_path / "keepalived.conf"
    path.write_text(text)
    return subprocess.run([*TEST, str(path)], env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("profile", ["default", "fast"])
@pytest.mark.parametrize("balancers", [1, 2, 5, 20])
def test_keepalived_accepts_the_configuration(tmp_path, profile, balancers):
    done = keepalived(tmp_path, render("keepalived.conf.j2", cluster(balancers), vip_profile=profile))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize(
    "good, bad",
    [
        ("nopreempt", "nopreemt"),
        ("virtual_router_id 51", "virtual_router_id 256"),
        ("script_user daemon daemon", "script_user nobody-of-this-name"),
        ("/usr/bin/python3", "/usr/bin/no-such-python"),
        ("    interface ", "    interface no"),
    ],
)
def test_the_test_before_it_goes_live_refuses_a_broken_one(tmp_path, good, bad):
    text = render("keepalived.conf.j2", cluster())
    assert good in text
    assert keepalived(tmp_path, text.replace(good, bad)).returncode not in (0, 143)


def test_all_begin_as_backups_and_prefer_the_order_of_the_topology():
    texts = {name: render("keepalived.conf.j2", cluster(3), name) for name in ("node1", "node2", "node3")}
    assert all("state BACKUP\n    nopreempt\n" in text for text in texts.values())
    assert [int(text.split("priority ")[1].split()[0]) for text in texts.values()] == [254, 234, 214]
    assert "priority 1\n" in render("keepalived.conf.j2", cluster(20), "node20")
    peers = texts["node2"].split("unicast_peer {")[1].split("}")[0].split()
    assert peers == ["198.18.0.11", "198.18.0.13"] and "unicast_src_ip 198.18.0.12" in texts["node2"]
    assert "198.18.0.10/24 dev " in texts["node2"]


def test_peers_are_of_the_own_datacenter_only():
    names = ["node1", "node2"]
    hostvars = {
        name: {"ansible_host": f"198.18.0.1{number}", "vip_address": f"198.18.0.2{number}", "topology_datacenter": name} for number, name in enumerate(names, 1)
    }
    text = render("keepalived.conf.j2", build({"openclaw_balancers": names}, hostvars))
    assert "198.18.0.21/24" in text and "198.18.0.12" not in text and "unicast" not in text


def test_peers_are_asked_where_they_serve():
    topology = cluster()
    text = render("keepalived.conf.j2", topology, balancer_metrics_port=9000)
    assert 'check_balancer.py 0.5 http://127.0.0.1:9000/health http://198.18.0.12:8080/balancer-health"' in text
    topology["balancers"][1]["tls_port"] = 8443
    assert ' https://198.18.0.12:8443/balancer-health"' in render("keepalived.conf.j2", topology)


def test_profiles():
    default, fast = (render("keepalived.conf.j2", cluster(), vip_profile=profile) for profile in ("default", "fast"))
    assert "advert_int 1\n" in default and "fall 2\n" in default
    assert "advert_int 0.3\n" in fast and "fall 1\n" in fast


@pytest.mark.parametrize("balancers", [1, 2, 5])
def test_nothing_but_vrrp_of_the_peers_is_let_in_and_other_tables_are_left_alone(balancers):
    text = render("firewall.nft.j2", cluster(balancers))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert "flush" not in text and {line.split()[-1] for line in lines if line.startswith("delete")} == {"openclaw_vip"}
    assert lines.index("delete table inet openclaw_vip") > lines.index("table inet openclaw_vip")
    rules = [line for line in lines if "protocol 112" in line]
    assert rules[-1] == "ip protocol 112 counter drop" and len(rules) == (1 if balancers == 1 else 2)
    assert "198.18.0.11" not in text and all(f"198.18.0.1{number}" in rules[0] for number in range(2, balancers + 1))


# ---- the check


class Balancer:
    """Answers each connection with one text; ``silence`` accepts and says nothing."""

    def __init__(self, answer, context=None):
        self.answer, self.context, self.asked = answer, context, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.kept = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _address = self.server.accept()
            except OSError:
                return
            self.asked += 1
            if self.answer == "silence":
                self.kept.append(connection)
                continue
            try:
                if self.context:
                    connection = self.context.wrap_socket(connection, server_side=True)
                connection.recv(1000)
                connection.sendall(self.answer.encode())
            except OSError:
                pass
            connection.close()

    def url(self, path="/x"):
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}{path}"


GOOD, EMPTY = "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\n"


@pytest.fixture
def balancer():
    made = []

    def make(answer, context=None):
        made.append(Balancer(answer, context))
        if answer == "refused":
            made[-1].server.close()
        return made[-1]

    yield make
    for one in made:
        one.server.close()


def run_check(*balancers):
    command = [sys.executable, "-I", "-S", "-B", str(ROLE / "files" / "check_balancer.py"), "0.5", *(one.url() for one in balancers)]
    return subprocess.run(command, timeout=20, check=False).returncode


@pytest.mark.parametrize(
    "local, peers, code",
    [
        (GOOD, [], 0),
        (GOOD, [GOOD], 0),
        (EMPTY, [GOOD], 1),
        (EMPTY, [EMPTY], 0),
        (EMPTY, ["refused"], 0),
        (EMPTY, [], 0),
        ("refused", [GOOD], 1),
        ("refused", [EMPTY], 1),
        ("refused", ["refused"], 0),
        ("silence", [GOOD], 1),
        ("silence", ["silence", "silence"], 0),
        ("nonsense\r\n", [EMPTY, GOOD], 1),
        (EMPTY, [EMPTY, "silence", GOOD], 1),
        (EMPTY, ["HTTP/1.1 429 Too Many Requests\r\n\r\n", "HTTP/1.1 308 Permanent Redirect\r\n\r\n"], 0),
    ],
)
def test_the_address_goes_only_to_a_balancer_that_is_better_off(balancer, local, peers, code):
    assert run_check(balancer(local), *(balancer(peer) for peer in peers)) == code


def test_peers_are_left_alone_while_all_is_well(balancer):
    peer = balancer(GOOD)
    assert run_check(balancer(GOOD), peer) == 0 and peer.asked == 0


def test_a_peer_with_tls_only(balancer, tmp_path):
    command = ["openssl", "req", "-x509", "-noenc", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=peer"]
    subprocess.run([*command, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    assert run_check(balancer(EMPTY), balancer(GOOD, context)) == 1
    assert run_check(balancer(EMPTY), balancer(EMPTY, context)) == 0


@pytest.mark.parametrize("engine", ["haproxy", "nginx"])
def test_all_balancers_together_are_given_less_time_than_keepalived_gives_the_check(engine):
    spec = importlib.util.spec_from_file_location("check_balancer", ROLE / "files" / "check_balancer.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    given = []

    def ask(url, seconds):
        given.append(seconds)
        return check.SILENT

    topology = cluster()
    for node in topology["balancers"]:
        node["engine"] = engine
    config = render("keepalived.conf.j2", topology)
    seconds = float(config.split("check_balancer.py ")[1].split()[0])
    assert check.may_hold(seconds, "local", [f"peer{number}" for number in range(7)], ask)
    # Python has to start, too.
    assert len(given) == 8 and sum(given) <= int(config.split("timeout ")[1].split()[0]) - 0.4
    # nginx's own question to a replica that does not answer is over after a second.
    assert seconds > 1 or engine == "haproxy"
