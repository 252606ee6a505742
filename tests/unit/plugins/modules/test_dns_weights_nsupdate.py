"""dns_weights with RFC 2136 updates, against a real BIND and its secondary."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import dns.query
import dns.tsigkeyring
import dns.update
import pytest

from ansible_collections.openclaw.ha.plugins.modules import dns_weights
from tests.ports import free_port
from tests.unit.plugins.modules.name_servers import SECRET, ask, until

ZONE, NAME = "example.org", "claw.example.org"
SITES = {"dc1": ["192.0.2.10", "192.0.2.11"], "dc2": ["198.51.100.10"]}
CONFIG = """
options {{
    directory "{directory}";
    pid-file none;
    session-keyfile none;
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    recursion no;
    notify explicit;
    allow-transfer {{ 127.0.0.1; }};
}};
controls {{ }};
key openclaw {{ algorithm hmac-sha256; secret "{secret}"; }};
zone "example.org" {{ {zone} }};
"""
EMPTY = """$TTL 60
@ SOA ns1 hostmaster 1 60 60 600 60
@ NS ns1
ns1 A 127.0.0.1
other A 203.0.113.9
"""


class Bind:
    """One named; ``zone`` are the statements of its zone."""

    def __init__(self, directory, port, zone):
        self.port, self.directory = port, pathlib.Path(directory)
        self.directory.mkdir()
        (self.directory / "zone").write_text(EMPTY)
        (self.directory / "named.conf").write_text(CONFIG.format(directory=directory, port=port, secret=SECRET, zone=zone))
        program = shutil.which("named", path="/usr/sbin:/usr/bin")
        assert program, "named is needed by this test: run lab/bootstrap"
        with open(self.directory / "log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([program, "-g", "-n", "1", "-c", str(self.directory / "named.conf")], stdout=log, stderr=log)

    def ready(self):
        until(lambda: self.process.poll() is not None or ((answer := ask(self.port, ZONE, "SOA")) and answer.answer))
        assert self.process.poll() is None, (self.directory / "log").read_text()

    @property
    def row(self):
        return {"host": self.directory.name, "address": "127.0.0.1", "port": self.port}

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def binds(tmp_path):
    ports = free_port(), free_port()
    primary = f'type primary; file "zone"; allow-update {{ key openclaw; }}; also-notify {{ 127.0.0.1 port {ports[1]}; }};'
    made = [Bind(tmp_path / "primary", ports[0], primary)]
    made[0].ready()
    made.append(Bind(tmp_path / "secondary", ports[1], f'type secondary; file "copy"; primaries {{ 127.0.0.1 port {ports[0]}; }};'))
    made[1].ready()
    yield made
    for one in made:
        one.stop()


@pytest.fixture
def call(run_module, binds):
    def run(check=False, **arguments):
        known = {
            "provider": "nsupdate",
            "name": NAME,
            "zone": ZONE,
            "addresses": SITES,
            "servers": [one.row for one in binds],
            "key": {"name": "openclaw", "secret": SECRET},
            "deadline": 10,
        }
        return run_module(dns_weights, check=check, **{**known, **arguments})

    return run


def given(bind, kind="A"):
    answer = ask(bind.port, NAME, kind).answer
    return sorted(record.to_text() for record in answer[0]) if answer else []


def test_primary_and_secondary_give_the_addresses_of_who_is_served(binds, call):
    assert call(check=True, first={"dc1": 100})["changed"] and not given(binds[0])
    done = call(first={"dc1": 100})
    assert (done["failed"], done["changed"], done["weights"]) == (False, True, {"dc1": 100, "dc2": 0}), done
    assert given(binds[0]) == given(binds[1]) == ["192.0.2.10", "192.0.2.11"]
    assert not call(first={"dc1": 100})["changed"]
    done = call(weights={"dc2": 100})
    assert (done["failed"], done["before"]) == (False, {"dc1": 100, "dc2": 0})
    assert given(binds[0]) == given(binds[1]) == ["198.51.100.10"]
    assert not call(first={"dc1": 100})["changed"]
    assert ask(binds[0].port, "other.example.org").answer[0][0].to_text() == "203.0.113.9"


def test_both_at_once_and_both_families(binds, call):
    sites = {"dc1": ["192.0.2.10", "2001:db8::1"], "dc2": ["198.51.100.10", "2001:db8:1::1"]}
    assert not call(addresses=sites, weights={"dc1": 100, "dc2": 100})["failed"]
    assert given(binds[1]) == ["192.0.2.10", "198.51.100.10"] and given(binds[1], "AAAA") == ["2001:db8:1::1", "2001:db8::1"]
    assert not call(addresses={"dc1": ["192.0.2.10"], "dc2": ["198.51.100.10"]}, weights={"dc1": 100})["failed"]
    assert given(binds[1]) == ["192.0.2.10"] and not given(binds[1], "AAAA")


@pytest.mark.parametrize("weight", [1, 10, 99])
def test_a_weight_that_plain_addresses_cannot_have_is_refused(binds, call, weight):
    done = call(weights={"dc1": 100, "dc2": weight})
    assert done["failed"] and "plain addresses have no weights" in done["msg"] and not given(binds[0])


def test_somebody_elses_name_is_not_taken(binds, call):
    done = call(name="other.example.org", weights={"dc1": 100})
    assert done["failed"] and "203.0.113.9" in done["msg"] and "nobody else keeps" in done["msg"]


def test_what_somebody_changed_by_hand_is_made_good(binds, call):
    call(weights={"dc1": 100})
    message = dns.update.UpdateMessage(f"{ZONE}.", keyring=dns.tsigkeyring.from_text({"openclaw.": SECRET}))
    message.replace("claw", 30, "A", "203.0.113.1")
    dns.query.tcp(message, "127.0.0.1", port=binds[0].port, timeout=5)
    until(lambda: given(binds[1]) == ["203.0.113.1"])
    done = call()
    assert done["changed"] and len(done["repaired"]) == 1 and given(binds[1]) == ["192.0.2.10", "192.0.2.11"]


def test_a_secondary_that_does_not_follow_fails_and_is_named(binds, call):
    call(weights={"dc1": 100})
    wrong = {**binds[1].row, "port": free_port()}
    stranger = Bind(binds[0].directory.parent / "stranger", wrong["port"], 'type primary; file "zone";')
    try:
        stranger.ready()
        done = call(weights={"dc2": 100}, servers=[binds[0].row, stranger.row], deadline=0.5)
        assert done["failed"] and "stranger" in done["msg"] and "has no weights" in done["msg"]
    finally:
        stranger.stop()


def test_without_the_primary_nothing_is_said(binds, call):
    call(weights={"dc1": 100})
    binds[0].stop()
    done = call(weights={"dc2": 100})
    assert done["failed"] and "nothing was changed" in done["msg"]


def test_a_key_that_bind_does_not_know_is_refused_and_never_told(binds, call):
    other = "YW5vdGhlciBzZWNyZXQgdGhhbiB0aGUgb3RoZXIgb25l"
    for key in ({"name": "openclaw", "secret": other}, {"name": "stranger", "secret": other}):
        done = call(weights={"dc1": 100}, key=key)
        assert done["failed"] and "key" in done["msg"] and other not in json.dumps(done) and not given(binds[0])


def test_an_update_that_bind_does_not_allow_is_refused(binds, call):
    done = call(weights={"dc1": 100}, name="claw.example.net", zone="example.net")
    assert done["failed"] and "REFUSED" in done["msg"]
