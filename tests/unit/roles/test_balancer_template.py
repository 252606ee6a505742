"""The balancer's configuration as the role renders it, judged by HAProxy and by what it does with bad backends."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time
import types
import uuid

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "balancer"
STARTED = (200, {"ok": True, "status": "started"})
DRAINING = (503, {"ok": False, "status": "draining"})


# ---- rendering


def render(topology, host="node1", template="haproxy.cfg.j2", **variables):
    """The text of haproxy.cfg on ``host``, from the role's own defaults, variables and template."""
    loader = DataLoader()
    known = {"topology_cluster": topology, "inventory_hostname": host, "ansible_managed": "Ansible managed"}
    for source in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / source), trusted_as_template=True)
    text = trust_as_template((ROLE / "templates" / template).read_text())
    return str(Templar(loader=loader, variables=known | variables).template(text)) + "\n"


def cluster(replicas=3, datacenters=("main",)):
    """A topology with one balancer and some gateway replicas in each datacenter."""
    hosts = {}
    for number, datacenter in enumerate(datacenters, start=1):
        hosts[f"node{number}"] = {
            "ansible_host": f"198.18.0.{number}",
            "topology_datacenter": datacenter,
            "gateway_replicas": replicas,
        }
    return build({"openclaw_balancers": list(hosts), "openclaw_gateways": list(hosts)}, hosts)


def servers(config):
    return [line.split()[1:3] for line in config.splitlines() if line.split()[:1] == ["server"]]


@pytest.fixture(scope="session")
def haproxy_program():
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.fail(
            "haproxy is not installed, and these tests ask it what it makes of the configuration: run lab/bootstrap"
        )
    return program


@pytest.mark.parametrize("replicas", [1, 3, 40])
def test_haproxy_accepts_the_configuration(haproxy_program, tmp_path, replicas):
    config = render(cluster(replicas))
    path = tmp_path / "haproxy.cfg"
    path.write_text(config)
    checked = subprocess.run(
        [haproxy_program, "-c", "-f", str(path)], capture_output=True, text=True, check=False, timeout=30
    )
    assert checked.returncode == 0, checked.stderr
    warnings = [line for line in checked.stderr.splitlines() if "WARNING" in line and "server state file" not in line]
    assert not warnings
    assert len(servers(config)) == replicas


def test_servers_come_from_the_topology_and_from_the_own_datacenter():
    topology = cluster(4, ("here", "there"))
    assert servers(render(topology, "node1")) == [["node1-1", "198.18.0.1:18789"], ["node1-2", "198.18.0.1:18909"]]
    assert servers(render(topology, "node2")) == [["node2-1", "198.18.0.2:18789"], ["node2-2", "198.18.0.2:18909"]]
    assert "bind 198.18.0.2:8080" in render(topology, "node2")


def test_nothing_but_the_front_door_listens_beyond_this_host():
    binds = [line.split()[1] for line in render(cluster()).splitlines() if line.split()[:1] == ["bind"]]
    assert binds == ["198.18.0.1:8080", "127.0.0.1:8405"]


# ---- backends that misbehave


class Backend:
    """A replica's stand-in.

    ``probe`` is its answer to /startupz. ``hurt`` is called with the id of each other request and says what becomes of
    it: "answer", "drop" (it is read, then the connection is closed) or a status.
    """

    def __init__(self, name):
        self.name = name
        self.probe = STARTED
        self.hurt = lambda _identity: "answer"
        self.received = []
        self.release = threading.Event()
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/startupz":
                    if backend.probe == "silence":
                        backend.release.wait(20)
                    return self.send(*backend.probe)
                identity = self.headers.get("X-Test", "")
                backend.received.append((identity, self.headers.items()))
                if self.path == "/held":
                    backend.release.wait(20)
                fate = backend.hurt(identity)
                if fate == "drop":
                    self.close_connection = True
                    return None
                return self.send(200 if fate == "answer" else fate, {"from": backend.name})

            do_POST = do_DELETE = do_GET

            def send(self, status, body):
                raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments):
                """HAProxy ends connections as it likes."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        if self.server:
            self.release.set()
            self.server.shutdown()
            self.server.server_close()
            self.server = None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def until(condition, seconds=10):
    """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)  # between two looks
    return value


