"""What is decided about weights before anybody is asked or told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ansible_collections.openclaw.ha.plugins.module_utils import dns_weights as core

NAMES = some.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
WEIGHTS = some.dictionaries(NAMES, some.integers(0, 100), min_size=1, max_size=30)
SITES = {"dc1": ["192.0.2.1", "192.0.2.2"], "dc2": ["198.51.100.1"], "dc3": []}


@given(WEIGHTS, some.integers(0, 2**32 - 1), some.one_of(some.none(), WEIGHTS))
def test_a_statement_is_read_as_it_was_written(weights, serial, ramp_from):
    statement = core.Statement(weights, serial, ramp_from, core.content(weights))
    assert core.decode(core.encode(statement)) == statement


@pytest.mark.parametrize("text", ["", "v=spf1 -all", "serial=x weights a=1 content 00", "serial=1 weights content 00", "serial=1 weights a=1"])
def test_other_texts_are_no_statements(text):
    assert core.decode(text) is None


@given(some.dictionaries(NAMES, some.integers(0, 100), min_size=1, max_size=6), some.integers(0, 100), NAMES)
def test_a_spread_gives_the_target_its_share_and_the_others_the_rest(before, percent, target):
    found = core.spread(before, target, percent)
    others = [weight for name, weight in before.items() if name != target]
    assert found[target] == percent and set(found) == {*before, target}
    assert sum(found.values()) == (100 if any(others) else percent)
    assert all(0 <= weight <= 100 for weight in found.values())
    assert not [name for name, weight in found.items() if name != target and weight and not before[name]]


@given(some.dictionaries(some.sampled_from(["dc1", "dc2"]), some.integers(1, 100), min_size=1))
def test_a_datacenter_gets_its_share_however_many_addresses_it_has(weights):
    rows = core.shares(weights, SITES)["A"]
    whole = sum(weight for _address, weight in rows)
    for name, weight in weights.items():
        own = sum(one for address, one in rows if address in SITES[name])
        assert own * sum(weights.values()) == weight * whole


def test_lua_and_families():
    rows = core.shares({"dc1": 90, "dc2": 10, "dc3": 0}, SITES)
    assert core.lua("A", rows["A"]) == ("A", "pickwrandom({{90,'192.0.2.1'},{90,'192.0.2.2'},{20,'198.51.100.1'}})")
    assert core.by_family(["2001:DB8::0001", "192.0.2.1"]) == {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}


@pytest.mark.parametrize(
    "weights, sites, provider, words",
    [
        ({"dc9": 1}, SITES, "powerdns", "'dc9', which is not in the inventory; allowed dc1, dc2, dc3"),
        ({"dc1": 1}, {"dc1": ["192.0.2.1"], "dc 2": []}, "powerdns", ""),
        ({"dc 2": 1}, {"dc 2": ["192.0.2.1"]}, "powerdns", "topology_datacenter"),
        ({"dc1": True}, SITES, "powerdns", "whole numbers"),
        ({"dc1": "50"}, SITES, "powerdns", "whole numbers"),
        ({"dc1": -1}, SITES, "powerdns", "whole numbers"),
        ({"dc1": 0}, SITES, "powerdns", "nobody would be served"),
        ({"dc3": 1}, SITES, "powerdns", "no address of dc3"),
        ({"dc1": 50, "dc2": 50}, {"dc1": ["192.0.2.1", "2001:db8::1"], "dc2": ["192.0.2.2"]}, "powerdns", "no AAAA address of dc2"),
        ({"dc1": 100, "dc2": 0}, {"dc1": ["192.0.2.1", "2001:db8::1"], "dc2": ["192.0.2.2"]}, "powerdns", ""),
        ({"dc1": 50}, SITES, "nsupdate", "0 and 100 only"),
        ({"dc1": 100, "dc2": 0}, SITES, "nsupdate", ""),
        ({"dc1": 50, "dc2": 50}, SITES, "route53", ""),
    ],
)
def test_weights_that_must_not_be_set(weights, sites, provider, words):
    problem = core.weights_problem(weights, sites, provider)
    assert words in problem and bool(problem) == bool(words)


@pytest.mark.parametrize(
    "name, zone, ttl, words",
    [
        ("claw.example.org", "example.org", 30, ""),
        ("Claw.Example.Org.", "example.org", 300, ""),
        ("example.org", "example.org", 1, ""),
        ("badexample.org", "example.org", 30, "not in dns_zone"),
        ("a b", "example.org", 30, "dns_name"),
        ("claw.example.org", "exa'mple", 30, "dns_zone"),
        ("claw.example.org", "example.org", 301, "dns_ttl"),
    ],
)
def test_settings(name, zone, ttl, words):
    problem = core.settings_problem(name, zone, ttl)
    assert words in problem and bool(problem) == bool(words)


def sight(host, weights=None, serial=1):
    return core.Sight(host, core.Statement(weights, serial) if weights else None)


def test_the_highest_serial_is_in_force():
    assert core.in_force([]) is None and core.in_force([sight("a")]) is None
    assert core.in_force([sight("a", {"dc1": 1}, 7), sight("b", {"dc2": 1}, 9), sight("c")]).weights == {"dc2": 1}
    assert core.in_force([sight("a", {"dc1": 1}), sight("b", {"dc1": 1})]).serial == 1
    with pytest.raises(core.WeightsError, match="a and b say different things"):
        core.in_force([sight("a", {"dc1": 1}), sight("b", {"dc2": 1})])


def test_datacenters_that_come_and_go():
    assert core.settled({"dc1": 100, "dc9": 0}, SITES) == {"dc1": 100, "dc2": 0, "dc3": 0}
    with pytest.raises(core.WeightsError, match="send clients to dc9"):
        core.settled({"dc1": 50, "dc9": 50}, SITES)


def test_answers():
    rows = {"A": [("192.0.2.1", 1)]}
    assert core.answers_problem({"A": ["192.0.2.1"]}, rows) == ""
    assert "instead of 192.0.2.1" in core.answers_problem({"A": ["192.0.2.9"]}, rows)
    assert "gives no A address" in core.answers_problem({}, rows)
    assert "instead of nothing" in core.answers_problem({"A": ["192.0.2.1"], "AAAA": ["::1"]}, rows)


def test_share():
    assert core.share({"dc1": 0}, "dc1") == 0 and core.share({"dc1": 1, "dc2": 3}, "dc2") == 75 and core.share({"dc1": 1}, "dc2") == 0
