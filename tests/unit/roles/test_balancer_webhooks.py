"""Webhooks of channels, which either engine hands to the ingresses: with a real HAProxy and a real nginx."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import threading
import uuid

import pytest
from balancer_rig import Agent, Backend, HAProxy, Ingress, answer, authority, certificate, chunked, cluster, render, until

from tests.ports import free_port

WEBHOOK, OTHER = WEBHOOKS = ["/webhooks/slack/default", "/webhooks/telegram/default"]
#: No check notices anything before the test is over.
NEVER = {"balancer_check_interval": 60000}


def is_haproxy(running):
    return isinstance(running, HAProxy)


# ---- without webhooks

#: SHA-256 of what was rendered before there were webhooks. Who changes a template for everybody puts what comes now here.
BEFORE = {
    ("haproxy.cfg.j2", "plain"): "01246b2b575dd9317f08bfca7763cf1bbace674f4ac64e5cde79fa29ff074176",
    ("haproxy.cfg.j2", "all"): "1af66a6d3288ca18160db326481ecd8d22c8823cf59e1019976785ee5c94041e",
    ("nginx.conf.j2", "plain"): "abca02f1ffba75f88b7b154d54b8163226fd50153a41d6153866e45fc2ac9afc",
    ("nginx.conf.j2", "all"): "c34893b7ad6fd461e3cc910430e4ce7ba34d8022182259a7a2827c9b236b76ce",
}


@pytest.mark.parametrize("said", [{}, {"webhooks": [], "ingresses": []}, {"webhooks": [], "ingresses": [{"host": "node1", "datacenter": "main"}]}])
@pytest.mark.parametrize("template, kind", BEFORE)
def test_without_webhooks_nothing_of_them_is_in_the_configuration(template, kind, said):
    topology = cluster(3, ("here", "there") if kind == "all" else ("main",))
    for name in ("webhooks", "ingresses"):
        topology.pop(name, None)
    if kind == "all":
        topology["balancers"][0]["tls_port"] = 8443
    text = render(topology | said, template=template, balancer_client_requests_per_minute=10 if kind == "all" else 0)
    assert "webhook" not in text and "ingress" not in text
    assert hashlib.sha256(text.encode()).hexdigest() == BEFORE[template, kind]


# ---- where they go


def _opener(engine):
    """A function that starts a balancer with so many replicas and ingresses, and the end of the latter."""
    made = []

    def start(ingresses=2, replicas=1, elsewhere=(), **variables):
        here = [Ingress(f"i{number}") for number in range(1, ingresses + 1)]
        made.extend(here)
        entries = [one.entry() for one in here] + [one.entry("west") for one in elsewhere]
        running = engine(replicas, webhooks=WEBHOOKS, ingresses=entries, **variables)
        running.ingresses = here
        if is_haproxy(running):
            until(lambda: all(row["check_status"] == "L7OK" for row in running.rows("ingresses").values()))
        return running

    yield start
    for one in made:
        one.close()


@pytest.fixture
def door(engine):
    """Starts either balancer."""
    yield from _opener(engine)


@pytest.fixture
def haproxy_door(balancer):
    """Starts an HAProxy."""
    yield from _opener(balancer)


def received(running):
    """How often the ingresses and the replicas were asked."""
    return sum(len(one.received) for one in running.ingresses), sum(len(one.received) for one in running.backends)


def test_a_webhook_goes_to_an_ingress_and_all_else_to_the_replicas(door):
    running = door()
    lies = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
    for path in (WEBHOOK, OTHER, f"{WEBHOOK}?a=b%20c"):
        reply = running.ask("POST", path, lies, "body")
        assert reply.status == 200 and json.loads(reply.body)["from"] in ("i1", "i2") and reply.headers["X-Request-Id"]
    assert received(running) == (3, 0) and [size for one in running.ingresses for size in one.bodies] == [4] * 3
    for _identity, headers in [each for one in running.ingresses for each in one.received]:
        assert [value for name, value in headers if "203.0.113.9" in value] == []
    for path in ("/webhook", "/webhooks", "/webhooksx", "/x/webhooks/slack/default", "/v1/models"):
        assert json.loads(running.ask("POST", path, body="{}").body)["from"] == "r1"
    assert received(running) == (3, 5)


@pytest.mark.parametrize("path", ["/webhooks/x", "/webhooks/", f"{WEBHOOK}/", f"{WEBHOOK}x", f"{WEBHOOK}/x?a=b", "/webhooks/Slack/default", "/%77ebhooks/x"])
def test_what_is_beside_them_is_nobodys(door, path):
    running = door()
    for method in ("POST", "GET"):
        reply = running.ask(method, path)
        assert reply.status == 404 and json.loads(reply.body)["error"]["code"] == 404
    assert received(running) == (0, 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_a_post_is_a_webhook(door, method):
    running = door()
    reply = running.ask(method, WEBHOOK)
    assert reply.status == 405 and reply.headers["Allow"] == "POST"
    assert method == "HEAD" or json.loads(reply.body)["error"]["code"] == 405
    assert received(running) == (0, 0)


@pytest.mark.parametrize("smaller, larger", [("balancer_webhook_max_body", "balancer_max_body"), ("balancer_max_body", "balancer_webhook_max_body")])
def test_webhooks_have_a_limit_of_their_own(door, smaller, larger):
    running = door(**{smaller: 1000, larger: 15000})
    for path, limit in (("/x", "balancer_max_body"), (WEBHOOK, "balancer_webhook_max_body")):
        most = running.variables[limit]
        assert running.ask("POST", path, body="x" * most).status == 200
        reply = running.ask("POST", path, body="x" * (most + 1))
        assert reply.status == 413 and json.loads(reply.body)["error"]["code"] == 413
        assert chunked(running, [most // 10] * 10, path=path) == 200
        assert chunked(running, [most // 10] * 11, path=path) == 413
    assert received(running) == (2, 2)


def test_a_webhook_of_unknown_length_must_fit_into_haproxys_buffer(door):
    running = door()
    assert chunked(running, [1000] * 16, path=WEBHOOK) == 200
    assert chunked(running, [1000] * 18, path=WEBHOOK) == (413 if is_haproxy(running) else 200)
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    assert chunked(running, [1000] * 40, upgrade, path=WEBHOOK) == (413 if is_haproxy(running) else 200)
    assert received(running)[1] == 0


@pytest.mark.parametrize("plain", ["redirect", "serve"])
def test_they_come_with_tls_as_all_else_does(door, tmp_path, plain):
    certificate(tmp_path, "own", ["test.example"])
    running = door(tls=True, balancer_plain=plain)
    assert running.ask("POST", WEBHOOK, tls=True).status == 200
    reply = running.ask("POST", f"{WEBHOOK}?a=b", {"Host": "test.example:8080"}, "{}")
    if plain == "redirect":
        assert reply.status == 308 and reply.headers["Location"] == f"https://test.example:{running.tls_port}{WEBHOOK}?a=b"
    else:
        assert reply.status == 200
    assert received(running) == (1 if plain == "redirect" else 2, 0)


def test_a_webhook_comes_to_an_ingress_in_one_piece(door):
    running = door()
    with running.connect() as client:
        client.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo".encode())
        # Others come and go meanwhile, so the balancer has seen the beginning of it.
        for _request in range(3):
            assert running.ask("POST", OTHER).status == 200
        assert received(running) == (3, 0)
        client.sendall(b"dy")
        assert answer(client).status == 200
    assert received(running) == (4, 0)


# ---- another ingress


def hurt_first(running, fate):
    """The ingress that sees a webhook first hurts it, whoever sees it again answers."""
    seen = set()

    def hurt(identity):
        first = identity not in seen
        seen.add(identity)
        return fate if first else "answer"

    for one in running.ingresses:
        one.hurt = hurt


def hurt_all(running, fate):
    for one in running.ingresses:
        one.hurt = lambda _identity: fate


#: Before 15 s are over, for the tests.
IMPATIENT = {"haproxy": {"timeout server 15s": "timeout server 1s"}, "nginx": {"proxy_read_timeout 15s": "proxy_read_timeout 1s"}}


@pytest.mark.parametrize("fate", ["drop", 502, 503, "silence"])
def test_what_one_ingress_refuses_another_gets(door, engine_name, fate):
    running = door(3, replaced=IMPATIENT[engine_name], **NEVER)
    hurt_first(running, fate)
    reply = running.ask("POST", WEBHOOK, {"X-Test": "one"}, "{}")
    assert reply.status == 200
    assert sorted(len(one.received) for one in running.ingresses) == [0, 1, 1] and received(running)[1] == 0


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 415, 500])
def test_what_an_ingress_has_decided_is_not_asked_for_again(door, status):
    running = door()
    hurt_all(running, "answer" if status == 200 else status)
    assert running.ask("POST", WEBHOOK).status == status
    assert received(running) == (1, 0)


def test_dead_ingresses_are_passed_over_before_anybody_has_noticed(door):
    running = door(3, **NEVER)
    for one in running.ingresses[:2]:
        one.close()
    for number in range(12):
        assert running.ask("POST", WEBHOOK, {"X-Test": str(number)}, "{}").status == 200
    assert sorted(int(identity) for identity, _headers in running.ingresses[2].received) == list(range(12))
    assert received(running)[1] == 0


@pytest.mark.parametrize("fate, again", [(503, "5"), (502, None), ("drop", "2"), ("silence", "2"), ("dead", "2")])
def test_when_all_refuse_the_provider_is_to_come_again(door, engine_name, fate, again):
    running = door(2, replaced=IMPATIENT[engine_name], **NEVER)
    if fate == "dead":
        for one in running.ingresses:
            one.close()
    hurt_all(running, fate)
    reply = running.ask("POST", WEBHOOK, body="{}")
    # Of a 502, HAProxy leaves the ingress's own headers and nginx none.
    assert reply.status == 503 and reply.headers["Retry-After"] == (again or ("5" if is_haproxy(running) else "2"))
    if again == "2":
        assert json.loads(reply.body)["error"] == {"message": "No ingress can take this webhook now.", "type": "service_unavailable", "code": 503}
    # Each was asked; HAProxy goes round twice, and once more.
    seen = [len(one.received) for one in running.ingresses]
    assert fate == "dead" or (min(seen) >= 1 and sum(seen) == (5 if is_haproxy(running) else 2))
    assert received(running)[1] == 0


def test_without_an_ingress_here_the_provider_is_to_come_again(door):
    other = Ingress("west")
    running = door(0, elsewhere=[other])
    reply = running.ask("POST", WEBHOOK)
    assert reply.status == 503 and reply.headers["Retry-After"] == "2" and json.loads(reply.body)["error"]["code"] == 503
    assert running.ask("GET", WEBHOOK).status == 405 and running.ask("POST", "/x").status == 200
    assert not other.received
    other.close()


def test_webhooks_are_taken_while_no_replica_serves(door):
    running = door()
    running.backends[0].close()
    assert running.ask("POST", "/x").status == 503
    assert running.ask("POST", WEBHOOK).status == 200


@pytest.mark.parametrize("fate, sent_again", [(503, False), ("dead", True)])
def test_a_webhook_larger_than_haproxys_buffer_is_sent_whole_and_once(door, fate, sent_again):
    """To a dead ingress nothing was sent; what was sent and refused, HAProxy has no more, and the provider repeats it."""
    running = door(2, **NEVER)
    if fate == "dead":
        running.ingresses[0].close()
    else:
        hurt_first(running, fate)
    replies = [running.ask("POST", WEBHOOK, {"X-Test": "one"}, "x" * 200000) for _request in range(2)]
    if is_haproxy(running) and not sent_again:
        assert [reply.status for reply in replies] == [503, 200] and replies[0].headers["Retry-After"] == "5"
        assert received(running) == (2, 0)
    else:
        assert [reply.status for reply in replies] == [200, 200]
        assert received(running) == (2 if sent_again else 3, 0)
    assert {size for one in running.ingresses for size in one.bodies} == {200000}


def test_haproxy_asks_ingresses_for_their_health(haproxy_door):
    running = haproxy_door(2, balancer_check_interval=100)
    first, second = running.ingresses
    first.probe = (503, {"status": "down"})
    until(lambda: running.states("ingresses") == {"i1": "DOWN", "i2": "UP"})
    for _request in range(4):
        assert running.ask("POST", WEBHOOK).status == 200
    assert (len(first.received), len(second.received)) == (0, 4)
    second.probe = (503, {"status": "down"})
    until(lambda: set(running.states("ingresses").values()) == {"DOWN"})
    reply = running.ask("POST", WEBHOOK)
    assert reply.status == 503 and reply.headers["Retry-After"] == "2" and received(running) == (4, 0)
    first.probe = second.probe = (200, {"status": "ok"})
    until(lambda: set(running.states("ingresses").values()) == {"UP"})
    assert running.ask("POST", WEBHOOK).status == 200


# ---- limits for clients


def test_requests_of_a_provider_are_not_counted(door):
    running = door(balancer_client_requests_per_minute=5)
    assert {running.ask("POST", WEBHOOK).status for _request in range(20)} == {200}
    allowed = 5 if is_haproxy(running) else 6
    assert [running.ask("GET").status for _request in range(10)] == [200] * allowed + [429] * (10 - allowed)
    assert {running.ask("POST", WEBHOOK).status for _request in range(3)} == {200}


def test_what_a_provider_shows_is_not_counted_as_a_token(haproxy_door):
    running = haproxy_door(balancer_token_requests_per_minute=3)
    token = {"Authorization": "Bearer one"}
    assert {running.ask("POST", WEBHOOK, token).status for _request in range(8)} == {200}
    assert [running.ask("GET", headers=token).status for _request in range(5)] == [200] * 3 + [429] * 2
    assert running.ask("POST", WEBHOOK, token).status == 200


def test_connections_of_a_provider_are_counted_by_haproxy_alone(door):
    running = door(balancer_client_connections=2)
    hurt_all(running, "silence")
    holders = [running.connect() for _number in range(2)]
    for holder in holders:
        holder.sendall(f"POST {WEBHOOK} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".encode())
    until(lambda: received(running)[0] == 2)
    if is_haproxy(running):
        with pytest.raises(OSError):
            running.ask("GET")
    else:
        assert running.ask("GET").status == 200
    for holder in holders:
        holder.close()


def test_neither_query_nor_headers_are_logged(door):
    running = door()
    secret = f"secret-{uuid.uuid4()}"
    asked = [("POST", WEBHOOK), ("POST", "/webhooks/x"), ("GET", WEBHOOK)]
    for method, path in asked:
        running.ask(method, f"{path}?token={secret}", {"X-Telegram-Bot-Api-Secret-Token": secret, "Authorization": secret}, "{}")
    hurt_all(running, 503)
    running.ask("POST", f"{WEBHOOK}?token={secret}", {"X-Telegram-Bot-Api-Secret-Token": secret}, "{}")

    def log():
        return running.log() if is_haproxy(running) else (running.directory / "access").read_text()

    until(lambda: all(log().count(f'"{method} {path} HTTP/1.1"') == count for (method, path), count in zip(asked, (2, 1, 1), strict=True)))
    assert secret not in log()


# ---- HAProxy: another datacenter


@pytest.fixture
def issuer():
    return authority()


def own(directory, issuer):
    """A directory with what the cluster's authority gives to a balancer."""
    (directory / "own").mkdir(parents=True)
    certificate(directory, "own", ["127.0.0.1"], issuer)
    (directory / "own" / "ca.pem").write_bytes((directory / "trusted.pem").read_bytes())
    return directory


