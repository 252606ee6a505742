"""What both engines promise, seen with a real HAProxy and a real nginx; where they differ, the test says how."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
import uuid

import pytest
from balancer_rig import STARTED, Agent, Backend, HAProxy, answer, authority, certificate, chunked, cluster, render, until

from ansible_collections.openclaw.ha.plugins.module_utils.processes import EXACT, started
from ansible_collections.openclaw.ha.plugins.modules import unread_files
from tests.ports import free_port

KEY = {"Idempotency-Key": "k1"}


def is_haproxy(running):
    return isinstance(running, HAProxy)


def given(directory, *names):
    """The variables for files that certificate() wrote, each valid for NAME.example and what is below it."""
    return {
        "balancer_certificates": [{"name": name, "cert": str(directory / f"{name}.crt"), "key": str(directory / f"{name}.key")} for name in names],
        # As the role reads them from the files.
        "_balancer_server_names": {f"site-{name}": [f"DNS:{name}.example", f"DNS:*.{name}.example"] for name in names},
    }


# ---- what the programs say to the configuration

INGRESSES = [
    {"host": f"node{number}", "address": f"198.18.0.{number}", "port": 18600, "status_port": 18601, "datacenter": "main"} for number in (1, 2, 3)
]
VARIANTS = [
    {},
    {"balancer_client_connections": 0, "balancer_client_requests_per_minute": 600},
    {"balancer_client_requests_per_minute": 1},
    {"tls_port": 8443},
    {"tls_port": 443, "balancer_plain": "serve", "balancer_hsts": 63072000},
    {"tls_port": 8443, "balancer_plain": "off"},
    {"tls_port": 8443, "balancer_certificates": ["one", "two"]},
    {"vip": "198.18.0.200", "tls_port": 8443},
    {"webhooks": ["/webhooks/slack/default", "/webhooks/telegram/default"], "ingresses": INGRESSES, "tls_port": 8443},
    {"webhooks": [f"/webhooks/telegram/bot-{number}" for number in range(200)], "ingresses": INGRESSES, "balancer_client_requests_per_minute": 10},
    # A datacenter without an ingress of its own.
    {"webhooks": ["/webhooks/slack/default"], "ingresses": [INGRESSES[0] | {"datacenter": "west"}], "balancer_client_connections": 0},
]
HAPROXY_VARIANTS = [
    {"balancer_token_requests_per_minute": 10},
    {"balancer_peers_port": 9000, "balancer_client_requests_per_minute": 10, "balancer_token_requests_per_minute": 10},
    {"balancer_peers_port": 9000, "tls_port": 8443, "balancer_certificates": ["one"]},
]


def rendered(directory, template, variant):
    """A configuration with real certificates, for one of the variants."""
    variables = dict(variant)
    topology = cluster(3)
    topology["balancers"][0] |= {key: variables.pop(key) for key in ("tls_port", "vip") if key in variables}
    topology |= {key: variables.pop(key) for key in ("webhooks", "ingresses") if key in variables}
    for name in ("one", "two"):
        certificate(directory, f"site-{name}", [f"{name}.example"])
    certificate(directory, "own", ["node1"])
    (directory / "own").mkdir()
    (directory / "own" / "ca.pem").write_bytes((directory / "trusted.pem").read_bytes())
    if "balancer_certificates" in variables:
        variables |= given(directory, *variables["balancer_certificates"])
    return render(topology, template=template, _balancer_directory=str(directory), **variables)


@pytest.mark.parametrize("variant", VARIANTS + HAPROXY_VARIANTS, ids=str)
def test_haproxy_accepts_it(haproxy_program, tmp_path, variant):
    (tmp_path / "haproxy.cfg").write_text(rendered(tmp_path, "haproxy.cfg.j2", variant))
    command = [haproxy_program, "-c", "-f", str(tmp_path / "haproxy.cfg")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stderr
    assert not [line for line in checked.stderr.splitlines() if "WARNING" in line and "server state file" not in line]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_nginx_accepts_it(nginx_program, tmp_path, variant):
    text = rendered(tmp_path, "nginx.conf.j2", variant)
    (tmp_path / "upstream.conf").write_text("upstream gateways { zone gateways 256k; server 127.0.0.1:1; }\n")
    text = text.replace("/etc/nginx/openclaw/", f"{tmp_path}/").replace("pid /run/nginx.pid", f"pid {tmp_path}/pid")
    # nginx also looks whether it may bind: to an address of this machine, and to a port that needs no privilege.
    text = text.replace("listen 198.18.0.", "listen 127.18.0.").replace(":443 ssl", ":8443 ssl")
    (tmp_path / "nginx.conf").write_text(text)
    command = [nginx_program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stderr
    # Only a part of what nginx 1.22 takes silently is what a later one would have us write.
    assert not [line for line in checked.stderr.splitlines() if "warn" in line and '"listen ... http2" directive is deprecated' not in line]


def test_nginx_holds_to_the_settings_that_were_asked_for():
    text = " ".join(render(cluster(), template="nginx.conf.j2").split())
    for setting in (
        "proxy_next_upstream error timeout http_502 http_503; proxy_next_upstream_tries 2; proxy_next_upstream_timeout 5s;",
        "proxy_connect_timeout 5s; proxy_send_timeout 30s; proxy_read_timeout 60s;",
        "proxy_buffering off;",
        "location = /nginx-health {",
        "upstream=$upstream_addr upstream_status=$upstream_status upstream_time=$upstream_response_time",
    ):
        assert setting in text


def test_both_bind_the_virtual_address_too():
    topology = cluster()
    topology["balancers"][0] |= {"vip": "198.18.0.200", "tls_port": 8443}
    assert re.findall(r"bind ([\d.:]+)", render(topology)) == [
        "198.18.0.1:8080", "198.18.0.1:8443", "198.18.0.200:8080", "198.18.0.200:8443", "127.0.0.1:8405",
    ]  # fmt: skip
    assert re.findall(r"listen ([\d.:]+)", render(topology, template="nginx.conf.j2")) == [
        "198.18.0.1:8443", "198.18.0.200:8443", "198.18.0.1:8080", "198.18.0.200:8080", "127.0.0.1:8405",
    ]  # fmt: skip


# ---- TLS


@pytest.fixture
def tls(engine, tmp_path):
    """Starts a balancer that speaks TLS with a certificate of the test's authority."""
    certificate(tmp_path, "own", ["test.example"])

    def start(count=2, **variables):
        return engine(count, tls=True, **variables)

    return start


