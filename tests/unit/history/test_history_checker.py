"""The checker finds every kind of violation that is planted, and nothing in a history that keeps its promises."""

import dataclasses

import pytest
from history_samples import BREAKS, World, consistent
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.history.checker import KINDS, check
from tests.history.history import OK, UNKNOWN, Attempt, Get, History, ModelCall, StoredTurn, Window

WEB = "web:abcdef-0"
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def talk(turns=4, **options):
    world = World()
    for _number in range(turns):
        world.turn(**options)
    return world.history()


def found(history):
    return {kind: number for kind, number in check(history).counts.items() if number}


def token(number):
    return f"turn-abcdef-0-0-{number}"


def with_line(history, *numbers):
    """The same history with other turns, or another order, in Redis."""
    by_token = {turn.tokens: turn for turn in history.stored[WEB]}
    return dataclasses.replace(history, stored={WEB: tuple(by_token[(token(number),)] for number in numbers)})


def with_view(history, number, *shown):
    calls = [
        (
            dataclasses.replace(call, tokens=(*map(token, shown), token(number)))
            if call.tokens[-1] == token(number)
            else call
        )
        for call in history.calls
    ]
    return dataclasses.replace(history, calls=tuple(calls))


# ---- one of each kind, with nothing else beside it


def test_a_clean_history_passes():
    report = check(talk(5))
    assert report.violations == () and report.atomic
    assert not any(report.apart.values())


def test_lost():
    (violation,) = check(with_line(talk(), 0, 1, 2)).violations
    assert (violation.kind, violation.conversation, violation.token) == ("lost", WEB, token(3))


def test_a_lost_turn_is_not_reported_again_by_those_that_saw_it():
    assert found(with_line(talk(), 0, 2, 3)) == {"lost": 1}


def test_doubled():
    assert found(with_line(talk(), 0, 1, 2, 3, 3)) == {"doubled": 1}


def test_reordered():
    report = check(with_line(talk(), 0, 1, 3, 2))
    assert {(one.kind, one.token) for one in report.violations} == {
        ("reordered", token(3)), ("dirty_view", token(3)), ("stale_view", token(2)),
    }  # fmt: skip


def test_turns_that_overlapped_may_stand_in_either_order():
    history = World().turn().turn(early=1, after=30).turn(early=15).history()
    swapped = with_view(with_view(with_line(history, 0, 2, 1), 2, 0), 1, 0, 2)
    assert found(history) == found(swapped) == {}


def test_stale_view():
    (violation,) = check(with_view(talk(), 3, 0, 2)).violations
    assert violation.kind == "stale_view" and violation.token == token(3) and token(1) in violation.detail


def test_stale_view_of_two_turns_at_once_that_did_not_see_each_other():
    history = World().turn().turn(early=1, after=30).turn(early=15).history()
    assert found(with_view(history, 2, 0)) == {"stale_view": 1}


def test_dirty_view():
    history = World().turn().turn(outcome="lost").turn().history()
    (violation,) = check(with_view(history, 2, 0, 1)).violations
    assert violation.kind == "dirty_view" and token(1) in violation.detail


@pytest.mark.parametrize("shown", [(0, 0, 1, 2), (1, 0, 2), (0, 1, 2, 3)])
def test_dirty_view_doubled_or_in_another_order_or_of_itself(shown):
    assert found(with_view(talk(), 3, *shown)) == {"dirty_view": 1}


@pytest.mark.parametrize("other", [{"reply": "other"}, {"replica": "node9-1"}])
def test_two_answers_of_the_client(other):
    history = talk()
    last = history.operations[-1]
    second = dataclasses.replace(last.attempts[0], invoked=100, returned=101, **other)
    changed = dataclasses.replace(last, attempts=(*last.attempts, second))
    assert found(dataclasses.replace(history, operations=(*history.operations[:-1], changed))) == {"two_answers": 1}


def test_two_answers_the_clients_and_the_stored_one():
    history = talk()
    *turns, last = history.stored[WEB]
    changed = {WEB: (*turns, dataclasses.replace(last, reply="other"))}
    assert found(dataclasses.replace(history, stored=changed)) == {"two_answers": 1}


def test_the_same_answer_twice_is_one_answer():
    assert found(talk(repeated=True)) == {}


@pytest.mark.parametrize("turn", [StoredTurn((token(77),)), StoredTurn((), "hello")])
def test_phantom(turn):
    history = talk()
    assert found(dataclasses.replace(history, stored={WEB: (*history.stored[WEB], turn)})) == {"phantom": 1}