def west(number, port):
    return {"host": f"west{number}", "address": "127.0.0.1", "datacenter": "west", "engine": "haproxy", "datacenters_port": port}


def drain(running):
    running.agents[0].line = b"up 0%\n"
    until(lambda: running.rows()["r1"]["weight"] == "0")


@pytest.fixture
def two_datacenters(haproxy_program, tmp_path, issuer):
    """An HAProxy of each of two datacenters, with a replica and two ingresses; each is "main" to itself, and "west" to the other."""
    ports, running = [free_port(), free_port()], []
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(("here", "there")):
            ingresses = [stack.enter_context(contextlib.closing(Ingress(f"{name}-{each}"))) for each in (1, 2)]
            settings = {"datacenters_port": ports[number], "elsewhere": [west(1, ports[1 - number])], "balancer_check_interval": 100}
            settings |= {"webhooks": WEBHOOKS, "ingresses": [one.entry() for one in ingresses]}
            started = HAProxy(haproxy_program, own(tmp_path / name, issuer), [Backend("r1")], [Agent()], **settings)
            running.append(stack.enter_context(contextlib.closing(started)))
            started.ingresses = ingresses
            started.ready()
        until(lambda: all(one.states("datacenters") == {"west-west1": "UP"} for one in running))
        until(lambda: all(set(one.states("ingresses").values()) == {"UP"} for one in running))
        yield running


