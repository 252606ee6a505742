"""Each violation is planted into a run without fault, and found; what is no violation is not."""

import dataclasses

import pytest

from tests.redis.checker import KINDS, check
from tests.redis.record import OK, REFUSED, UNKNOWN, Record, Write


def write(token, invoked, returned, outcome=OK, **more):
    return Write(token, invoked, returned, outcome, "192.0.2.1:6379", **more)


#: Two clients side by side: a-1 and b-1 overlap, a-2 begins after both.
CLEAN = Record(
    writes=(write("a-1", 1.0, 1.2), write("b-1", 1.1, 1.4), write("a-2", 2.0, 2.1), write("b-2", 5.0, 5.1)),
    stored=("b-1", "a-1", "a-2", "b-2"),
    began=0.5,
    ended=6.0,
    fault_began=2.2,
    fault_ended=4.9,
)


def found(record):
    return {kind: tokens for kind, tokens in check(record)["violations"].items() if tokens}


def plant(**changes):
    return dataclasses.replace(CLEAN, **changes)


def test_a_run_without_fault_is_clean():
    assert found(CLEAN) == {}
    assert set(check(CLEAN)["violations"]) == set(KINDS)


@pytest.mark.parametrize(
    "kind, token, record",
    [
        ("lost", "a-2", plant(stored=("b-1", "a-1", "b-2"))),
        ("doubled", "a-1", plant(stored=("b-1", "a-1", "a-1", "a-2", "b-2"))),
        ("reordered", "a-2", plant(stored=("a-2", "b-1", "a-1", "b-2"))),
        ("phantom", "c-1", plant(stored=(*CLEAN.stored, "c-1"))),
        (
            "refused_but_stored",
            "a-3",
            plant(writes=(*CLEAN.writes, write("a-3", 5.2, 5.3, REFUSED)), stored=(*CLEAN.stored, "a-3")),
        ),
    ],
)
def test_a_planted_violation_is_found(kind, token, record):
    assert found(record) == {kind: [token]}


def test_writes_that_overlap_may_stand_in_any_order():
    assert found(plant(stored=("a-1", "b-1", "a-2", "b-2"))) == {}


def test_everything_lost_is_everything_lost():
    assert found(plant(stored=())) == {"lost": ["a-1", "b-1", "a-2", "b-2"]}


def test_a_late_unknown_write_must_not_overtake_what_was_acknowledged_before_it():
    late = (*CLEAN.writes, write("a-3", 5.2, 5.3, UNKNOWN))
    assert found(plant(writes=late, stored=("b-1", "a-1", "a-2", "a-3", "b-2"))) == {"reordered": ["a-3"]}


@pytest.mark.parametrize("survived", [True, False])
def test_an_unknown_write_may_survive_or_vanish(survived):
    record = plant(writes=(*CLEAN.writes, write("a-3", 5.2, 5.3, UNKNOWN)), stored=CLEAN.stored + ("a-3",) * survived)
    assert found(record) == {}
    assert check(record)["unknown"] == 1 and check(record)["unknown_stored"] == survived


def test_the_gap_is_the_longest_time_without_an_acknowledged_write():
    assert check(CLEAN)["gap"] == 3.0


def test_the_gap_counts_from_the_beginning_and_to_the_end():
    assert check(plant(began=-9.0))["gap"] == 10.2
    assert check(plant(ended=15.0))["gap"] == 9.9


def test_neither_unconfirmed_writes_nor_the_pinned_client_shorten_the_gap():
    more = (write("p-1", 3.0, 3.1, pinned=True), write("a-9", 3.5, 3.6, UNKNOWN))
    assert check(plant(writes=CLEAN.writes + more, stored=(*CLEAN.stored, "p-1")))["gap"] == 3.0


def test_a_record_survives_its_file(tmp_path):
    CLEAN.save(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == CLEAN
