"""The service as a process, asked over HTTP and by agent-check, in front of gateways that do what gateways do."""

from __future__ import annotations

import concurrent.futures
import datetime
import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import statistics
import threading
import time

import pytest
from agent_rig import base_config, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openclaw_agent import checks, config, drain, probes

from tests.ports import free_port


def test_a_gateway_that_serves(agent):
    running = agent()
    until(lambda: running.verdict()[1]["checks"]["redis"] is not None and running.verdict()[1]["checks"]["unit"])
    status, body = running.verdict()
    assert status == 200
    assert (body["status"], body["replica"], body["host"], body["zone"], body["version"]) == ("ok", "r1", "node1", "main", "2026.9.6")
    assert body["checks"] == {
        "disk": None,
        "gateway": True,
        "unit": True,
        "partner": None,
        "certificate": None,
        "redis": True,
        "provider": True,
        "clock": None,
    }
    assert body["uptime_seconds"] == 12 and body["observed_seconds"] < running.config["stalled_after"] and body["drain"] is None and body["problems"] == []
    assert running.line() == "up 100%\n"


def test_a_gateway_that_is_gone_is_down_at_once_and_up_only_by_an_answer(agent):
    running = agent()
    (gateway,) = running.gateways
    gateway.stop()
    begun = time.monotonic()
    until(lambda: running.line() == "down #gateway: nothing listens on its port\n")
    assert time.monotonic() - begun < running.config["stalled_after"], "as late as one that is silent"
    assert running.verdict()[0] == 503 and running.status() == "down"
    # It listens, but does not answer yet: not one that serves.
    with socket.create_server(("127.0.0.1", gateway.port)):
        time.sleep(0.5)  # for some looks of the agent
        assert running.status() == "down"
    gateway.start()
    until(lambda: running.line() == "up 100%\n")


def test_a_frozen_gateway_is_stalled_then_dead_then_back(agent):
    running = agent(2, stalled_after=0.5, dead_after=1.5, gateway_timeout=0.4)
    first = running.gateways[0]
    first.freeze()
    begun = time.monotonic()
    until(lambda: running.line() == "up 1%\n")
    stalled = time.monotonic() - begun
    status, body = running.verdict()
    assert (status, body["status"], body["checks"]["gateway"]) == (200, "degraded", False)
    until(lambda: running.line().startswith("down #gateway: no good answer for "))
    dead = time.monotonic() - begun
    assert 0.4 < stalled < 1.2 and 1.4 < dead < 2.5, (stalled, dead)
    assert running.verdict()[0] == 503 and running.status("r2") == "ok"
    first.thaw()
    until(lambda: running.status() == "ok")


def test_a_draining_gateway(agent):
    running = agent()
    running.gateways[0].status = "draining"
    until(lambda: running.status() == "draining")
    assert running.verdict()[0] == 200 and running.line() == "up 0%\n"
    running.gateways[0].status = "starting"
    until(lambda: running.line() == "down #gateway: it is starting\n")
    running.gateways[0].status = "started"
    until(lambda: running.status() == "ok")


def test_sick_dependencies_degrade(agent):
    running = agent()
    running.gateways[0].health = {"redis": False, "provider": False, "providers": {"cloud": False}}
    until(lambda: running.status() == "degraded")
    status, body = running.verdict()
    assert status == 200 and running.line() == "up 100%\n"
    assert body["problems"] == ["redis: this replica has no working connection", "provider: turns go past cloud"]


def test_the_unit_is_watched(agent):
    running = agent()
    running.systemd(ActiveState="failed", Result="exit-code", ExecMainStatus="78")
    until(lambda: running.line() == "down #unit: it is failed (result exit-code, exit status 78)\n")
    running.systemd(NRestarts="3")
    until(lambda: running.verdict()[1]["problems"] == ["unit: restarted 3 times in 5 minutes"])
    assert running.status() == "degraded"


def test_a_systemd_that_hangs_holds_nothing_up(agent):
    running = agent()
    running.units.write_text("hang")
    until(lambda: "unit: systemd does not tell" in running.verdict()[1]["problems"])
    assert running.status() == "degraded" and running.line() == "up 100%\n"
    assert running.verdict()[1]["observed_seconds"] < running.config["stalled_after"]
    running.systemd()
    until(lambda: running.status() == "ok")