def test_a_webhook_goes_to_the_datacenter_whose_replicas_serve(two_datacenters):
    here, there = two_datacenters
    assert json.loads(here.ask("POST", WEBHOOK, body="x").body)["from"] in ("here-1", "here-2")
    drain(here)
    hurt_first(there, 503)
    reply = here.ask("POST", WEBHOOK, {"X-Request-Id": "one", "X-Test": "t"}, "body")
    assert reply.status == 200 and json.loads(reply.body)["from"] in ("there-1", "there-2") and reply.headers["X-Request-Id"] == "one"
    # Both there had it, whole: the first said 503.
    assert received(there) == (2, 0) and [one.bodies for one in there.ingresses] == [[4], [4]]
    headers = {name.lower(): value for name, value in there.ingresses[0].received[0][1]}
    assert headers["x-forwarded-for"] == "127.0.0.1" and headers["x-request-id"] == "one"
    hurt_all(there, 503)
    reply = here.ask("POST", WEBHOOK)
    assert reply.status == 503 and reply.headers["Retry-After"] == "5"
    assert here.ask("GET", WEBHOOK).status == 405 and here.ask("POST", "/webhooks/x").status == 404
    # With replicas nowhere, the journal here takes it.
    drain(there)
    until(lambda: here.states("datacenters") == {"west-west1": "DOWN"})
    assert json.loads(here.ask("POST", WEBHOOK).body)["from"] in ("here-1", "here-2")


