"""The gate against real HTTP servers and against ports where nothing or nobody answers."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.openclaw.ha.plugins.modules import gateway_health
from tests.ports import free_port

STARTED = (200, {"ok": True, "status": "started"})
STARTING = (503, {"ok": False, "status": "starting", "pendingReason": "startup-sidecars"})


class Gateway:
    """Answers probes from a list, the last one for ever; tells its version to those who show the token."""

    def __init__(self, *answers):
        self.answers, self.paths, self.messages = list(answers), [], []
        self.reply = (200, {"reply": "OK"})
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                gateway.paths.append(self.path)
                answers = gateway.answers
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(body, dict) and self.headers.get("Authorization") == "Bearer t0ken":
                    body = {**body, "version": "2026.9.6"}
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                gateway.messages.append((self.path, self.headers["Authorization"], sent))
                status, body = gateway.reply
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def replica(self, name="node1-1", **more):
        return {"id": name, "address": "127.0.0.1", "port": self.server.server_port, **more}

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def gateway():
    running = []

    def start(*answers):
        running.append(Gateway(*answers))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def gate(run_module):
    def run(*replicas, **more):
        settings = {"interval": 0.05, "deadline": 0.3, "timeout": 5, **more}
        return run_module(gateway_health, replicas=list(replicas), **settings)

    return run


@pytest.fixture
def silent_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(name="free_port")
def a_free_port():
    return free_port()


def test_opens_after_successes_in_a_row(gateway, gate):
    node = gateway(STARTING, STARTED, STARTING, STARTED)
    result = gate(node.replica(), successes=3, deadline=30)
    assert not result["failed"] and not result["changed"]
    assert result["replicas"][0]["healthy"] and result["replicas"][0]["probes"] == 6
    assert set(node.paths) == {"/startupz"}


def test_the_token_brings_the_version(gateway, gate):
    node = gateway(STARTED)
    assert gate(node.replica())["replicas"][0]["version"] == ""
    result = gate(node.replica(), token="t0ken", version="2026.9.6")
    assert result["replicas"][0]["version"] == "2026.9.6"


def test_another_version_than_wanted_fails(gateway, gate):
    result = gate(gateway(STARTED).replica(), token="t0ken", version="2026.9.7")
    assert result["failed"] and "runs version 2026.9.6 instead of 2026.9.7" in result["msg"]


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (STARTING, "HTTP 503, status starting, ok False, pendingReason startup-sidecars"),
        ((200, b"<html>Control UI</html>"), "HTTP 200 without JSON"),
        ((200, {"ok": True, "status": "draining"}), "HTTP 200, status draining"),
        ((403, {"error": {"message": "Proxy client attribution is required"}}), "Proxy client attribution"),
    ],
)
def test_never_healthy(gateway, gate, answer, seen):
    node = gateway(answer)
    result = gate(node.replica("node7-1"))
    assert result["failed"]
    assert (
        f"Replica node7-1 (http://127.0.0.1:{node.server.server_port}/startupz) is not healthy after" in result["msg"]
    )
    assert seen in result["msg"] and not result["replicas"][0]["healthy"] and seen in result["replicas"][0]["seen"]


def verdict(status, *problems, **checks):
    body = {"status": status, "replica": "node1-1", "version": "2026.9.6", "problems": list(problems), "drain": None}
    return (503 if status == "down" else 200, {**body, "checks": {"gateway": True, "redis": True, **checks}})


def test_the_gate_of_the_verdict_opens_after_good_ones_in_a_row(gateway, gate):
    sick = verdict("degraded", "redis: no connection", redis=False)
    node = gateway(verdict("ok"), verdict("down", "gateway: it is starting", gateway=False), sick)
    result = gate(node.replica(), path="/health", successes=3, deadline=30)
    assert not result["failed"] and set(node.paths) == {"/health"}
    (replica,) = result["replicas"]
    assert replica["probes"] == 5 and replica["seen"] == "degraded: redis: no connection"
    assert replica["verdict"]["checks"]["redis"] is False


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (verdict("down", "unit: it is failed", gateway=True), "down: unit: it is failed."),
        (verdict("degraded", "gateway: no good answer for 2.0 s", gateway=False), "degraded: gateway: no good answer for 2.0 s."),
        (verdict("draining"), "draining."),
    ],
)
def test_the_gate_of_the_verdict_stays_shut_and_says_which_check_failed(gateway, gate, answer, seen):
    result = gate(gateway(answer).replica(), path="/health")
    assert result["failed"] and "/health) is not healthy after" in result["msg"] and seen in result["msg"]
    assert result["replicas"][0]["verdict"]["status"] == answer[1]["status"]


def test_other_paths_bring_no_verdict(gateway, gate):
    assert "verdict" not in gate(gateway(STARTED).replica())["replicas"][0]


def test_nobody_listens(gate, free_port):
    result = gate({"id": "node1-1", "address": "127.0.0.1", "port": free_port})
    assert result["failed"] and "connection refused" in result["msg"]


def test_nobody_answers(gate, silent_port):
    result = gate({"id": "node1-1", "address": "127.0.0.1", "port": silent_port}, timeout=0.05)
    assert result["failed"] and "no answer within 0.05 s" in result["msg"]


def test_one_of_two_fails_and_both_are_reported(gateway, gate, free_port):
    result = gate(gateway(STARTED).replica("node1-1"), {"id": "node2-1", "address": "127.0.0.1", "port": free_port})
    assert result["failed"] and [each["healthy"] for each in result["replicas"]] == [True, False]
    assert "Replica node2-1" in result["msg"] and "node1-1" not in result["msg"]


def test_a_slow_replica_does_not_hold_up_another(gateway, gate, silent_port):
    result = gate(gateway(STARTED).replica(), {"id": "slow", "address": "127.0.0.1", "port": silent_port}, timeout=1)
    assert result["replicas"][0]["seconds"] < result["replicas"][1]["seconds"]


def test_check_mode_looks_once_and_never_fails(run_module, free_port):
    replica = {"id": "node1-1", "address": "127.0.0.1", "port": free_port}
    result = run_module(gateway_health, check=True, replicas=[replica], deadline=300)
    assert not result["failed"] and result["replicas"][0]["probes"] == 1 and not result["replicas"][0]["healthy"]


@pytest.mark.parametrize(("name", "value"), [("successes", 0), ("interval", 0), ("timeout", 0)])
def test_settings_that_would_spin_are_refused(gate, name, value):
    result = gate(**{name: value})
    assert result["failed"] and f"{name} is" in result["msg"]


def test_unknown_paths_are_refused(gate):
    assert gate(path="/")["failed"]


SYSTEMCTL = """
import sys
if "show" in sys.argv:
    print("ActiveState={state}\\nExecMainStatus={status}\\nResult=exit-code\\nInvocationID=abc")