class Balancer:
    """HAProxy with the rendered configuration, moved into a directory of the test, in front of ``backends``."""

    def __init__(self, program, directory, backends, **variables):
        self.directory = directory
        self.backends = backends
        self.port, self.status_port = free_port(), free_port()
        self.variables = {"balancer_metrics_port": self.status_port, "balancer_slowstart": 0} | variables
        self.config = directory / "haproxy.cfg"
        self.write({backend.name: backend.port for backend in backends})
        (directory / "state").write_text("1\n")
        self.process = subprocess.Popen(
            [program, "-W", "-f", str(self.config)], stdout=(directory / "log").open("w"), stderr=subprocess.STDOUT
        )
        until(lambda: self.alive() and set(self.states().values()) == {"UP"} and self.checked())

    def write(self, ports):
        replicas = [
            {"id": name, "address": "127.0.0.1", "port": port, "datacenter": "main"} for name, port in ports.items()
        ]
        balancers = [{"host": "node1", "address": "127.0.0.1", "port": self.port, "datacenter": "main"}]
        text = render({"balancers": balancers, "replicas": replicas}, **self.variables)
        for old, new in (
            ("chroot /var/lib/haproxy\n", "\n"),
            ("    user haproxy\n", "\n"),
            ("    group haproxy\n", "\n"),
            ("/run/haproxy/admin.sock user root group root", f"{self.directory}/socket"),
            ("/var/lib/haproxy/server-state", f"{self.directory}/state"),
        ):
            assert text.count(old) == 1, f"{old!r} is not in the configuration"
            text = text.replace(old, new)
        self.config.write_text(text)

    def alive(self):
        assert self.process.poll() is None, self.log()
        return (self.directory / "socket").exists()

    def log(self):
        return (self.directory / "log").read_text()

    def command(self, text):
        with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{self.directory}/socket")
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return ""

    def rows(self):
        """What ``show stat`` says of each server, by name."""
        lines = [line.split(",") for line in self.command("show stat").splitlines()]
        return {line[1]: dict(zip(lines[0], line)) for line in lines if line[0] == "gateways" and line[1] != "BACKEND"}

    def states(self):
        return {name: row["status"].split()[0] for name, row in self.rows().items()}

    def checked(self):
        """Whether every server has been checked at least once."""
        return all(row["check_status"].startswith("L7") for row in self.rows().values())

    def ask(self, method, path="/x", headers=(), body="", port=None):
        """One request on a connection of its own, in one piece; returns status, body and headers."""
        head = {"Host": "test", "Content-Length": len(body), "Connection": "close"} | dict(headers)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", body]
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=15) as client:
            client.sendall("\r\n".join(lines).encode())
            response = http.client.HTTPResponse(client, method=method)
            response.begin()
            return types.SimpleNamespace(status=response.status, body=response.read(), headers=response.headers)

    def reload(self):
        """Reload as the unit does: keep the states, then signal the master."""
        before = self.command("show info")
        save_state().main(str(self.config), f"{self.directory}/socket", f"{self.directory}/state")
        self.process.send_signal(signal.SIGUSR2)

        def pid(info):
            return [line for line in info.splitlines() if line.startswith("Pid:")]

        until(lambda: (now := pid(self.command("show info"))) and now != pid(before) and self.states())

    def close(self):
        for backend in self.backends:
            backend.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


