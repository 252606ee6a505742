"""dns_weights and powerdns_zone against real PowerDNS servers; what they answer is counted over DNS."""

from __future__ import annotations

import collections
import json
import sqlite3

import dns.message
import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update
import pytest

from ansible_collections.openclaw.ha.plugins.modules import dns_weights, powerdns_zone
from tests.unit.plugins.modules.name_servers import SECRET, ZONE, PowerDns, addresses, ask

SITES = {"dc1": ["192.0.2.10"], "dc2": ["198.51.100.10"]}
OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgdGhhbiB0aGUgb3RoZXIgb25l"


@pytest.fixture
def make(tmp_path):
    """``make(name)`` starts a server; all are stopped at the end."""
    made = []

    def one(name, **settings):
        made.append(PowerDns(tmp_path / name, **settings))
        return made[-1].start()

    yield one
    for server in made:
        server.stop()


@pytest.fixture
def call(run_module):
    """``call(servers, **arguments)`` runs the module with what every call needs."""

    def run(those, check=False, secret=SECRET, **arguments):
        known = {
            "provider": "powerdns",
            "name": ZONE,
            "zone": ZONE,
            "addresses": SITES,
            "servers": [server.row for server in those],
            "nameservers": [{"name": f"ns{number}.{ZONE}", "address": "127.0.0.1"} for number in range(1, len(those) + 1)],
            "key": {"name": "openclaw", "secret": secret},
            "deadline": 5,
        }
        return run_module(dns_weights, check=check, **{**known, **arguments})

    return run


def said(server, name=ZONE):
    answer = ask(server.port, f"_weights.{name}", "TXT").answer
    return b"".join(answer[0][0].strings).decode() if answer else ""


def serial(server):
    return ask(server.port, kind="SOA").answer[0][0].serial


def test_clients_are_shared_out_by_weight(make, call):
    server = make("ns1")
    done = call([server], weights={"dc1": 90, "dc2": 10})
    assert (done["failed"], done["changed"], done["before"], done["weights"]) == (False, True, None, {"dc1": 90, "dc2": 10})
    seen = collections.Counter(addresses(server.port, 2000))
    # 10 % of 2,000 is 200; six standard deviations are 80.
    assert 120 <= seen["198.51.100.10"] <= 280, seen
    assert seen["192.0.2.10"] + seen["198.51.100.10"] == 2000
    assert said(server).startswith(f"serial={serial(server)} weights dc1=90 dc2=10 content ")
    assert [one.to_text() for one in ask(server.port, kind="NS").answer[0]] == [f"ns1.{ZONE}."]
    assert ask(server.port, f"ns1.{ZONE}").answer[0][0].to_text() == "127.0.0.1"


def test_a_second_run_changes_nothing(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 90, "dc2": 10})
    before = serial(server)
    done = call([server], weights={"dc1": 90, "dc2": 10})
    assert (done["failed"], done["changed"], done["repaired"], serial(server)) == (False, False, [], before)
    assert done["diff"]["before"] == done["diff"]["after"]


def test_check_mode_says_what_would_be_and_changes_nothing(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 90, "dc2": 10})
    before = said(server)
    done = call([server], check=True, weights={"dc1": 0, "dc2": 100})
    assert (done["failed"], done["changed"], done["weights"], said(server)) == (False, True, {"dc1": 0, "dc2": 100}, before)
    assert "dc1=90 dc2=10" in done["diff"]["before"] and "dc1=0 dc2=100" in done["diff"]["after"]


def test_weights_of_the_first_run_count_once(make, call):
    server = make("ns1")
    assert call([server], first={"dc1": 100})["weights"] == {"dc1": 100, "dc2": 0}
    assert set(addresses(server.port, 50)) == {"192.0.2.10"}
    call([server], weights={"dc1": 0, "dc2": 100})
    done = call([server], first={"dc1": 100})
    assert (done["changed"], done["weights"]) == (False, {"dc1": 0, "dc2": 100})
    assert set(addresses(server.port, 50)) == {"198.51.100.10"}


