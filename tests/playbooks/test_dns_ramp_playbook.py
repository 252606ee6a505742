"""dns_ramp.yml itself, with real PowerDNS servers and a real HAProxy on loopback, whose replica fails when it is told to."""

import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import yaml

from tests.ports import free_port
from tests.unit.plugins.modules.name_servers import SECRET, ZONE, PowerDns, addresses, ask, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend openclaw
    bind 127.0.0.1:{port}
    default_backend gateways
frontend status
    bind 127.0.0.1:{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
backend gateways
    server one 127.0.0.1:{replica} check inter 100ms
"""
BEFORE = {"dc1": 100, "dc2": 0}


class Replica(http.server.ThreadingHTTPServer):
    """Answers 200, or 500 while it fails."""

    daemon_threads = True

    def __init__(self):
        self.fails = False
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                self.send_response(500 if server.fails else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(("127.0.0.1", free_port()), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_arguments):
        """A balancer ends connections as it likes."""


class Rig:
    """Two name servers, a balancer of dc2 with one replica, and a client that asks it for something all the time."""

    def __init__(self, directory):
        self.directory, self.replica, self.stopped = directory, Replica(), threading.Event()
        self.servers = [PowerDns(directory / name).start() for name in ("ns1", "ns2")]
        self.port, self.metrics = free_port(), free_port()
        (directory / "haproxy.cfg").write_text(HAPROXY.format(port=self.port, metrics=self.metrics, replica=self.replica.server_port))
        program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
        assert program, "haproxy is needed by this test: run lab/bootstrap"
        self.haproxy = subprocess.Popen([program, "-f", str(directory / "haproxy.cfg")])
        until(self.get)
        self.client = threading.Thread(target=self.ask, daemon=True)
        self.client.start()
        self.inventory()

    def inventory(self, **changed):
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "dns_provider": "powerdns",
            "dns_zone": ZONE,
            "dns_ttl": 1,
            "dns_weights": {"dc1": 100},
            "dns_addresses": {"dc1": ["192.0.2.10"], "dc2": ["198.51.100.10"]},
            "dns_servers": [server.row for server in self.servers],
            "dns_key_secret": SECRET,
            "dns_deadline": 5,
            "dns_ramp_start": 40,
            "dns_ramp_step": 30,
            "dns_ramp_window": 2,
            "dns_ramp_interval": 1,
            "dns_ramp_minimum_requests": 10,
            "dns_ramp_balancers": [{"host": "lb1", "address": "127.0.0.1", "port": self.port, "engine": "haproxy", "vip": None}],
            "dns_ramp_report": str(self.directory / "report"),
            **changed,
        }
        hosts = {"lb1": {"balancer_metrics_port": self.metrics}}
        inventory = {"openclaw": {"children": {"openclaw_balancers": {"hosts": hosts}}, "vars": variables}}
        (self.directory / "inventory.yml").write_text(yaml.safe_dump(inventory))

    def get(self):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            client.request("GET", "/")
            return client.getresponse().status
        except OSError:
            return None
        finally:
            client.close()

    def ask(self):
        while not self.stopped.wait(0.02):  # fifty requests a second are the load
            self.get()

    def start(self, *options, playbook="dns_ramp.yml"):
        environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ["PATH"])),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(self.directory / "tmp"),
        }
        command = ["ansible-playbook", "-i", str(self.directory / "inventory.yml"), str(ROOT / "playbooks" / playbook), *options]
        self.log = self.directory / "log"
        with open(self.log, "w", encoding="utf-8") as log:
            return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def play(self, *options, playbook="dns_ramp.yml", to="dc2"):
        process = self.start("-e", f"dns_ramp_to={to}", *options, playbook=playbook)
        code = process.wait(300)
        return code, self.log.read_text()

    def stated(self, server=0):
        answer = ask(self.servers[server].port, f"_weights.{ZONE}", "TXT")
        return b"".join(answer.answer[0][0].strings).decode() if answer and answer.answer else ""

    def report(self):
        return json.loads((self.directory / "report" / "dns_ramp.json").read_text())

    def close(self):
        self.stopped.set()
        self.client.join(10)
        if self.haproxy.poll() is None:
            self.haproxy.terminate()
        self.haproxy.wait(10)
        self.replica.shutdown()
        self.replica.server_close()
        for server in self.servers:
            server.stop()


@pytest.fixture
def rig(tmp_path):
    found = Rig(tmp_path)
    yield found
    found.close()


def test_it_goes_up_to_the_end_and_a_second_run_changes_nothing(rig):
    code, output = rig.play("-vvv", "--diff")
    assert code == 0, output
    for percent in (40, 70, 100):
        assert f"dc2 at {percent} % for" in output, output
    assert all("weights dc1=0 dc2=100 content" in rig.stated(number) for number in (0, 1)), output
    assert set(addresses(rig.servers[1].port, 20)) == {"198.51.100.10"}
    report = rig.report()
    assert report["outcome"] == "reached" and report["before"] == "dc1=100 dc2=0"
    assert sum(one["requests"] for one in report["looks"]) > 30 and not sum(one["failures"] for one in report["looks"])
    assert "<svg" in (rig.directory / "report" / "dns_ramp.html").read_text()
    assert SECRET not in output, [line for line in output.splitlines() if SECRET in line]
    said = rig.stated()
    code, output = rig.play()
    assert code == 0 and "gets all clients already" in output and rig.stated() == said


def error_answers(rig):
    rig.replica.fails = True


def no_replica(rig):
    rig.replica.shutdown()
    rig.replica.server_close()


@pytest.mark.parametrize("fault", [error_answers, no_replica])
def test_it_goes_back_by_itself_when_requests_fail(rig, fault):
    process = rig.start("-e", "dns_ramp_to=dc2", "-e", "dns_ramp_window=4")
    until(lambda: "dc1=60 dc2=40 ramp-from dc1=100 dc2=0" in rig.stated(), 60)
    fault(rig)
    code, output = process.wait(120), rig.log.read_text()
    assert code != 0, output
    assert "The ramp to dc2 was stopped" in output and "times as fast as it may" in output and "are in force again" in output, output
    assert all("weights dc1=100 dc2=0 content" in rig.stated(number) for number in (0, 1))
    assert set(addresses(rig.servers[0].port, 20)) == {"192.0.2.10"}
    assert rig.report()["outcome"] == "went back" and "times as fast" in rig.report()["why"]


def test_it_goes_back_when_the_balancer_no_longer_answers(rig):
    process = rig.start("-e", "dns_ramp_to=dc2", "-e", "dns_ramp_window=30")
    until(lambda: "dc2=40" in rig.stated() and "dc2 at 40 %" in rig.log.read_text(), 60)
    rig.haproxy.kill()
    code, output = process.wait(120), rig.log.read_text()
    assert code != 0 and "lb1 gave no counts 2 times in a row" in output, output
    assert "weights dc1=100 dc2=0 content" in rig.stated()


def test_a_run_that_was_killed_goes_on_where_it_was_and_still_goes_back(rig):
    process = rig.start("-e", "dns_ramp_to=dc2", "-e", "dns_ramp_window=3")
    until(lambda: "dc1=30 dc2=70" in rig.stated(), 90)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    rig.replica.fails = True
    code, output = rig.play()
    assert code != 0 and "dc2 has 70 % already" in output and "dc2 at 40 %" not in output, output
    assert "weights dc1=100 dc2=0 content" in rig.stated()


def test_when_it_cannot_go_back_it_says_so(rig):
    process = rig.start("-e", "dns_ramp_to=dc2", "-e", "dns_ramp_window=30")
    until(lambda: "dc2=40" in rig.stated() and "dc2 at 40 %" in rig.log.read_text(), 60)
    for server in rig.servers:
        server.stop()
    rig.replica.fails = True
    code, output = process.wait(120), rig.log.read_text()
    assert code != 0 and "could NOT be proven to be in force" in output, output
    assert rig.report()["outcome"] == "failed" and "could NOT" in rig.report()["why"]


def test_a_dry_run_changes_nothing(rig):
    code, output = rig.play("--check")
    assert code == 0 and "first step (dc2: 40 %)" in output, output
    assert not rig.stated()


@pytest.mark.parametrize(
    "options, words",
    [
        (["-e", "dns_ramp_to=dc3"], "dns_ramp_to: found &#39;dc3&#39;"),
        (["-e", "dns_ramp_window=1"], "dns_ramp_window: found 1"),
        (["--limit", "lb1"], "takes no limit"),
    ],
)
def test_what_cannot_be_judged_is_refused(rig, options, words):
    code, output = rig.play(*options)
    assert code != 0 and words.replace("&#39;", "'") in output, output
    assert "ramp-from" not in rig.stated()


def test_weights_are_shown_and_set_at_once(rig):
    code, output = rig.play(playbook="dns_set.yml")
    assert code == 0 and f"{ZONE}: dc1=100 dc2=0" in output, output
    code, output = rig.play("-e", '{"dns_set": {"dc2": 100}}', playbook="dns_set.yml")
    assert code == 0 and f"{ZONE}: dc1=0 dc2=100" in output, output
    assert set(addresses(rig.servers[0].port, 20)) == {"198.51.100.10"}
    code, output = rig.play(playbook="dns_set.yml")
    assert code == 0 and "changed=0" in output and f"{ZONE}: dc1=0 dc2=100" in output, output