@pytest.fixture
def balancer(haproxy_program, tmp_path):
    started = []

    def start(count=3, **variables):
        running = Balancer(
            haproxy_program, tmp_path, [Backend(f"r{number}") for number in range(1, count + 1)], **variables
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.close()


def save_state():
    """The role's script as a module."""
    spec = importlib.util.spec_from_file_location("save_state", ROLE / "files" / "save_state.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- what is up


@pytest.mark.parametrize(
    "probe, state",
    [
        ((200, {"error": "not a gateway"}), "DOWN"),
        ((200, b"<html>started</html>"), "DOWN"),
        ((200, b""), "DOWN"),
        ((200, {"ok": True, "status": "live"}), "DOWN"),
        ((503, {"ok": False, "status": "starting"}), "DOWN"),
        ((403, {"error": {"message": "Proxy client attribution is required"}}), "DOWN"),
        ("silence", "DOWN"),
        (DRAINING, "NOLB"),
    ],
)
def test_a_replica_is_judged_by_its_json(balancer, probe, state):
    running = balancer(2, balancer_check_interval=100, balancer_check_timeout=300)
    first = running.backends[0]
    first.probe = probe
    until(lambda: running.states() == {"r1": state, "r2": "UP"})
    assert {json.loads(running.ask("GET").body)["from"] for _request in range(6)} == {"r2"}
    first.probe = (200, b'{"ok": true, "status": "started", "version": "2026.9.6"}')
    first.release.set()
    until(lambda: running.states() == {"r1": "UP", "r2": "UP"})


def test_a_draining_replica_finishes_what_it_has_and_gets_nothing_new(balancer):
    running = balancer(2, balancer_check_interval=100)
    first, second = running.backends
    second.probe = DRAINING
    until(lambda: running.states()["r2"] == "NOLB")
    answers = []
    holder = threading.Thread(target=lambda: answers.append(running.ask("POST", "/held", body="x")))
    holder.start()
    until(lambda: first.received)
    first.probe, second.probe = DRAINING, STARTED
    until(lambda: running.states() == {"r1": "NOLB", "r2": "UP"})
    assert json.loads(running.ask("GET").body)["from"] == "r2"
    first.release.set()
    holder.join(10)
    assert answers[0].status == 200 and json.loads(answers[0].body)["from"] == "r1"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_a_replica_that_freezes_lets_go_of_what_it_holds(balancer, headers):
    running = balancer(1, balancer_check_interval=100, balancer_check_timeout=300)
    first = running.backends[0]
    answers = []
    holder = threading.Thread(target=lambda: answers.append(running.ask("POST", "/held", headers, body="x")))
    holder.start()
    until(lambda: first.received)
    first.probe = "silence"
    holder.join(10)
    assert answers[0].status in (502, 503) and len(first.received) == 1


def test_the_least_busy_replica_is_asked(balancer):
    running = balancer(3)
    holders = [threading.Thread(target=running.ask, args=("GET", "/held")) for _number in range(2)]
    for number, holder in enumerate(holders, start=1):
        holder.start()
        until(lambda wanted=number: sum(len(backend.received) for backend in running.backends) == wanted)
    idle = [backend.name for backend in running.backends if not backend.received]
    assert len(idle) == 1
    for _request in range(3):
        # HAProxy counts a connection until it has seen its end, which may be after the client has its answer.
        until(lambda: running.rows()[idle[0]]["scur"] == "0")
        assert json.loads(running.ask("GET").body)["from"] == idle[0]
    for backend in running.backends:
        backend.release.set()
    for holder in holders:
        holder.join(10)


def test_what_gateways_say_to_each_other_does_not_pass(balancer):
    running = balancer(1)
    assert running.ask("POST", "/api/v1/peer", body="{}").status == 404
    assert not running.backends[0].received
    assert running.ask("GET", "/seen", headers={"X-OpenClaw-HA-Forwarded": "node9-1"}).status == 200
    (request,) = running.backends[0].received
    assert "node9-1" not in str(request)


def test_without_any_replica_the_answer_is_json_and_says_when_to_come_back(balancer):
    running = balancer(1, balancer_check_interval=100)
    assert running.ask("GET", "/health", port=running.status_port).status == 200
    running.backends[0].probe = (503, {"ok": False})
    until(lambda: running.states() == {"r1": "DOWN"})
    reply = running.ask("POST", "/api/v1/message", body="{}")
    assert (
        reply.status == 503 and json.loads(reply.body)["error"]["code"] == 503 and reply.headers["Retry-After"] == "2"
    )
    assert running.ask("GET", "/health", port=running.status_port).status == 503


# ---- what is sent twice, and what never is


def test_a_request_that_could_not_be_sent_goes_to_another_replica(balancer):
    running = balancer(3, balancer_check_interval=60000)
    running.backends[0].close()
    for number in range(6):
        reply = running.ask("POST", "/v1/chat/completions", {"X-Test": str(number)}, "{}")
        assert reply.status == 200
    assert sum(int(row["wredis"]) for row in running.rows().values()) >= 1
    received = [identity for backend in running.backends for identity, _headers in backend.received]
    assert sorted(received) == [str(number) for number in range(6)]


KEY = {"Idempotency-Key": "k1"}


@pytest.mark.parametrize("fate, status", [("drop", 502), (502, 502), (503, 503)])
@pytest.mark.parametrize(
    "method, path, headers, again",
    [
        ("GET", "/api/v1/health", {}, True),
        ("POST", "/api/v1/message", KEY, True),
        ("POST", "/api/v1/message", {}, False),
        ("POST", "/api/v1/message", {"Idempotency-Key": ""}, False),
        ("POST", "/v1/chat/completions", KEY, False),
        ("POST", "/api/v1/message/other", KEY, False),
        ("DELETE", "/api/v1/message", KEY, False),
    ],
)
def test_what_reached_a_replica_is_sent_again_only_where_that_is_safe(
    shared, fate, status, method, path, headers, again
):
    identity = str(uuid.uuid4())
    reply = shared.once(fate, identity, method, path, headers)
    attempts = [
        backend.name for backend in shared.running.backends for seen, _headers in backend.received if seen == identity
    ]
    if again:
        assert reply.status == 200 and len(attempts) == 2 and len(set(attempts)) == 2
    else:
        assert reply.status == status and len(attempts) == 1


@pytest.fixture(scope="module")
def shared(haproxy_program, tmp_path_factory):
    """One balancer for many requests: the first replica that sees a request hurts it, whoever sees it again answers."""
    running = Balancer(
        haproxy_program, tmp_path_factory.mktemp("shared"), [Backend(f"r{number}") for number in (1, 2, 3)]
    )

    def arm(fate, identity):
        seen = set()

        def hurt(received):
            if received != identity or received in seen:
                return "answer"
            seen.add(received)
            return fate

        for backend in running.backends:
            backend.hurt = hurt

    def once(fate, identity, method, path, headers):
        arm(fate, identity)
        return running.ask(method, path, {"X-Test": identity, **headers}, "" if method == "GET" else "{}")

    yield types.SimpleNamespace(running=running, arm=arm, once=once)
    running.close()


def test_a_message_whose_body_comes_late_is_sent_again_too(shared):
    running, identity = shared.running, str(uuid.uuid4())
    shared.arm("drop", identity)
    head = "POST /api/v1/message HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 4\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(f"{head}X-Test: {identity}\r\n\r\n".encode())
        until(lambda: "fe=openclaw" in running.command("show sess"))
        client.sendall(b"body")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_message_too_large_to_be_kept_is_sent_once_and_whole(shared):
    running, identity = shared.running, str(uuid.uuid4())
    shared.arm("drop", identity)
    for status in (502, 200):
        assert running.ask("POST", "/api/v1/message", {"X-Test": identity, **KEY}, "x" * 200000).status == status
    received = [
        dict(headers)["content-length"]
        for backend in running.backends
        for seen, headers in backend.received
        if seen == identity
    ]
    assert received == ["200000"] * 2


def test_an_answer_that_was_not_an_error_is_never_asked_for_again(shared):
    for fate in (500, 504, 409, 429):
        identity = str(uuid.uuid4())
        assert shared.once(fate, identity, "POST", "/api/v1/message", KEY).status == fate
        received = [seen for backend in shared.running.backends for seen, _headers in backend.received]
        assert received.count(identity) == 1


# ---- who the client is


def test_a_client_cannot_say_who_it_is(shared):
    identity = str(uuid.uuid4())
    lies = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Real-IP": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "elsewhere.example",
    }
    shared.once("answer", identity, "GET", "/x", lies)
    headers = next(items for backend in shared.running.backends for seen, items in backend.received if seen == identity)
    told = sorted(
        (name.lower(), value) for name, value in headers if "forwarded" in name.lower() or "real-ip" in name.lower()
    )
    assert told == [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "http")]