def curl(running, *arguments):
    command = ["curl", "--silent", "--show-error", "--max-time", "10", "--cacert", str(running.directory / "trusted.pem")]
    connect = f"test.example:{running.tls_port}:127.0.0.1:{running.tls_port}"
    done = subprocess.run([*command, "--connect-to", connect, *arguments], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_http_2_and_http_1_by_alpn(tls):
    running = tls()
    url = f"https://test.example:{running.tls_port}/v1/models"
    assert curl(running, "--http2", "--write-out", "%{http_version}", "--output", "/dev/null", url) == "2"
    assert curl(running, "--http1.1", "--write-out", "%{http_version}", "--output", "/dev/null", url) == "1.1"
    data = ["--data", "{}", "--header", "Idempotency-Key: k"]
    assert '"from":"r' in curl(running, "--http2", *data, f"https://test.example:{running.tls_port}/api/v1/message")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_old_tls_is_refused(tls, version):
    running = tls()
    context = ssl.create_default_context(cafile=str(running.directory / "trusted.pem"))
    # What this Python would refuse by itself proves nothing.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    connection = socket.create_connection(("127.0.0.1", running.tls_port), timeout=10)
    with connection:
        if version < ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError, match="(?i)alert|version"):
                context.wrap_socket(connection, server_hostname="test.example")
        else:
            with context.wrap_socket(connection, server_hostname="test.example") as client:
                assert client.version() in ("TLSv1.2", "TLSv1.3")


def test_the_certificate_is_chosen_by_the_name_that_is_asked_for(engine, tmp_path):
    for name in ("first", "second"):
        certificate(tmp_path, f"site-{name}", [f"{name}.example", f"*.{name}.example"])
    running = engine(1, tls=True, **given(tmp_path, "first", "second"))

    def shown(asked):
        with running.connect(tls=True, name=asked) as client:
            return dict(pair for (pair,) in client.getpeercert()["subject"])["commonName"]

    names = ("first.example", "second.example", "www.second.example", "elsewhere.example")
    assert [shown(name) for name in names] == ["site-first", "site-second", "site-second", "site-first"]


