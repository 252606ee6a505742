# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that do not behave: each is refused as docs/balancer.md says, and another client meanwhile sees nothing of it."""

import contextlib
import datetime
import json
import socket
import subprocess
import threading
import time
import urllib.parse

import pytest
import requests

from lab.cluster import Cluster as LabCluster
from lab.demo import playbook
from lab.shell import LabError
from tests.traffic.evidence import KINDS
from tests.traffic.load import Traffic, TrafficOptions
from tests.traffic.report import report

#: Runs in a container of the cluster, so it is another client than this machine. Arguments: host, port, how many.
#: Prints "open" once all connections stand, then how many the balancer has closed whenever it is asked, until its input ends.
IDLE = """
import select, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
refused, held = 0, []
for _number in range(count):
    try:
        held.append(socket.create_connection((host, port), timeout=10))
    except OSError:
        refused += 1
poller, closed = select.poll(), 0
for one in held:
    poller.register(one, select.POLLIN)
print("open", len(held), refused, flush=True)
names = {one.fileno(): one for one in held}
for _line in sys.stdin:
    for number, _event in poller.poll(0):
        try:
            gone = not names[number].recv(65536)
        except OSError:
            gone = True
        if gone:
            poller.unregister(number)
            closed += 1
    print(closed, flush=True)
"""


@pytest.fixture
def others(cluster, tmp_path):
    """A well-behaved client beside the test. When the test is over, none of its requests may have failed."""
    load = Traffic(cluster, TrafficOptions(gets=10, messages=0.5, streams=0.2, stream_seconds=2, conversations=4, seconds=300), tmp_path).start()
    try:
        yield load
    finally:
        load.stop()
        sent, _operations = load.join()
    found = report(sent)
    assert found["get"]["sent"] >= 1
    for kind in KINDS:
        assert found[kind]["sent"] == found[kind]["ok"], (kind, found[kind])


def message(cluster, token=None, body=None, **options):
    body = body or {"channel": "web", "user_id": f"edge-{time.time_ns()}", "message": "hello"}
    headers = {"Authorization": f"Bearer {cluster.token if token is None else token}", "Connection": "close"} | options.pop("headers", {})
    return requests.post(f"{cluster.url}/api/v1/message", json=body, headers=headers, timeout=options.pop("timeout", 60))


@contextlib.contextmanager
def connection(cluster):
    """A connection to the balancer, for bytes that no HTTP library would send."""
    place = urllib.parse.urlsplit(cluster.url)
    with socket.create_connection((place.hostname, place.port), timeout=40) as client:
        yield client


def received(client):
    """What comes until the other side closes; a reset ends it too."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("token", ["", "wrong", "a" * 4000], ids=["none", "wrong", "long"])
def test_a_wrong_token_is_refused(cluster, others, token):
    for _request in range(20):
        response = message(cluster, token)
        assert response.status_code == 401, response.text[:200]


def test_too_large_a_message_is_refused(cluster, others):
    for size in (70_000, 1_000_000):
        response = message(cluster, body={"channel": "web", "user_id": "edge", "message": "x" * size})
        assert response.status_code == 413, (size, response.status_code)


def test_a_body_that_is_said_to_be_huge_is_refused_before_it_comes(cluster, others):
    head = (
        f"POST /api/v1/message HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {cluster.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n{"
    )
    with connection(cluster) as client:
        began = time.monotonic()
        client.sendall(head.encode())
        answer = received(client)
        assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.0 413")), answer[:200]
        assert time.monotonic() - began < 20


def test_too_large_a_head_is_refused(cluster, others):
    with connection(cluster) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: edge\r\n" + b"X-Filler: " + b"x" * 100_000 + b"\r\n\r\n")
        answer = received(client)
        assert not answer or answer.split()[1] in (b"400", b"413", b"431", b"414"), answer[:200]


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_request_that_never_ends_is_given_up(cluster, others, part):
    """A byte now and then, for ever: the balancer's patience ends, whatever comes meanwhile."""
    begin = (
        f"POST /api/v1/message HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {cluster.token}\r\nIdempotency-Key: edge-{time.time_ns()}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    with connection(cluster) as client:
        client.sendall(begin if part == "head" else begin + b"Content-Length: 1000\r\n\r\n{")
        done, began = threading.Event(), time.monotonic()

        def drip():
            with contextlib.suppress(OSError):
                while not done.wait(1):
                    client.sendall(b"X" if part == "head" else b" ")

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        try:
            answer = received(client)
        finally:
            done.set()
            dripping.join()
        assert not answer or answer.split()[1] == b"408", answer[:200]
        assert 5 < time.monotonic() - began < 35


def test_a_thousand_idle_connections_of_one_client_do_not_keep_others_out(cluster, others):
    place = urllib.parse.urlsplit(cluster.url)
    container = f"{LabCluster(cluster.name).prefix}-doubles"
    command = ["docker", "exec", "--interactive", container, "python3", "-c", IDLE, place.hostname, str(place.port), "1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            word, held, refused = client.stdout.readline().split()
            assert word == "open" and int(held) + int(refused) == 1000
            times = []
            for _request in range(20):
                began = time.monotonic()
                assert requests.get(f"{cluster.url}/api/v1/health", headers={"Connection": "close"}, timeout=10).status_code == 200
                times.append(time.monotonic() - began)
            assert sorted(times)[10] < 2, times
            # None of them stays: a connection on which nothing is asked is closed.
            deadline, closed = time.monotonic() + 90, 0
            while closed < int(held) and time.monotonic() < deadline:
                client.stdin.write("how many\n")
                client.stdin.flush()
                closed = int(client.stdout.readline())
                time.sleep(0.5)  # between two looks
            assert closed == int(held)
        finally:
            client.stdin.close()


# ---- certificates: what the balancer will not serve with


def certificate(directory, expired=False, other_key=False):
    """Files of a certificate and a key. :returns: {"cert", "key"}"""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    end = now - datetime.timedelta(days=1) if expired else now + datetime.timedelta(days=30)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("edge")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kept = ec.generate_private_key(ec.SECP256R1()) if other_key else key
    private = kept.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(private)
    return {"cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")}


@pytest.mark.parametrize("fault", ["expired", "other_key"])
def test_a_bad_certificate_is_refused_and_the_balancer_goes_on(cluster, others, tmp_path, fault):
    files = certificate(tmp_path, **{fault: True})
    settings = json.dumps({"balancer_tls": True, "balancer_plain": "serve", "balancer_certificates": [{"name": "edge", **files}]})
    with pytest.raises(LabError):
        playbook(LabCluster(cluster.name), "site", "--limit", "openclaw_balancers,localhost", "--extra-vars", settings)