# ---- long answers, metrics, socket


def test_a_client_may_wait_longer_than_it_may_be_silent(balancer):
    running = balancer(1, balancer_timeout_client=1, balancer_timeout_server=10)
    timer = threading.Timer(2.5, running.backends[0].release.set)
    timer.start()
    assert running.ask("POST", "/held", body="{}").status == 200
    timer.join()


def test_metrics_and_nothing_else_on_the_status_port(shared):
    running = shared.running
    metrics = running.ask("GET", "/metrics", port=running.status_port)
    assert b'haproxy_server_status{proxy="gateways",server="r1",state="UP"} 1' in metrics.body
    assert running.ask("GET", "/", port=running.status_port).status == 404


def test_the_stats_socket_is_closed_to_others(shared):
    assert (shared.running.directory / "socket").stat().st_mode & 0o777 == 0o660
    assert "stats socket /run/haproxy/admin.sock user root group root mode 660" in render(cluster())


# ---- reload


def test_a_reload_drops_nothing_and_keeps_what_was_known(balancer):
    running = balancer(3)
    assert running.command("set server gateways/r2 state drain").strip() == ""
    until(lambda: running.states()["r2"] == "DRAIN")
    statuses, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            statuses.append(running.ask("POST", "/v1/chat/completions", body="{}").status)

    clients = [threading.Thread(target=load) for _number in range(4)]
    for client in clients:
        client.start()
    until(lambda: len(statuses) > 20)
    running.reload()
    reached = len(statuses)
    assert running.states() == {"r1": "UP", "r2": "DRAIN", "r3": "UP"}
    until(lambda: len(statuses) > reached + 20)
    stop.set()
    for client in clients:
        client.join(10)
    assert set(statuses) == {200}