def test_phantom_conversation_and_turn_of_another_conversation():
    history = talk(2)
    strange = {WEB: history.stored[WEB], "web:abcdef-5": (StoredTurn((token(0),)),)}
    (violation,) = check(dataclasses.replace(history, stored=strange)).violations
    assert (violation.kind, violation.conversation) == ("phantom", "web:abcdef-5")


def test_unwitnessed():
    history = talk()
    assert found(dataclasses.replace(history, calls=history.calls[:-1])) == {"unwitnessed": 1}
    failed = dataclasses.replace(history.calls[-1], outcome="client hung up")
    assert found(dataclasses.replace(history, calls=(*history.calls[:-1], failed))) == {"unwitnessed": 1}


def test_the_answering_call_counts_and_not_another_one_of_the_turn():
    history = talk()
    stale = ModelCall((token(3),), "another answer, that nobody got")
    assert found(dataclasses.replace(history, calls=(stale, *history.calls, stale))) == {}


# ---- counted apart


def test_outcomes_that_are_counted_apart():
    history = World().turn().turn(outcome="unknown").turn(outcome="lost").turn(outcome="refused").turn().history()
    report = check(history)
    assert report.violations == ()
    assert report.apart == {
        "refused_but_stored": [], "unknown_stored": [token(1)], "unknown_not_stored": [token(2)], "late": [],
    }  # fmt: skip


def test_refused_but_stored():
    history = World().turn().turn(outcome="unknown").turn().history()
    refused = dataclasses.replace(
        history.operations[1], attempts=(dataclasses.replace(history.operations[1].attempts[0], outcome="refused"),)
    )
    report = check(dataclasses.replace(history, operations=(history.operations[0], refused, history.operations[2])))
    assert report.violations == () and report.apart["refused_but_stored"] == [token(1)]


def test_an_unknown_turn_that_stands_before_an_acknowledged_one_must_be_shown_too():
    history = World().turn().turn(outcome="unknown").turn().history()
    assert found(with_view(history, 2, 0)) == {"stale_view": 1}


def test_a_late_turn_may_have_read_a_shorter_list_but_not_older_than_its_beginning():
    history = World().turn().turn(early=1, after=30).turn(early=15, behind=1).history()
    report = check(history)
    assert report.violations == () and report.apart["late"] == [token(2)]
    assert found(with_view(history, 2)) == {"stale_view": 1}
    assert found(with_view(history, 2, 0, 0)) == {"dirty_view": 1}


def test_a_turn_is_acknowledged_by_any_answer_and_refused_only_by_refusals():
    known = Attempt(4, 5, "", OK, 200, "", "yes", "node1-1")
    unknown, refused = Attempt(0, 1, "", UNKNOWN), Attempt(2, 3, "", "refused")
    base = talk(1).operations[0]

    def outcome(*attempts):
        return dataclasses.replace(base, attempts=attempts).outcome

    assert outcome(unknown, refused, known) == OK
    assert outcome(unknown, refused) == UNKNOWN
    assert outcome(refused, refused) == "refused"


def test_totals():
    world = (
        World()
        .turn(repeated=True)
        .turn(outcome="unknown")
        .turn(outcome="lost")
        .turn(1, outcome="refused")
        .turn(1, after=90)
    )
    gets = (Get(0, 0.5, 200), Get(1, 3, 503, "503"))
    history = dataclasses.replace(world.history(), gets=gets, window=Window("kill", 28, 29))
    totals = check(history).totals
    assert totals == {
        "conversations": 2, "turns": 5, "requests": 7, "acknowledged": 2, "refused": 1, "unknown": 2,
        "errors": {"connection lost": 3, "503 turn_not_started": 1}, "median_turn": 2,
        "longest_stall": 91, "turns_during_fault": 2,
        "gets": 2, "get_errors": {"503": 1}, "longest_get": 2,
    }  # fmt: skip


# ---- whatever the history


@given(consistent())
@RELAXED
def test_consistent_histories_pass(history):
    assert check(history).violations == ()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@RELAXED
def test_what_is_planted_is_found(kind, data):
    broken = BREAKS[kind](data.draw(consistent()), data.draw)
    assume(broken is not None)
    assert found(broken).get(kind), found(broken)


@given(consistent())
@RELAXED
def test_a_history_survives_the_disk(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("history") / "history.json"
    history.save(path)
    assert History.read(path) == history