def test_a_replica_learns_that_it_was_tls(tls):
    running = tls(1, balancer_plain="serve")
    for encrypted, scheme in ((True, "https"), (False, "http")):
        assert running.ask("GET", headers={"X-Forwarded-Proto": "gopher"}, tls=encrypted).status == 200
        _identity, headers = running.backends[0].received[-1]
        assert [value for name, value in headers if name.lower() == "x-forwarded-proto"] == [scheme]


@pytest.mark.parametrize("seconds, said", [(0, None), (3600, "max-age=3600")])
def test_hsts_is_said_with_tls_only_and_with_errors_too(tls, seconds, said):
    running = tls(1, balancer_plain="serve", balancer_hsts=seconds)
    for path in ("/x", "/api/v1/peer"):
        assert running.ask("GET", path, tls=True).headers["Strict-Transport-Security"] == said
        assert running.ask("GET", path).headers["Strict-Transport-Security"] is None


def test_who_comes_without_tls_is_sent_to_it(tls):
    running = tls(1)
    reply = running.ask("POST", "/api/v1/message?a=b%20c", {"Host": "test.example:8080"}, "{}")
    assert reply.status == 308
    assert reply.headers["Location"] == f"https://test.example:{running.tls_port}/api/v1/message?a=b%20c"
    assert not running.backends[0].received


def test_without_a_plain_port_nobody_comes_in_there(tls):
    running = tls(1, balancer_plain="off")
    assert running.ask("GET", tls=True).status == 200
    with pytest.raises(ConnectionRefusedError):
        running.ask("GET")


def test_a_renewed_certificate_is_shown_after_a_reload_that_cuts_nothing(tls):
    running = tls(1)
    with running.connect(tls=True) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        until(lambda: running.backends[0].received)
        received = client.recv(65536)
        old = client.getpeercert()["serialNumber"]
        certificate(running.directory, "own", ["test.example"])
        running.reload()
        with running.connect(tls=True) as other:
            assert other.getpeercert()["serialNumber"] != old
        running.backends[0].release.set()
        while b"data: 2" not in received:
            more = client.recv(65536)
            assert more, "the stream was cut by the reload"
            received += more


# ---- what a client may


def test_a_body_that_is_too_large_is_refused(engine):
    running = engine(1, balancer_max_body=100000)
    assert running.ask("POST", body="x" * 100000).status == 200
    reply = running.ask("POST", body="x" * 100001)
    assert reply.status == 413 and json.loads(reply.body)["error"]["code"] == 413
    assert running.backends[0].bodies == [100000]