def test_a_replica_that_moved_is_found_at_its_new_place_after_a_reload(balancer):
    running = balancer(2)
    running.write({"r1": running.backends[1].port, "r2": running.backends[0].port})
    running.reload()
    assert {row["addr"] for row in running.rows().values()} == {
        f"127.0.0.1:{backend.port}" for backend in running.backends
    }
    assert running.rows()["r1"]["addr"].endswith(f":{running.backends[1].port}")


STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state ...
4 gateways 1 r1 127.0.0.1 2 0 100 100 5 15 3 3 6 0 0 0 - 1001 - 0 0 - - 0
4 gateways 2 r2 127.0.0.1 2 8 100 100 5 15 3 3 6 0 0 0 - 1002 - 0 0 - - 0
4 gateways 3 r3 127.0.0.1 2 8 100 100 5 15 3 3 6 0 0 0 - 1003 - 0 0 - - 0

"""


def test_only_states_of_unmoved_servers_are_kept():
    config = (
        "backend gateways\n    server r1 127.0.0.1:1001\n    server r2 127.0.0.1:2002\n    server r4 127.0.0.1:1003\n"
    )
    assert save_state().keep(STATE, config).splitlines() == STATE.splitlines()[:3]
    assert save_state().keep("", config) == "1\n"


def test_without_an_old_process_a_fresh_state_is_written(tmp_path, capsys):
    (tmp_path / "cfg").write_text("backend gateways\n")
    (tmp_path / "state").write_text(STATE)
    save_state().main(str(tmp_path / "cfg"), str(tmp_path / "absent"), str(tmp_path / "state"))
    assert (tmp_path / "state").read_text() == "1\n"
    assert "no server states are kept" in capsys.readouterr().err