"""


@pytest.fixture
def units(program, monkeypatch):
    def have(state, status):
        path = program("systemctl", SYSTEMCTL.format(state=state, status=status)).parent
        program("journalctl", "import sys\nprint('why it ended', *sys.argv[1:3])")
        monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")

    return have


def test_a_unit_that_exited_with_78_ends_the_wait_and_shows_its_journal(gate, units, free_port):
    units("failed", 78)
    replica = {"id": "node1-1", "address": "127.0.0.1", "port": free_port, "unit": "openclaw-gateway@1.service"}
    result = gate(replica, deadline=300)
    assert result["failed"] and result["replicas"][0]["probes"] == 1
    assert "exited with status 78" in result["msg"] and "systemd does not try again" in result["msg"]
    assert "systemctl restart openclaw-gateway@1.service" in result["msg"]
    assert "why it ended _SYSTEMD_INVOCATION_ID=abc +" in result["msg"]


def test_a_unit_that_goes_on_trying_is_waited_for(gate, units, free_port):
    units("activating", 1)
    replica = {"id": "node1-1", "address": "127.0.0.1", "port": free_port, "unit": "openclaw-gateway@1.service"}
    result = gate(replica, deadline=2)
    assert result["failed"] and result["replicas"][0]["probes"] > 1 and "has failed" not in result["msg"]
    assert "journalctl -u openclaw-gateway@1.service" in result["msg"] and "why it ended" in result["msg"]


def test_a_healthy_replica_shows_no_journal(gateway, gate, units):
    units("active", 0)
    result = gate(gateway(STARTED).replica(unit="openclaw-gateway@1.service"))
    assert not result["failed"] and "why it ended" not in json.dumps(result)


class TestTurn:
    """A replica that gets ready and fails every turn is not healthy."""

    def test_it_answers(self, gateway, gate):
        one = gateway(STARTED)
        result = gate(one.replica(), turn="Say OK.", token="t0ken")
        assert not result["failed"] and result["replicas"][0]["seen"] == "healthy, and it answered a message"
        assert one.messages == [("/api/v1/message", "Bearer t0ken", {"channel": "health", "user_id": "node1-1", "message": "Say OK."})]

    @pytest.mark.parametrize(
        "reply, said",
        [
            ((502, {"error": {"message": "All providers failed."}}), "a message was answered with HTTP 502, All providers failed."),
            ((200, b"<html>"), "a message was answered with HTTP 200 without JSON"),
            ((200, {"status": "ok"}), "a message was answered with HTTP 200, status ok"),
        ],
    )
    def test_it_does_not(self, gateway, gate, reply, said):
        one = gateway(STARTED)
        one.reply = reply
        result = gate(one.replica(), turn="Say OK.")
        assert result["failed"] and said in result["msg"] and result["replicas"][0]["healthy"] is False

    def test_only_a_healthy_one_is_asked_and_a_dry_run_asks_none(self, gateway, gate):
        one = gateway(STARTING)
        assert gate(one.replica(), turn="Say OK.")["failed"] and not one.messages
        one = gateway(STARTED)
        assert not gate(one.replica(), turn="Say OK.", check=True)["failed"] and not one.messages

    def test_silence_ends(self, gate, silent_port):
        from ansible_collections.openclaw.ha.plugins.module_utils import health

        seen = health.turn({"id": "a", "address": "127.0.0.1", "port": silent_port}, "", "hello", 0.2)
        assert not seen.ok and seen.seen == "no answer to a message within 0.2 s"
        seen = health.turn({"id": "a", "address": "127.0.0.1", "port": free_port()}, "", "hello", 0.2)
        assert not seen.ok and seen.seen.startswith("no answer to a message: ")
