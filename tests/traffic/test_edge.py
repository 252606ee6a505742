# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that do not behave: each is refused as docs/balancer.md says, and another client meanwhile sees nothing of it."""

import datetime
import json
import subprocess
import time
import urllib.parse

import pytest
import requests

from lab.cluster import LABEL
from lab.cluster import Cluster as LabCluster
from lab.shell import run
from tests.history.faults import execute
from tests.redis.playbook import run as play
from tests.traffic.evidence import KINDS
from tests.traffic.load import Traffic, TrafficOptions
from tests.traffic.report import report

#: A hostile client, run in a container of its own: gateways lock out an address that shows wrong tokens, and others must not share it.
#: Arguments: host, port, JSON of a list of attacks: "send" at once, then "drip" every second; until an answer's head ("head") or the end
#: ("close") is there. Prints a JSON list of {"status": 0 when nothing came, "seconds", "ended"}.
HOSTILE = """
import json, select, socket, sys, time
told = []
for attack in json.loads(sys.argv[3]):
    began, answer, ended, dripped = time.monotonic(), b"", False, time.monotonic()
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as client:
        try:
            client.sendall(attack["send"].encode() + b"x" * attack.get("filler", 0) + attack.get("then", "").encode())
        except OSError:
            pass
        while time.monotonic() - began < 60 and not ended and not (attack["until"] == "head" and b"\\r\\n\\r\\n" in answer):
            try:
                if select.select([client], [], [], 0.2)[0]:
                    part = client.recv(65536)
                    answer, ended = answer + part, not part
                elif attack.get("drip") and time.monotonic() - dripped > 1:
                    dripped = time.monotonic()
                    client.sendall(attack["drip"].encode())
            except OSError:
                ended = True
    words = answer.split()
    told.append({"status": int(words[1]) if len(words) > 1 else 0, "seconds": time.monotonic() - began, "ended": ended})
print(json.dumps(told))
"""
#: Many connections on which nothing is asked. Arguments: host, port, how many. Prints "open" once they stand, then how many the balancer
#: has closed whenever it is asked, until its input ends.
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
both = pytest.mark.parametrize("balanced_by", ["haproxy", "nginx"], indirect=True)


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
        assert found[kind]["sent"] == found[kind]["ok"], (kind, found[kind]["reasons"], found[kind]["cut"])


def in_container(cluster, last, script, *words):
    """A command that runs a script as a client with an address of its own, whose last number is given."""
    lab = LabCluster(cluster.name)
    image = run("docker", "inspect", "--format", "{{.Config.Image}}", f"{lab.prefix}-doubles")
    place = urllib.parse.urlsplit(cluster.url)
    address = ["--network", lab.prefix, "--ip", str(lab.network[last])]
    return ["docker", "run", "--rm", "--interactive", "--init", "--label", LABEL, *address, image, "python3", "-c", script, place.hostname,
            str(place.port), *words]  # fmt: skip


def attack(cluster, *attacks, last=201):
    """What becomes of attacks, one after the other."""
    return json.loads(run(*in_container(cluster, last, HOSTILE, json.dumps(attacks))))


def head(cluster, *lines, token=None):
    """The head of a message, up to but without the empty line."""
    words = [
        "POST /api/v1/message HTTP/1.1",
        "Host: edge",
        f"Authorization: Bearer {cluster.token if token is None else token}",
        "Content-Type: application/json",
        f"Idempotency-Key: edge-{time.time_ns()}",
        *lines,
    ]
    return "".join(f"{line}\r\n" for line in words)


@both
@pytest.mark.parametrize("token", ["", "wrong", "a" * 4000], ids=["none", "wrong", "long"])
def test_a_wrong_token_is_refused(cluster, balanced_by, others, token):
    """The gateway refuses it, and after ten of them the address for a while: 429."""
    body = json.dumps({"channel": "web", "user_id": "edge", "message": "hello"})
    told = attack(cluster, *[{"send": f"{head(cluster, f'Content-Length: {len(body)}', token=token)}\r\n{body}", "until": "head"}] * 30, last=202)
    assert {one["status"] for one in told} <= {401, 429}, told