@pytest.mark.parametrize("piece", [1, 1000])
def test_a_body_that_does_not_tell_its_length_is_measured(engine, piece):
    running = engine(1, balancer_max_body=20000)
    assert chunked(running, [piece] * (15000 // piece)) == 200
    assert chunked(running, [piece] * (21000 // piece)) == 413
    # nginx measures on its way; HAProxy what fits into its buffer.
    assert chunked(running, [1000] * 18) == (413 if is_haproxy(running) else 200)
    assert running.backends[0].bodies == ([15000] if is_haproxy(running) else [15000, 18000])


def test_headers_cannot_hide_a_body_from_being_measured(balancer):
    running = balancer(1)
    assert chunked(running, [1000] * 12, "".join(f"X-{number}: {'y' * 1000}\r\n" for number in range(13))) == 431
    assert chunked(running, [1000] * 17, "".join(f"X-{number}: {'y' * 1000}\r\n" for number in range(11))) == 413
    assert running.backends[0].bodies == []


def test_who_is_slow_is_sent_away(engine):
    running = engine(1, balancer_timeout_request=1)
    for start in (b"GET / HTTP/1.1\r\nHo", b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345"):
        with running.connect() as client:
            client.sendall(start)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                said = client.recv(1000)
        # nginx closes without a word.
        assert said.startswith(b"HTTP/1.1 408") if is_haproxy(running) else said == b""
    assert not running.backends[0].received


@pytest.fixture
def many_files():
    """Allows this process a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_connections_of_one_client_do_not_hurt_the_others(engine, many_files):
    running = engine(1)
    idle = []
    for _number in range(1000):
        with contextlib.suppress(ConnectionResetError):
            idle.append(running.connect())
    try:
        for _request in range(20):
            assert running.ask("GET", source="127.0.0.2").status == 200
        if is_haproxy(running):
            # 200 are kept, the others were closed.
            until(lambda: "conn_cur=200" in running.command("show table client_connections"))
            with pytest.raises(OSError):
                running.ask("GET")
    finally:
        for connection in idle:
            connection.close()
    until(lambda: works(running))


def works(running):
    try:
        return running.ask("GET").status == 200
    except OSError:
        return False


def test_one_client_holds_no_more_than_its_share(engine):
    running = engine(1, balancer_client_connections=2)
    holders = [running.connect() for _number in range(2)]
    for holder in holders:
        holder.sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
    until(lambda: len(running.backends[0].received) == 2)
    if is_haproxy(running):
        with pytest.raises(OSError):
            running.ask("GET")
    else:
        reply = running.ask("GET")
        assert reply.status == 429 and json.loads(reply.body)["error"]["code"] == 429 and reply.headers["Retry-After"] == "1"
    assert running.ask("GET", source="127.0.0.2").status == 200
    running.backends[0].release.set()
    for holder in holders:
        assert answer(holder).status == 200
        holder.close()
    until(lambda: works(running))


def test_one_client_may_ask_so_often(engine):
    running = engine(1, balancer_client_requests_per_minute=5)
    statuses = [running.ask("GET").status for _request in range(10)]
    allowed = 5 if is_haproxy(running) else 6
    assert statuses == [200] * allowed + [429] * (10 - allowed)
    reply = running.ask("POST", "/api/v1/message", KEY, "{}")
    assert reply.status == 429 and json.loads(reply.body)["error"]["type"] == "rate_limit_exceeded"
    assert reply.headers["Retry-After"] == ("60" if is_haproxy(running) else "12")
    assert running.ask("GET", source="127.0.0.2").status == 200


def test_one_token_may_be_used_so_often_and_is_nowhere_in_clear(balancer):
    running = balancer(1, balancer_token_requests_per_minute=3)
    secret = f"secret-{uuid.uuid4()}"

    def use(token, source):
        return running.ask("GET", f"/x?token={secret}", {"Authorization": token}, source=source).status

    assert [use(f"Bearer {secret}", f"127.0.0.{number}") for number in range(1, 6)] == [200] * 3 + [429] * 2
    assert use(f"bearer   {secret}", "127.0.0.1") == 429
    assert use("Bearer other", "127.0.0.1") == 200
    assert running.ask("GET").status == 200
    table = running.command("show table token_requests")
    assert "used:2" in table and secret not in table and secret.encode().hex().upper() not in table
    until(lambda: '"GET /x HTTP/1.1"' in running.log())
    assert secret not in running.log()


def test_nginx_logs_who_answered_and_how_long_it_took_but_no_query(nginx):
    running = nginx(1)
    assert running.ask("GET", "/x?token=secret").status == 200
    line = until((running.directory / "access").read_text)
    assert "secret" not in line
    expected = (
        rf'127.0.0.1 "GET /x HTTP/1.1" 200 \d+ [\d.]+ upstream=127.0.0.1:{running.backends[0].port} '
        r"upstream_status=200 upstream_time=[\d.]+ id=\w{32}\n"
    )
    assert re.fullmatch(expected, line)


# ---- peers


@pytest.fixture
def pair(haproxy_program, tmp_path):
    """Two HAProxies that count together, each with its own replica."""
    issuer, ports, running = authority(), [free_port(), free_port()], []
    for number, name in enumerate(("node1", "node2")):
        directory = tmp_path / name
        (directory / "own").mkdir(parents=True)
        certificate(directory, "own", [name, "127.0.0.1"], issuer)
        (directory / "own" / "ca.pem").write_bytes((directory / "trusted.pem").read_bytes())
        running.append(Peer(haproxy_program, directory, [Backend("r1")], ports=ports, number=number, balancer_client_requests_per_minute=5).ready())
    yield running
    for one in running:
        one.close()


class Peer(HAProxy):
    """One of two balancers on one machine: they differ by their ports, where hosts differ by their addresses."""

    def __init__(self, *arguments, ports, number, **variables):
        self.ports, self.number = ports, number
        other = {"host": "node2", "address": "127.0.0.1", "port": 1, "tls_port": None, "datacenter": "main"}
        super().__init__(*arguments, balancer_peers_port=ports[number], neighbours=[other], **variables)

    def write(self, ports):
        super().write(ports)
        text = self.config.read_text()
        text = text.replace(f"server node2 127.0.0.1:{self.ports[self.number]}", f"server node2 127.0.0.1:{self.ports[1]}")
        if self.number == 1:
            text = text.replace("localpeer node1", "localpeer node2")
            text = text.replace("    server node1\n", f"    server node1 127.0.0.1:{self.ports[0]}\n")
            text = text.replace(f"    server node2 127.0.0.1:{self.ports[1]}\n", "    server node2\n")
        self.config.write_text(text)


def test_balancers_count_together_and_over_a_reload(pair):
    first, second = pair
    assert [first.ask("GET").status for _request in range(6)] == [200] * 5 + [429]
    until(lambda: second.ask("GET").status == 429 or "gpc0_rate(60000)=5" in second.command("show table client_requests"))
    assert second.ask("GET").status == 429
    first.reload()
    until(lambda: "gpc0_rate(60000)=5" in first.command("show table client_requests"))
    assert first.ask("GET").status == 429


# ---- another datacenter


@pytest.fixture
def two_datacenters(haproxy_program, tmp_path):
    """An HAProxy of each of two datacenters, with an agent's word for its replica; each is "main" to itself, and "west" to the other."""
    issuer, ports, running = authority(), [free_port(), free_port()], []
    for number, name in enumerate(("here", "there")):
        directory = tmp_path / name
        (directory / "own").mkdir(parents=True)
        certificate(directory, "own", ["127.0.0.1"], issuer)
        (directory / "own" / "ca.pem").write_bytes((directory / "trusted.pem").read_bytes())
        other = {"host": "west1", "address": "127.0.0.1", "datacenter": "west", "engine": "haproxy", "datacenters_port": ports[1 - number]}
        settings = {"datacenters_port": ports[number], "elsewhere": [other], "balancer_check_interval": 100}
        running.append(HAProxy(haproxy_program, directory, [Backend(f"{name}-1")], [Agent()], **settings).ready())
    until(lambda: all("UP" in one.command("show stat").split("datacenters,west-west1,")[1].split("\n")[0] for one in running))
    yield running
    for one in running:
        one.close()


def drain(running):
    running.agents[0].line = b"up 0%\n"
    until(lambda: running.rows()[running.backends[0].name]["weight"] == "0")


def test_requests_go_to_the_other_datacenter_while_no_replica_serves_here(two_datacenters):
    here, there = two_datacenters
    assert json.loads(here.ask("GET").body)["from"] == "here-1"
    drain(here)
    done = here.ask("POST", "/api/v1/message", {"X-Request-Id": "one", "X-Test": "t"}, body="x")
    assert json.loads(done.body)["from"] == "there-1" and done.headers["X-Request-Id"] == "one"
    headers = {name.lower(): value for name, value in there.backends[0].received[-1][1]}
    # The gateway there hears who the client is, and by which name its request goes.
    assert headers["x-forwarded-for"] == "127.0.0.1" and headers["x-forwarded-proto"] == "http" and headers["x-request-id"] == "one"
    # It is not what those who share requests out among datacenters should choose.
    assert here.ask("GET", "/balancer-health").status == 503
    here.agents[0].line = b"up 100%\n"
    until(lambda: json.loads(here.ask("GET").body)["from"] == "here-1")


def test_a_stream_from_the_other_datacenter_comes_as_it_is_written(two_datacenters):
    here, there = two_datacenters
    drain(here)
    with here.connect() as client:
        client.sendall(b"POST /stream HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}")
        received = b""
        while b"data: 1" not in received:
            received += client.recv(65536)
        assert b"data: 2" not in received
        there.backends[0].release.set()
        while b"data: 2" not in received:
            received += client.recv(65536)


def test_without_a_replica_anywhere_nothing_goes_round_in_circles(two_datacenters):
    here, there = two_datacenters
    drain(here)
    drain(there)
    until(lambda: "DOWN" in here.command("show stat").split("datacenters,west-west1,")[1].split("\n")[0])
    assert here.ask("GET").status == 503 and not there.backends[0].received


def test_only_who_has_a_certificate_of_the_cluster_hands_over(two_datacenters, tmp_path):
    here, _there = two_datacenters
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    certificate(stranger, "own", ["127.0.0.1"])
    for name in (None, "own"):
        context = ssl.create_default_context(cafile=str(tmp_path / "here" / "trusted.pem"))
        context.check_hostname = False
        if name:
            context.load_cert_chain(stranger / "own.crt", stranger / "own.key")
        with socket.create_connection(("127.0.0.1", here.variables["datacenters_port"]), timeout=10) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                if not client.recv(1):
                    raise ConnectionResetError("closed")
    assert not here.backends[0].received


# ---- streams and WebSockets


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_stream_comes_as_it_is_written(tls, encrypted):
    running = tls(1, balancer_plain="serve")
    with running.connect(tls=encrypted) as client:
        client.sendall(b"POST /stream HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}")
        received = b""
        while b"data: 1" not in received:
            received += client.recv(65536)
        assert b"data: 2" not in received and not running.backends[0].release.is_set()
        running.backends[0].release.set()
        while b"data: 2" not in received:
            received += client.recv(65536)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_websocket_passes_both_ways_and_lives_over_a_reload(tls, encrypted):
    running = tls(1, balancer_plain="serve")
    head = "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n"
    with running.connect(tls=encrypted) as client:
        client.sendall(head.format("dGhlIHNhbXBsZSBub25jZQ==").encode())
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += client.recv(1)
        assert reply.startswith(b"HTTP/1.1 101") and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in reply
        for message in (b"one", b"two"):
            client.sendall(message)
            assert client.recv(100) == message
            running.reload()


def test_what_looks_like_a_websocket_cannot_smuggle_a_body(balancer):
    running = balancer(1)
    head = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    assert chunked(running, [1000] * 40, head) == 413
    assert not running.backends[0].received


def test_a_reload_that_cannot_bind_leaves_the_configuration_unread(engine):
    """systemd calls such a reload done; the role asks as is asked here."""
    running = engine(1)
    taken = socket.create_server(("127.0.0.1", 0))
    old, new = f"127.0.0.1:{running.port}", f"127.0.0.1:{taken.getsockname()[1]}"

    def unread():
        return unread_files.unread([str(running.config)], started(unread_files.newest(running.process.pid)))

    def said():
        return running.log() + "".join(path.read_text() for path in running.directory.glob("error"))

    assert unread() == []
    with taken:
        since = time.monotonic()
        until(lambda: time.monotonic() - since > 2 * EXACT)  # or the change might be taken for one before the start
        running.config.write_text(running.config.read_text().replace(old, new))
        assert unread() == [str(running.config)]
        running.process.send_signal(signal.SIGUSR2 if is_haproxy(running) else signal.SIGHUP)
        until(lambda: "in use" in said())
        assert unread() == [str(running.config)] and running.ask("GET").status == 200
    until(lambda: not is_haproxy(running) or running.hears())
    running.process.send_signal(signal.SIGUSR2 if is_haproxy(running) else signal.SIGHUP)
    until(lambda: unread() == [])


# ---- agents


WORDS = [
    (b"up 100%\n", "UP", "100"),
    (b"up 0%\n", "UP", "0"),
    (b"down #the gateway does not answer\n", "DOWN", "100"),
]


@pytest.mark.parametrize("line, status, weight", WORDS)
def test_what_an_agent_says_is_what_the_replica_gets(balancer, line, status, weight):
    agents = [Agent(), Agent()]
    running = balancer(2, agents=agents)
    agents[0].line = line
    until(lambda: (row := running.rows()["r1"])["status"].split()[0] == status and row["weight"] == weight)
    taken = {json.loads(running.ask("GET").body)["from"] for _request in range(6)}
    assert taken == ({"r1", "r2"} if (status, weight) == ("UP", "100") else {"r2"})
    agents[0].line = b"up 100%\n"
    until(lambda: (row := running.rows()["r1"])["status"].split()[0] == "UP" and row["weight"] == "100")


def test_a_replica_that_stalls_gets_no_second_request_while_others_have_room(balancer):
    """Weight 1 is not 0: one request in a hundred may be caught."""
    agents = [Agent(b"up 1%\n"), Agent()]
    running = balancer(2, agents=agents)
    until(lambda: running.rows()["r1"]["weight"] == "1")
    stalled, other = running.backends
    with running.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
        until(lambda: stalled.received or other.received)
        caught = len(stalled.received)
        holders = [running.connect() for _number in range(20)]
        for holder in holders:
            holder.sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
        until(lambda: len(stalled.received) + len(other.received) == 21)
        assert caught <= len(stalled.received) <= 1
        for backend in running.backends:
            backend.release.set()
        for holder in (client, *holders):
            assert answer(holder).status == 200
            holder.close()


def test_when_all_stall_none_is_lost(balancer):
    agents = [Agent(b"up 1%\n"), Agent(b"up 1%\n")]
    running = balancer(2, agents=agents)
    until(lambda: {row["weight"] for row in running.rows().values()} == {"1"})
    assert {running.ask("GET").status for _request in range(6)} == {200}


def test_a_drained_replica_finishes_what_it_has_and_what_an_operator_set_is_left_alone(balancer):
    agents = [Agent(), Agent()]
    running = balancer(2, agents=agents)
    running.command("set server gateways/r2 state maint")
    with running.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
        until(lambda: running.backends[0].received)
        agents[0].line = b"up 0%\n"
        until(lambda: running.rows()["r1"]["weight"] == "0")
        assert running.ask("GET").status == 503
        running.backends[0].release.set()
        assert answer(client).status == 200
    asked = agents[1].asked
    running.command("set server gateways/r2 state ready")
    until(lambda: agents[1].asked > asked and works(running))
    running.command("set server gateways/r2 state drain")
    asked = agents[1].asked
    until(lambda: agents[1].asked > asked + 1)
    assert running.states()["r2"] == "DRAIN"


def test_a_drained_replica_stays_so_over_a_reload_and_over_a_fresh_start(balancer):
    agents = [Agent(b"up 0%\n"), Agent()]
    running = balancer(2, agents=agents)
    for again in (running.reload, lambda: restart(running)):
        again()
        assert running.rows()["r1"]["weight"] == "0"
        for _request in range(10):
            assert json.loads(running.ask("GET").body)["from"] == "r2"
    agents[0].line = b"up 100%\n"
    until(lambda: running.rows()["r1"]["weight"] == "100")


def restart(running):
    running.process.terminate()
    running.process.wait(5)
    (running.directory / "socket").unlink(missing_ok=True)
    running.start()


def test_without_being_told_a_fresh_start_would_send_to_a_drained_replica(balancer):
    """The gap that the question before a start closes."""
    agents = [Agent(b"up 0%\n"), Agent()]
    running = balancer(2, agents=agents)
    until(lambda: running.rows()["r1"]["weight"] == "0")
    for agent in agents:
        agent.line = b""
    restart(running)
    assert running.rows()["r1"]["weight"] == "100"


# ---- failing over


@pytest.mark.parametrize(
    "method, path, headers, again",
    [
        ("GET", "/api/v1/health", {}, True),
        ("POST", "/api/v1/message", KEY, True),
        ("POST", "/api/v1/message", {}, False),
        ("POST", "/api/v1/message", {"Idempotency-Key": ""}, False),
        ("POST", "/v1/chat/completions", KEY, False),
    ],
)
@pytest.mark.parametrize("fate, status", [("drop", 502), (502, 502), (503, 503)])
def test_nginx_sends_again_only_where_that_is_safe(nginx, fate, status, method, path, headers, again):
    running = nginx(3)
    seen = []

    def hurt(identity):
        seen.append(identity)
        return fate if len(seen) == 1 else "answer"

    for backend in running.backends:
        backend.hurt = hurt
    reply = running.ask(method, path, headers, "" if method == "GET" else "{}")
    assert (reply.status, len(seen)) == ((200, 2) if again else (status, 1))
    # Another replica, not the same one again.
    assert max(len(backend.received) for backend in running.backends) == 1


def test_a_replica_that_is_gone_is_passed_over(engine):
    running = engine(3)
    running.backends[0].close()
    for number in range(12):
        assert running.ask("POST", "/v1/chat/completions", {"X-Test": str(number)}, "{}").status == 200
    received = sorted(int(identity) for backend in running.backends for identity, _headers in backend.received)
    assert received == list(range(12))


def test_when_all_are_gone_the_answer_says_when_to_come_back(engine):
    running = engine(2)
    assert running.ask("GET", "/health", port=running.status_port).status == 200
    for backend in running.backends:
        backend.close()
    for path in ("/api/v1/message", "/x"):
        for headers in (KEY, {}):
            reply = running.ask("POST", path, headers, "{}")
            assert reply.status == 503 and reply.headers["Retry-After"] == "2"
            assert json.loads(reply.body)["error"]["code"] == 503
    until(lambda: running.ask("GET", "/health", port=running.status_port).status == 503)


def test_nginx_asks_a_replica_for_its_health(nginx):
    running = nginx(1)
    for probe, status in (((503, {"status": "draining"}), 503), (STARTED, 200)):
        running.backends[0].probe = probe
        assert running.ask("GET", "/health", port=running.status_port).status == status
    metrics = running.ask("GET", "/metrics", port=running.status_port)
    assert re.search(rb"^nginx_connections_active \d+$", metrics.body, re.M) and b"nginx_up 1\n" in metrics.body
    assert b"server accepts handled requests" in running.ask("GET", "/stub_status", port=running.status_port).body
    assert running.ask("GET", "/", port=running.status_port).status == 404
    assert running.ask("GET", "/nginx-health").body == b"healthy\n"


def test_a_client_of_nginx_cannot_say_who_it_is_nor_speak_as_a_gateway(nginx):
    running = nginx(1)
    lies = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Host": "elsewhere.example"}
    assert running.ask("GET", headers={**lies, "X-OpenClaw-HA-Forwarded": "node9-1", "Host": "test:81"}).status == 200
    _identity, headers = running.backends[0].received[0]
    told = {name.lower(): value for name, value in headers}
    assert told["x-forwarded-for"] == "127.0.0.1" and told["x-forwarded-proto"] == "http" and told["host"] == "test:81"
    assert not {"x-real-ip", "forwarded", "x-forwarded-host", "x-openclaw-ha-forwarded"} & told.keys()


@pytest.mark.parametrize(
    ("given", "kept"),
    [([], False), (["order-66.a:b_c"], True), (["a b"], False), (["x" * 129], False), ([""], False), (["a,b"], False), (["one", "two"], None)],
)
def test_a_request_has_one_name_everywhere(engine, given, kept):
    running = engine(1)
    for path, reached in (("/x", True), ("/api/v1/peer", False)):
        with running.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{''.join(f'X-Request-Id: {one}' + chr(13) + chr(10) for one in given)}\r\n".encode())
            reply = answer(client)
        name = reply.headers["X-Request-Id"]
        # Of two, HAProxy keeps the last and nginx the first.
        assert name in given if kept is not False else re.fullmatch(r"[0-9a-f-]{32,36}", name), name
        if reached:
            _identity, headers = running.backends[0].received[-1]
            assert [value for header, value in headers if header.lower() == "x-request-id"] == [name]


@pytest.mark.parametrize("path", ["/api/v1/peer", "/api/v1/peer/x", "/api/v1/%70eer"])
def test_what_gateways_say_to_each_other_passes_neither(engine, path):
    running = engine(1)
    reply = running.ask("POST", path, body="{}")
    assert reply.status == 404 and json.loads(reply.body)["error"]["code"] == 404
    assert not running.backends[0].received


# ---- nginx: draining and reloading


def test_a_replica_that_nginx_was_told_to_drain_finishes_what_it_has_and_gets_nothing_new(nginx):
    running = nginx(2)
    first, second = running.backends
    ports = {backend.name: backend.port for backend in running.backends}
    with running.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
        busy, idle = until(lambda: (first, second) if first.received else (second, first) if second.received else None)
        running.write(ports, drained=[busy.name])
        running.reload()
        for _request in range(10):
            assert json.loads(running.ask("GET").body)["from"] == idle.name
        busy.release.set()
        assert json.loads(answer(client).body)["from"] == busy.name
    running.write(ports)
    running.reload()
    assert {json.loads(running.ask("GET").body)["from"] for _request in range(10)} == {"r1", "r2"}


def test_a_reload_of_nginx_drops_no_request(nginx):
    """Each request on a connection of its own; what a reload does to one that is idle, the documents say."""
    running = nginx(3)
    statuses, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            statuses.append(running.ask("POST", "/v1/chat/completions", body="{}").status)

    clients = [threading.Thread(target=load) for _number in range(4)]
    for client in clients:
        client.start()
    for _reload in range(3):
        reached = len(statuses)
        until(lambda reached=reached: len(statuses) > reached + 20)
        running.reload()
    stop.set()
    for client in clients:
        client.join(10)
    assert set(statuses) == {200}
