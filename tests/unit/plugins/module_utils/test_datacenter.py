# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils.datacenter import Claim, decide, newest, parse, primary_of, text, upstream

MAIN, WEST = Claim("main", 1), Claim("west", 2)


def node(number, site=0, role="slave", follows=1, link=True, claim=MAIN, size=5):
    """A Redis server; ``follows`` is the number of its primary in datacenter 0."""
    return {
        "address": f"192.0.2.{site}{number}",
        "port": 6379,
        "role": role,
        "primary": None if role == "master" else f"192.0.2.0{follows}:6379",
        "link": link,
        "claim": claim,
        "size": size,
    }


def silent(one):
    return {**{key: one[key] for key in ("address", "port")}, "error": "no route to host"}


LIVE = [node(1, role="master"), node(2), node(3)]


def test_a_claim_is_read_as_it_was_written_and_nothing_else_is_one():
    assert parse(text(WEST)) == WEST
    for other in (None, "", "west", "[]", "{}", '{"datacenter": "west"}', '{"datacenter": "west", "epoch": "x"}', b"\xff"):
        assert parse(other) is None


def test_the_highest_epoch_counts():
    assert newest([]) is None and newest([None]) is None
    assert newest([WEST, MAIN, None]) == WEST
    with pytest.raises(ValueError, match="east and west both claim"):
        newest([WEST, Claim("east", 2)])


def test_the_primary_is_whom_linked_replicas_follow():
    assert primary_of(LIVE) == LIVE[0]
    # One that a partition left alone still says that it is the primary.
    assert primary_of([node(1, role="master"), node(2, role="master"), node(3, follows=2)])["address"] == "192.0.2.02"
    assert primary_of([node(1, role="master"), silent(node(2)), silent(node(3))]) is None
    assert primary_of([node(1, role="master"), node(2, link=False)]) is None
    assert primary_of([node(1, role="master")])["address"] == "192.0.2.01"


def test_a_standby_follows_a_replica_and_stays_with_it():
    assert upstream(LIVE)["address"] == "192.0.2.02"
    assert upstream(LIVE, "192.0.2.03:6379")["address"] == "192.0.2.03"
    # Whom it follows became the primary, lost its link, or is gone.
    assert upstream(LIVE, "192.0.2.01:6379")["address"] == "192.0.2.02"
    assert upstream([LIVE[0], node(2, link=False), LIVE[2]], "192.0.2.02:6379")["address"] == "192.0.2.03"
    assert upstream([LIVE[0], silent(LIVE[1]), LIVE[2]], "192.0.2.02:6379")["address"] == "192.0.2.03"
    assert upstream([LIVE[0], silent(LIVE[1]), silent(LIVE[2])]) is None
    # A replica of a primary that nobody else follows any more is no way to what is written now.
    moved = [node(1, role="master"), node(2, role="master"), node(3, follows=2)]
    assert upstream(moved, "192.0.2.02:6379")["address"] == "192.0.2.03"
    assert upstream([node(1, role="master")])["address"] == "192.0.2.01"


def decided(me, remembered, local, **sites):
    return decide(me, remembered, local, sites)


def test_the_active_datacenter_does_nothing():
    decision = decided("main", None, LIVE[0], main=LIVE, west=[node(1, site=1, follows=2)])
    assert (decision.action, decision.state, decision.claim) == ("none", "active", MAIN)
    assert decided("main", None, None, main=[node(1, claim=None)]).state == "unclaimed"
    assert decided("main", MAIN, None, main=[silent(one) for one in LIVE]).state == "active"


def test_a_standby_goes_over_to_whom_it_should_follow():
    own = node(1, site=1, follows=1)
    decision = decided("west", MAIN, own, main=LIVE, west=[own])
    assert (decision.action, decision.address) == ("follow", "192.0.2.02:6379")
    settled = node(1, site=1, follows=2)
    assert decided("west", MAIN, settled, main=LIVE, west=[settled]).action == "none"
    # A new one has nothing to lose.
    empty = node(1, site=1, role="master", size=0, claim=None)
    assert decided("west", None, empty, main=LIVE, west=[empty]).action == "follow"


@pytest.mark.parametrize(
    "local, main, said",
    [
        (None, LIVE, "Standby of main"),
        (silent(node(1, site=1)), LIVE, "does not answer"),
        (node(1, site=1, role="master"), LIVE, "a primary with 5 keys"),
        (node(1, site=1), [silent(one) for one in LIVE], "nobody there can be followed"),
    ],
)
def test_a_standby_that_can_do_nothing_says_why(local, main, said):
    decision = decided("west", MAIN, local, main=main, west=[local] if local else [])
    assert decision.action == "none" and decision.state == "standby" and said in decision.why


def test_a_standby_of_a_datacenter_that_it_does_not_know():
    own = node(1, site=1)
    assert "not in the inventory" in decided("west", Claim("east", 3), own, main=LIVE, west=[own]).why


def test_who_was_active_stops_when_another_one_has_taken_over():
    taken = [node(1, site=1, role="master", claim=WEST)]
    for remembered, own in ((MAIN, None), (MAIN, silent(LIVE[0])), (None, LIVE[0])):
        sites = {"main": LIVE if own == LIVE[0] else [silent(one) for one in LIVE], "west": taken}
        decision = decide("main", remembered, own, sites)
        assert (decision.action, decision.state, decision.claim) == ("fence", "fenced", WEST), (remembered, own)
    # It is told by what others remember too, and an older claim stops nobody.
    assert decided("west", WEST, taken[0], main=LIVE, west=taken).state == "active"


def test_a_standby_that_is_being_promoted_is_left_alone():
    promoted = node(1, site=1, role="master", claim=MAIN)
    other = node(2, site=1, follows=2, claim=MAIN)
    assert decided("west", WEST, other, main=[silent(one) for one in LIVE], west=[promoted, other]).action == "none"
    assert decided("west", WEST, promoted, main=LIVE, west=[promoted, other]).state == "active"
    # The claim is not written yet, and the active datacenter goes on until it is.
    assert decided("main", MAIN, LIVE[0], main=LIVE, west=[promoted, other]).state == "active"


def test_two_claims_of_one_epoch_are_an_error():
    with pytest.raises(ValueError, match="both claim"):
        decided("main", Claim("main", 2), None, west=[node(1, site=1, claim=WEST)])