def test_an_agent_that_was_frozen_itself_takes_nobody_out(agent):
    running = agent(dead_after=2.0)
    running.process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # longer than a dead gateway would take
    running.process.send_signal(signal.SIGCONT)
    lines = [running.line() for _look in range(50)]
    assert set(lines) == {"up 100%\n"}


def test_disk(agent, tmp_path):
    running = agent(disk_paths=[str(tmp_path)], disk_free_percent=0, disk_inodes_percent=0)
    until(lambda: running.verdict()[1]["checks"]["disk"] is True)
    running.stop()
    running.config["disk_free_percent"] = 100
    running.write()
    running.start()
    until(lambda: running.verdict()[1]["checks"]["disk"] is False)
    assert running.status() == "degraded"


def test_the_kernels_clock_can_be_read():
    seen = probes.clock()
    assert isinstance(seen.synced, bool) and abs(seen.offset) < 3600


def test_the_clock_is_a_check(agent):
    running = agent(clock=True)
    judged = checks.clock(probes.clock(), running.config["clock_max_offset"])
    until(lambda: running.verdict()[1]["checks"]["clock"] is not None)
    body = running.verdict()[1]
    assert body["checks"]["clock"] is judged.ok
    assert any("clock: " in problem for problem in body["problems"]) is not judged.ok


# --- the switch


