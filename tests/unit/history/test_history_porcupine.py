"""The second opinion: Porcupine comes to the same verdict on the same histories."""

import pytest
from history_samples import BREAKS, World, consistent
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.history import crosscheck
from tests.history.checker import ATOMICITY, KINDS, check

RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def agree(history, answer):
    """Both verdicts, which must be one."""
    report = check(history)
    assert (answer["verdict"] == "ok") == report.atomic, f"{answer} but {report.violations}"
    broken = {one.conversation for one in report.violations if one.kind in ATOMICITY}
    assert set(answer["conversations"]) == broken
    return answer["verdict"]


@given(history=consistent())
@RELAXED
def test_both_pass_consistent_histories(porcupine, history):
    assert agree(history, porcupine(history)) == "ok"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@RELAXED
def test_both_see_what_was_planted(porcupine, kind, data):
    broken = BREAKS[kind](data.draw(consistent()), data.draw)
    assume(broken is not None)
    verdict = agree(broken, porcupine(broken))
    assert verdict == "illegal" or kind not in ATOMICITY


@given(data=st.data())
@RELAXED
def test_both_agree_on_whatever_comes(porcupine, data):
    """Several things broken at once may heal each other: what counts is that both say the same."""
    history = data.draw(consistent())
    for kind in data.draw(st.lists(st.sampled_from(sorted(BREAKS)), min_size=1, max_size=3)):
        history = BREAKS[kind](history, data.draw) or history
    agree(history, porcupine(history))


def test_a_large_history_with_many_unknown_turns_is_judged_in_time(porcupine):
    world = World()
    for conversation in range(20):
        for number in range(30):
            world.turn(conversation, ("ok", "ok", "unknown", "lost", "ok", "refused")[number % 6], early=15, after=8)
    answer = porcupine(world.history(), seconds=20)
    assert answer["verdict"] == "ok" and answer["operations"] == 20 * 25 + 20


def test_a_failing_history_leaves_its_picture(porcupine, tmp_path):
    history = World().turn().turn().turn(1).history()
    stored = history.stored | {"web:abcdef-0": history.stored["web:abcdef-0"][:1]}
    answer = porcupine(type(history)(history.operations, stored, history.calls), pictures=tmp_path / "pictures")
    assert answer["conversations"] == {"web:abcdef-0": "illegal"}
    (picture,) = answer["pictures"]
    assert "Redis at the end" in (tmp_path / "pictures" / "web_abcdef-0.html").read_text() and picture.endswith(
        "web_abcdef-0.html"
    )


def test_without_go_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(crosscheck.CrossCheckError, match="needs the Go toolchain"):
        crosscheck.binary(tmp_path)


def test_what_cannot_be_read_is_an_error_and_no_verdict(program, tmp_path):
    (tmp_path / "history.json").write_text("{")
    with pytest.raises(crosscheck.CrossCheckError, match="failed"):
        crosscheck.judge(tmp_path / "history.json", program=program)