def test_a_ramp_that_is_under_way_survives_a_run_of_the_role(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 90, "dc2": 10}, ramp_from={"dc1": 100, "dc2": 0})
    done = call([server], first={"dc1": 100})
    assert (done["changed"], done["weights"], done["ramp_from"]) == (False, {"dc1": 90, "dc2": 10}, {"dc1": 100, "dc2": 0})
    assert call([server], weights={"dc1": 90, "dc2": 10})["ramp_from"] is None


def test_a_restart_forgets_nothing(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 1, "dc2": 99})
    before = said(server)
    server.stop()
    server.start()
    assert said(server) == before
    assert not call([server])["changed"]


def test_a_server_that_was_away_is_said_and_brought_to_the_newest(make, call):
    first, second = make("ns1"), make("ns2")
    call([first, second], weights={"dc1": 100, "dc2": 0})
    older = said(second)
    second.stop()
    done = call([first, second], weights={"dc1": 0, "dc2": 100})
    assert not done["failed"] and len(done["silent"]) == 1 and "ns2" in done["silent"][0], done
    second.start()
    assert said(second) == older and set(addresses(second.port, 20)) == {"192.0.2.10"}
    done = call([first, second], first={"dc1": 100})
    assert (done["failed"], done["changed"], done["weights"]) == (False, True, {"dc1": 0, "dc2": 100})
    assert len(done["repaired"]) == 1 and "ns2" in done["repaired"][0] and "dc1=100 dc2=0" in done["repaired"][0]
    assert said(first) == said(second) and serial(first) == serial(second)
    assert set(addresses(second.port, 20)) == {"198.51.100.10"}


def test_what_was_decided_last_wins_whoever_was_away(make, call):
    """A failover that only the second server learnt of, after changes that only the first one had seen."""
    first, second = make("ns1"), make("ns2")
    call([first, second], weights={"dc1": 100})
    second.stop()
    for weight in (90, 80, 70):
        call([first, second], weights={"dc1": weight, "dc2": 100 - weight})
    first.stop()
    second.start()
    assert call([first, second], weights={"dc2": 100})["weights"] == {"dc1": 0, "dc2": 100}
    first.start()
    assert call([first, second])["weights"] == {"dc1": 0, "dc2": 100}
    assert said(first) == said(second)


def test_a_new_server_gets_what_is_in_force(make, call):
    first = make("ns1")
    call([first], weights={"dc1": 30, "dc2": 70})
    second = make("ns2")
    done = call([first, second], first={"dc1": 100})
    assert done["weights"] == {"dc1": 30, "dc2": 70} and said(first) == said(second)
    assert sorted(one.to_text() for one in ask(second.port, kind="NS").answer[0]) == [f"ns1.{ZONE}.", f"ns2.{ZONE}."]
    call([first])
    assert [one.to_text() for one in ask(first.port, kind="NS").answer[0]] == [f"ns1.{ZONE}."]


def test_two_servers_of_one_serial_that_differ_are_refused_until_told(make, call):
    first, second = make("ns1"), make("ns2")
    call([first], weights={"dc1": 100})
    text = said(first).replace("dc1=100 dc2=0", "dc1=0 dc2=100")
    message = dns.update.UpdateMessage(f"{ZONE}.", keyring=dns.tsigkeyring.from_text({"openclaw.": SECRET}))
    message.replace("_weights", 30, "TXT", f'"{text}"')
    assert dns.query.tcp(message, "127.0.0.1", port=second.port, timeout=5).rcode() == dns.rcode.NOERROR
    done = call([first, second])
    assert done["failed"] and "same serial" in done["msg"] and "explicitly" in done["msg"]
    assert not call([first, second], weights={"dc1": 50, "dc2": 50})["failed"]
    assert said(first) == said(second)