def test_the_drain_switch_survives_the_service(agent):
    running = agent(2)
    done = running.command("drain", "r1", "--reason", "new disk", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["changed"] and result["drain"]["reason"] == "new disk" and result["drain"]["by"]
    assert running.line("r1") == "up 0%\n" and running.line("r2") == "up 100%\n"
    assert running.verdict("r1")[1]["drain"] == result["drain"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        running.stop(number)
        running.start()
        assert running.line("r1") == "up 0%\n" and running.status("r1") == "draining"
    again = running.command("drain", "r1")
    assert (again.returncode, again.stdout) == (0, f"r1: already drained since {result['drain']['since']} by {result['drain']['by']} (new disk)\n")
    assert running.command("ready", "r1").stdout == "r1: ready\n"
    assert running.line("r1") == "up 100%\n" and running.status("r1") == "ok"
    again = running.command("ready", "r1")
    assert (again.returncode, again.stdout) == (0, "r1: already ready\n")


def test_all_and_status(agent):
    running = agent(2)
    assert running.command("drain", "--all").returncode == 0
    assert running.line("r1") == running.line("r2") == "up 0%\n"
    shown = running.command("status")
    assert shown.returncode == 0 and shown.stdout.startswith("r1: draining; drained since ")
    assert [one["status"] for one in json.loads(running.command("status", "r2", "--json").stdout)] == ["draining"]
    running.stop()
    silent = running.command("status", "--json")
    assert silent.returncode == 1
    assert [(one["status"], bool(one["drain"])) for one in json.loads(silent.stdout)] == [("unknown", True)] * 2
    # The switch needs no service.
    assert running.command("ready", "--all").returncode == 0


@pytest.mark.parametrize(
    "words, text",
    [
        (["drain", "r9"], "no replica r9 on this host; it has r1."),
        (["drain"], "name the replicas (r1), or say --all."),
        (["ready", "r1", "--all"], "not both"),
    ],
)
def test_commands_that_are_refused(agent, words, text):
    running = agent()
    done = running.command(*words)
    assert done.returncode == 2 and text in done.stderr
    assert running.line() == "up 100%\n"


def test_a_switch_that_cannot_be_read_is_on(tmp_path):
    (tmp_path / "r1").write_text("{")
    assert "cannot be read" in drain.read(str(tmp_path), "r1")["reason"]
    assert drain.read(str(tmp_path), "r2") is None


def test_a_switch_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        drain.drain(str(tmp_path), "r1", "ada")
    assert list(tmp_path.iterdir()) == [] and drain.read(str(tmp_path), "r1") is None


# --- TLS


class Authority:
    """A certificate authority of the test."""

    def __init__(self, directory):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.file = directory / "ca.pem"
        self.file.write_bytes(self._sign(self.name, self.key, 365, x509.BasicConstraints(True, None)))

    def issue(self, name, days, address="127.0.0.1"):
        """A file with a key and a certificate that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self.directory / f"{name}.pem"
        path.write_bytes(key.private_bytes(*form) + self._sign(subject, key, days, names))
        return path

    def _sign(self, subject, key, days, extension):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, True)
        builder = builder.not_valid_before(now - datetime.timedelta(days=400)).not_valid_after(now + datetime.timedelta(days=days, hours=1))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Partner:
    """A TLS server that shakes hands with everybody."""

    def __init__(self, certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.where = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, args=(context,), daemon=True)
        self.thread.start()

    def _serve(self, context):
        while True:
            try:
                client, _address = self.listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                client.close()

    def close(self):
        if self.listener.fileno() != -1:
            # A thread in accept() does not notice close().
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def partner():
    running = []

    def start(certificate):
        running.append(Partner(certificate))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_a_partner_is_greeted_and_its_certificate_counted(agent, authority, partner):
    there = partner(authority.issue("there", 100))
    running = agent(partner=[there.where], partner_ca=str(authority.file))
    until(lambda: running.verdict()[1]["checks"]["partner"] is True and running.verdict()[1]["checks"]["certificate"] is True)
    assert f'openclaw_agent_certificate_days{{certificate="{there.where}",replica="r1"}} 100.0' in running.metrics()
    there.close()
    until(lambda: running.verdict()[1]["checks"]["partner"] is False)
    _status, body = running.verdict()
    assert body["status"] == "degraded" and body["checks"]["certificate"] is True, "what is known of it stays known"
    assert body["problems"] == [f"partner: {there.where}: Connection refused"]


@pytest.mark.parametrize(
    "issued, trusted, text",
    [
        ({"days": -1}, True, "its certificate is refused: certificate has expired"),
        ({"days": 100, "address": "127.0.0.9"}, True, "its certificate is refused: IP address mismatch"),
        ({"days": 100}, False, "its certificate is refused: unable to get local issuer certificate"),
    ],
)
def test_a_partner_whose_certificate_is_refused(agent, authority, partner, issued, trusted, text):
    there = partner(authority.issue("there", **issued))
    running = agent(partner=[there.where], partner_ca=str(authority.file) if trusted else "")
    until(lambda: running.verdict()[1]["checks"]["partner"] is False)
    assert text in running.verdict()[1]["problems"][0]


def test_a_partner_that_is_silent(agent):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = agent(partner=[f"127.0.0.1:{silent.getsockname()[1]}"], partner_timeout=0.3)
        until(lambda: running.verdict()[1]["checks"]["partner"] is False)
        assert "no handshake within 0.3 s" in running.verdict()[1]["problems"][0]
        assert running.status() == "degraded"


def test_certificates_of_the_host(agent, authority, tmp_path):
    good, ending = authority.issue("good", 100), authority.issue("ending", 3)
    running = agent(certificates=[f"{tmp_path}/goo*.pem", f"{tmp_path}/absent.pem"], certificate_interval=600)
    until(lambda: running.verdict()[1]["checks"]["certificate"] is False)
    assert "nobody has looked at them yet" in running.verdict()[1]["problems"][0]
    assert running.command("certificates").returncode == 0
    listed = json.loads((tmp_path / "certificates.json").read_text())
    assert list(listed["ends"]) == [str(good)] and "PRIVATE" not in json.dumps(listed)
    running.stop()
    running.config["certificates"] = [f"{tmp_path}/*ing.pem", f"{tmp_path}/good.pem"]
    running.write()
    assert running.command("certificates").returncode == 0
    running.start()
    until(lambda: running.verdict()[1]["problems"] == [f"certificate: {ending} ends in 3 days"])
    assert running.status() == "degraded" and running.line() == "up 100%\n"


def test_a_list_of_certificates_that_nobody_renews(agent, authority, tmp_path):
    authority.issue("good", 100)
    (tmp_path / "certificates.json").write_text(json.dumps({"looked_at": time.time() - 100, "ends": {"x": time.time() + 1e7}}))
    running = agent(certificates=[f"{tmp_path}/good.pem"])
    until(lambda: running.verdict()[1]["checks"]["certificate"] is False)
    assert "nobody has looked at it lately" in running.verdict()[1]["problems"][0]


# --- metrics, configuration, load


def test_metrics(agent, tmp_path):
    running = agent(disk_paths=[str(tmp_path)])
    until(lambda: running.verdict()[1]["checks"]["disk"] is not None and running.verdict()[1]["checks"]["redis"])
    text = running.metrics()
    for line in (
        'openclaw_agent_info{host="node1",replica="r1",version="2026.9.6",zone="main"} 1.0',
        'openclaw_agent_status{replica="r1",status="ok"} 1.0',
        'openclaw_agent_status{replica="r1",status="down"} 0.0',
        'openclaw_agent_check{check="gateway",replica="r1"} 1.0',
        'openclaw_agent_drained{replica="r1"} 0.0',
        'openclaw_agent_unit_restarts{replica="r1"} 0.0',
    ):
        assert line in text.splitlines(), text
    assert 'check="partner"' not in text
    assert "openclaw_agent_gateway_silent_seconds" in text and "openclaw_agent_disk_free_ratio" in text


@pytest.mark.parametrize(
    "change, text",
    [
        ({"dead_after": 1.0}, "dead_after is 1.0; it must be more than stalled_after"),
        ({"gateway_interval": 0}, "gateway_interval is 0; it must be a number of at least 0.05"),
        ({"disk_free_percent": "10"}, "disk_free_percent is '10'"),
        ({"restarts": True}, "restarts is True"),
        ({"partner": ["example.org"]}, "partner has 'example.org'; it must be host:port."),
        ({"partner": "example.org:443"}, "partner must be a list of texts"),
        ({"address": "node1"}, "address is 'node1'; it must be an IP address"),
        ({"clock": "yes"}, "clock is 'yes'; it must be true or false"),
        ({"partner_ca": None}, "partner_ca must be a text"),
        ({"colour": "red"}, "settings that are missing or unknown: colour"),
        ({"replicas": [{"id": "a"}]}, "a replica must have"),
    ],
)
def test_a_configuration_that_is_refused(tmp_path, change, text):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(base_config(tmp_path) | change))
    with pytest.raises(config.ConfigError, match="^.*") as refused:
        config.load(str(path))
    assert text in str(refused.value)


def replica(**more):
    return {"id": "a-1", "zone": "z", "port": 1, "unit": "u", "verdict_port": 2, "check_port": 3} | more


@pytest.mark.parametrize(
    "replicas, text",
    [
        ([replica(id="../x")], "cannot be the name of a file"),
        ([replica(port=70000)], "port of a-1 is 70000"),
        ([replica(check_port=2)], "2 is check_port of a-1, and verdict_port of a-1."),
        ([replica(), replica()], "a-1 is id of a-1, and id of a-1."),
    ],
)
def test_replicas_that_are_refused(tmp_path, replicas, text):
    with pytest.raises(config.ConfigError) as refused:
        config.check(base_config(tmp_path) | {"replicas": replicas})
    assert text in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_file_that_is_no_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(config.ConfigError):
        config.load(str(tmp_path / "config.json"))


def test_endpoints():
    assert config.endpoint("example.org:443") == ("example.org", 443)
    assert config.endpoint("[2001:db8::1]:443") == ("2001:db8::1", 443)


def test_a_service_that_may_not_start_says_why(agent):
    running = agent()
    running.stop()
    running.config["dead_after"] = 0.5
    running.write()
    done = running.command("serve")
    assert done.returncode == 2 and "dead_after is 0.5" in done.stderr
    assert running.command("check").returncode == 2


def test_the_verdict_under_load(agent, capsys):
    """p95 of the verdict while 20 clients ask as fast as they can and HAProxy's questions go on."""
    running = agent(3)
    port, took, lock = running.replica("r1")["verdict_port"], [], threading.Lock()

    def ask(_client):
        connection, own = http.client.HTTPConnection("127.0.0.1", port, timeout=10), []
        for number in range(100):
            begun = time.monotonic()
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            own.append(time.monotonic() - begun)
            assert response.status == 200
            if number % 10 == 0:
                assert running.line("r2") == "up 100%\n"
        with lock:
            took.extend(own)

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, range(20)))
    seconds = time.monotonic() - begun
    p95 = statistics.quantiles(took, n=20)[-1]
    with capsys.disabled():
        print(f"\nverdict: {len(took)} answers in {seconds:.1f} s, p50 {statistics.median(took) * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms")
    assert p95 < 0.2
    assert running.verdict()[1]["observed_seconds"] < running.config["stalled_after"]


def test_one_port_serves_one_replica(agent):
    running = agent(2)
    assert [running.verdict(name)[1]["replica"] for name in ("r1", "r2")] == ["r1", "r2"]
    assert free_port() not in [one["check_port"] for one in running.replicas]
    connection = http.client.HTTPConnection("127.0.0.1", running.replica("r1")["verdict_port"], timeout=5)
    connection.request("GET", "/")
    assert connection.getresponse().status == 404
