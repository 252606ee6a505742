"""The balancer's configuration as the role renders it, judged by HAProxy and by what it does with bad backends."""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import subprocess
import threading
import types
import uuid

import pytest
from balancer_rig import DRAINING, STARTED, Backend, HAProxy, cluster, render, save_state, servers, until


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
    topology = cluster(2, ("here", "there"))
    own = [["node1-1", "198.18.0.1:18789"], ["node1-2", "198.18.0.1:18909"]]
    # Behind them the balancers of the other datacenter, not its replicas.
    assert servers(render(topology, "node1")) == [*own, ["there-node2", "198.18.0.2:8444"]]
    topology["balancers"][0]["datacenters_port"] = 0
    assert servers(render(topology, "node1")) == own
    assert servers(render(topology, "node2"))[:2] == [["node2-1", "198.18.0.2:18789"], ["node2-2", "198.18.0.2:18909"]]
    assert "bind 198.18.0.2:8080" in render(topology, "node2")


def test_nothing_but_the_front_door_listens_beyond_this_host():
    binds = [line.split()[1] for line in render(cluster()).splitlines() if line.split()[:1] == ["bind"]]
    assert binds == ["198.18.0.1:8080", "127.0.0.1:8405"]


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


def test_each_replica_is_asked_in_turn(balancer):
    running = balancer(3)
    assert collections.Counter(json.loads(running.ask("GET").body)["from"] for _request in range(9)) == {"r1": 3, "r2": 3, "r3": 3}


@pytest.mark.parametrize("count", [3, 5])
def test_when_all_but_a_busy_one_die_at_once_no_request_is_lost(balancer, count):
    """Before any check has noticed: to "leastconn" the dead ones would be the least busy, try after try."""
    running = balancer(count, balancer_check_interval=60000)
    *dying, last = running.backends
    with contextlib.ExitStack() as held:
        holders = []
        while len(last.received) < 2:
            holders.append(held.enter_context(running.connect()))
            holders[-1].sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
            until(lambda: sum(len(backend.received) for backend in running.backends) == len(holders))
        for backend in dying:
            backend.close()
        answers = [running.ask("GET") for _request in range(20)]
        assert collections.Counter(one.status for one in answers) == {200: 20}
        last.release.set()


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
    running = HAProxy(haproxy_program, tmp_path_factory.mktemp("shared"), [Backend(f"r{number}") for number in (1, 2, 3)]).ready()

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


def test_a_state_that_cannot_be_written_holds_nothing_up_and_leaves_no_old_one(tmp_path, capsys, monkeypatch):
    (tmp_path / "cfg").write_text("backend gateways\n")
    (tmp_path / "state").write_text(STATE)
    module = save_state()

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    module.main(str(tmp_path / "cfg"), str(tmp_path / "absent"), str(tmp_path / "state"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg"]
    assert "No space left on device" in capsys.readouterr().err


def test_without_an_old_process_a_fresh_state_is_written(tmp_path, capsys):
    (tmp_path / "cfg").write_text("backend gateways\n")
    (tmp_path / "state").write_text(STATE)
    save_state().main(str(tmp_path / "cfg"), str(tmp_path / "absent"), str(tmp_path / "state"))
    assert (tmp_path / "state").read_text() == "1\n"
    assert "no server states are kept" in capsys.readouterr().err