@both
@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_too_large_a_message_is_refused(cluster, balanced_by, others, size):
    begin = '{"channel": "web", "user_id": "edge", "message": "'
    length = len(begin) + size + 2
    (told,) = attack(cluster, {"send": f"{head(cluster, f'Content-Length: {length}')}\r\n{begin}", "filler": size, "then": '"}', "until": "head"})
    assert told["status"] == 413, told


@both
def test_a_body_that_is_said_to_be_huge_is_refused_before_it_comes(cluster, balanced_by, others):
    lines = [line for line in head(cluster, "Content-Length: 10000000000").splitlines(keepends=True) if not line.startswith("Idempotency")]
    (told,) = attack(cluster, {"send": "".join(lines) + "\r\n{", "until": "head"})
    assert told["status"] == 413 and told["seconds"] < 20, told


@both
def test_too_large_a_head_is_refused(cluster, balanced_by, others):
    (told,) = attack(cluster, {"send": "GET /api/v1/health HTTP/1.1\r\nHost: edge\r\nX-Filler: ", "filler": 100_000, "then": "\r\n\r\n", "until": "close"})
    assert told["status"] in (0, 400, 413, 414, 431), told


@both
def test_a_head_that_never_ends_is_given_up(cluster, balanced_by, others):
    """A byte now and then, for ever: the balancer's patience ends, whatever comes meanwhile."""
    (told,) = attack(cluster, {"send": head(cluster), "drip": "X", "until": "close"})
    assert told["ended"] and told["status"] in (0, 408), told
    assert 5 < told["seconds"] < 35, told


@pytest.mark.parametrize("balanced_by", ["haproxy"], indirect=True)
def test_a_body_that_never_ends_is_given_up(cluster, balanced_by, others):
    """nginx waits for a body as long as something comes, and keeps it from the gateways meanwhile."""
    (told,) = attack(cluster, {"send": head(cluster, "Content-Length: 1000") + "\r\n{", "drip": " ", "until": "close"})
    assert told["ended"] and told["status"] in (0, 408), told
    assert 5 < told["seconds"] < 35, told


@both
def test_a_thousand_idle_connections_of_one_client_do_not_keep_others_out(cluster, balanced_by, others):
    command = in_container(cluster, 203, IDLE, "1000")
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


@pytest.mark.parametrize(("fault", "said"), [("expired", "valid from"), ("other_key", "not the one of the certificate")])
def test_a_bad_certificate_is_refused_and_the_balancer_goes_on(cluster, others, tmp_path, fault, said):
    files = certificate(tmp_path, **{fault: True})
    settings = json.dumps({"balancer_tls": True, "balancer_plain": "serve", "balancer_certificates": [{"name": "edge", **files}]})
    played = play(cluster.name, "site", "--limit=openclaw_balancers,localhost", "--extra-vars", settings, check=False)
    assert played.code and said in played.output, played.output[-3000:]
    assert not any(played.changed.values()), played.changes


# ---- a run that ends before it is done


def test_a_run_makes_good_what_one_that_died_before_the_reload_has_left(cluster, others):
    """Its files are as they should be, so no task changes them again and notifies a handler: what runs is older than they are."""
    host = cluster.topology["balancers"][0]["host"]
    limit = f"--limit={host},localhost"
    files = {"haproxy.service": "/etc/haproxy/haproxy.cfg", "keepalived.service": "/etc/keepalived/keepalived.conf"}

    def since():
        show = ("systemctl", "show", "--timestamp=us+utc", "--property=StateChangeTimestamp", "--value")
        return {unit: execute(cluster, host, *show, unit) for unit in files}

    assert not play(cluster.name, "site", limit).changed[host]
    before = since()
    for path in files.values():
        execute(cluster, host, "touch", path)
    played = play(cluster.name, "site", limit)
    reloaded = since()
    assert all(reloaded[unit] != before[unit] for unit in files), played.output[-3000:]
    played = play(cluster.name, "site", limit)
    assert not played.changed[host], played.changes
    assert since() == reloaded