def test_new_addresses_are_taken_up_with_the_weights_in_force(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 0, "dc2": 100})
    done = call([server], addresses={"dc1": ["192.0.2.10"], "dc2": ["198.51.100.20", "198.51.100.21"]})
    assert (done["changed"], done["weights"]) == (True, {"dc1": 0, "dc2": 100})
    seen = collections.Counter(addresses(server.port, 400))
    assert set(seen) == {"198.51.100.20", "198.51.100.21"} and min(seen.values()) > 100


def test_both_families_follow_the_weights(make, call):
    server = make("ns1")
    sites = {"dc1": ["192.0.2.10", "2001:db8::1"], "dc2": ["198.51.100.10", "2001:db8:1::1"]}
    call([server], addresses=sites, weights={"dc2": 100})
    assert ask(server.port, kind="AAAA").answer[0][0].to_text() == "2001:db8:1::1"
    assert ask(server.port, kind="A").answer[0][0].to_text() == "198.51.100.10"


def test_a_datacenter_that_gets_clients_cannot_leave_unseen(make, call):
    server = make("ns1")
    call([server], weights={"dc1": 0, "dc2": 100})
    done = call([server], addresses={"dc1": ["192.0.2.10"]})
    assert done["failed"] and "dc2" in done["msg"] and "not in the inventory" in done["msg"]
    call([server], weights={"dc1": 100})
    assert call([server], addresses={"dc1": ["192.0.2.10"]})["weights"] == {"dc1": 100}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"weights": {"dc1": 0, "dc2": 0}}, "nobody would be served"),
        ({"weights": {}}, "nobody would be served"),
        ({"weights": {"dc3": 100}}, "'dc3', which is not in the inventory"),
        ({"weights": {"dc1": 101}}, "whole numbers from 0 to 100"),
        ({"weights": {"dc1": 50}, "addresses": {"dc1": [], "dc2": ["192.0.2.1"]}}, "no address of dc1"),
        ({"weights": {"dc1": 50}, "addresses": {"dc1": ["node1"], "dc2": []}}, "IPv4 and IPv6 addresses"),
        ({"weights": {"dc1": 100}, "ttl": 301}, "dns_ttl: found 301"),
        ({"weights": {"dc1": 100}, "ttl": 0}, "dns_ttl: found 0"),
        ({"weights": {"dc1": 100}, "name": "claw.example.net"}, "not in dns_zone"),
        ({"weights": {"dc1": 100}, "servers": []}, "dns_servers: found none"),
        ({"weights": {"dc1": 100}, "nameservers": []}, "nameservers"),
        ({"weights": {"dc1": 100}, "key": {"name": "openclaw", "secret": "no base64!"}}, "base64"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_changed(make, call, arguments, words):
    server = make("ns1")
    done = call([server], **arguments)
    assert done["failed"] and words in done["msg"], done["msg"]
    assert serial(server) == 1 and not said(server)


def test_a_wrong_key_is_refused_and_never_told(make, call):
    server = make("ns1")
    done = call([server], secret=OTHER_SECRET, weights={"dc1": 100})
    assert done["failed"] and "dns_key_secret" in done["msg"], done["msg"]
    assert OTHER_SECRET not in json.dumps(done) and not said(server)


def test_without_the_key_nobody_updates(make):
    server = make("ns1")
    message = dns.update.UpdateMessage(f"{ZONE}.")
    message.add("@", 30, "A", "203.0.113.1")
    assert dns.query.tcp(message, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.REFUSED
    assert not ask(server.port).answer


def test_no_server_that_answers_is_refused(make, call):
    server = make("ns1")
    server.stop()
    done = call([server], weights={"dc1": 100})
    assert done["failed"] and "nothing was changed" in done["msg"] and "ns1" in done["msg"]


def test_a_server_without_the_zone_fails_the_run_after_the_others(make, call):
    first, other = make("ns1"), make("ns2", zone="claw.example.net")
    done = call([first, other], weights={"dc2": 100})
    assert done["failed"] and "ns2" in done["msg"] and "REFUSED" in done["msg"]
    assert set(addresses(first.port, 20)) == {"198.51.100.10"}


def test_a_server_that_takes_no_updates_fails_the_run_and_is_named(make, call):
    server = make("ns1", allow_dnsupdate_from="192.0.2.1")
    done = call([server], weights={"dc1": 100})
    assert done["failed"] and "ns1" in done["msg"] and "refused the update" in done["msg"]


def test_somebody_else_who_changes_it_meanwhile_is_noticed(make, call, monkeypatch):
    """Between the look and the update another run sets weights: the update asks for what was read."""
    server = make("ns1")
    call([server], weights={"dc1": 100})
    own = dns_weights.providers.Updated.apply

    def slow(self, *arguments):
        monkeypatch.setattr(dns_weights.providers.Updated, "apply", own)
        assert not call([server], weights={"dc1": 60, "dc2": 40})["failed"]
        return own(self, *arguments)

    monkeypatch.setattr(dns_weights.providers.Updated, "apply", slow)
    done = call([server], weights={"dc1": 0, "dc2": 100})
    assert done["failed"] and "somebody else" in done["msg"]
    assert "dc1=60 dc2=40" in said(server)


def test_a_server_that_does_not_give_the_change_fails_at_the_deadline(make, call, monkeypatch):
    server = make("ns1")
    monkeypatch.setattr(dns_weights.providers.Updated, "apply", lambda *_arguments: [])
    done = call([server], weights={"dc1": 100}, deadline=0.3)
    assert done["failed"] and "has no weights" in done["msg"]


class TestZone:
    """powerdns_zone on a database of its own."""

    @pytest.fixture
    def zone(self, run_module, tmp_path):
        def run(check=False, **arguments):
            known = {"database": str(tmp_path / "z.sqlite3"), "zone": ZONE, "nameserver": f"ns1.{ZONE}", "key_name": "openclaw", "key_secret": SECRET}
            return run_module(powerdns_zone, check=check, **{**known, **arguments})

        return run

    def test_it_is_made_once_and_only_for_its_owner(self, zone, tmp_path):
        assert zone(check=True)["changed"] and not (tmp_path / "z.sqlite3").exists()
        assert zone()["changed"]
        assert (tmp_path / "z.sqlite3").stat().st_mode & 0o777 == 0o600
        assert not zone()["changed"] and not zone(check=True)["changed"]

    def test_another_secret_replaces_the_key_and_is_never_told(self, zone, tmp_path):
        zone()
        done = zone(key_secret=OTHER_SECRET)
        assert done["changes"] == ["key openclaw replaced"]
        assert OTHER_SECRET not in json.dumps(done) and SECRET not in json.dumps(done)
        with sqlite3.connect(tmp_path / "z.sqlite3") as database:
            assert database.execute("SELECT secret FROM tsigkeys").fetchall() == [(OTHER_SECRET,)]

    def test_another_key_takes_the_permission_from_the_first(self, zone, tmp_path):
        zone()
        zone(key_name="other")
        with sqlite3.connect(tmp_path / "z.sqlite3") as database:
            assert database.execute("SELECT content FROM domainmetadata").fetchall() == [("other",)]

    def test_a_zone_of_another_kind_is_refused(self, zone, tmp_path):
        zone()
        with sqlite3.connect(tmp_path / "z.sqlite3") as database:
            database.execute("UPDATE domains SET type = 'SLAVE'")
        done = zone()
        assert done["failed"] and "SLAVE" in done["msg"]

    @pytest.mark.parametrize("secret", ["", "no base64!"])
    def test_a_secret_that_is_none_is_refused(self, zone, secret):
        done = zone(key_secret=secret)
        assert done["failed"] and "base64" in done["msg"]

    def test_something_else_in_its_place_is_refused(self, zone, tmp_path):
        (tmp_path / "z.sqlite3").write_text("this is no database at all")
        done = zone()
        assert done["failed"] and "allowed one of PowerDNS" in done["msg"]