def test_what_is_no_webhook_here_comes_to_no_replica_from_another_datacenter_either(two_datacenters):
    here, _there = two_datacenters
    context = ssl.create_default_context(cafile=str(here.directory / "trusted.pem"))
    context.load_cert_chain(here.directory / "own.crt", here.directory / "own.key")
    for path, status in (("/webhooks/x", 404), (WEBHOOK, 200)):
        with socket.create_connection(("127.0.0.1", here.variables["datacenters_port"]), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                client.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n".encode())
                if status == 200:
                    # Its body may come later than its headers, and is waited for, so that it can be sent again.
                    until(lambda: "fe=datacenters" in here.command("show sess"))
                    hurt_first(here, 503)
                client.sendall(b"{}")
                assert answer(client).status == status
    assert received(here) == (2, 0)


@pytest.mark.parametrize("path, status", [(WEBHOOK, 200), ("/api/v1/message", 502), ("/x", 502)])
def test_a_webhook_that_was_lost_on_its_way_to_another_datacenter_is_sent_again(haproxy_program, tmp_path, issuer, path, status):
    """Of two balancers there, the first takes it and breaks off."""
    others = [Ingress(f"west{number}") for number in (1, 2)]
    directory = own(tmp_path / "here", issuer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "own.crt", directory / "own.key")
    for one in others:
        one.server.socket = context.wrap_socket(one.server.socket, server_side=True)
    entries = [west(number, one.port) for number, one in enumerate(others, start=1)]
    running = HAProxy(
        haproxy_program, directory, [Backend("r1")], [Agent()], datacenters_port=free_port(), elsewhere=entries, webhooks=WEBHOOKS, ingresses=[]
    )
    with contextlib.ExitStack() as stack:
        for one in (running, *others):
            stack.enter_context(contextlib.closing(one))
        running.ready().ingresses = others
        until(lambda: set(running.states("datacenters").values()) == {"UP"})
        drain(running)
        hurt_first(running, "drop")
        assert running.ask("POST", path, {"X-Test": "one"}, "{}").status == status
        assert received(running) == (2 if path == WEBHOOK else 1, 0)
        hurt_all(running, "drop")
        reply = running.ask("POST", path, {"X-Test": "two"}, "{}")
        assert (reply.status, reply.headers["Retry-After"]) == ((503, "2") if path == WEBHOOK else (502, None))


# ---- many at once


def test_many_at_once_lose_nothing_while_an_ingress_dies(door):
    running = door(3, **NEVER)
    statuses, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            try:
                statuses.append(running.ask("POST", WEBHOOK, body="{}").status)
            except http.client.IncompleteRead:
                # It died in the middle of its answer: the status, which is all that a provider reads, had been sent.
                statuses.append(200)

    clients = [threading.Thread(target=load) for _number in range(4)]
    for client in clients:
        client.start()
    until(lambda: len(statuses) > 20)
    running.ingresses[0].close()
    reached = len(statuses)
    until(lambda: len(statuses) > reached + 40)
    stop.set()
    for client in clients:
        client.join(20)
    assert set(statuses) == {200} and received(running)[1] == 0
