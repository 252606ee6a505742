"""Each way in which a request can fail, planted in a small real server, is found in the evidence."""

import time

import pytest

from tests.traffic import evidence
from tests.traffic.load import Traffic, TrafficOptions

SHORT = TrafficOptions(gets=20, messages=20, streams=10, conversations=2, seconds=0.5)


@pytest.fixture
def loaded(balancer, tmp_path):
    """Runs a short load with planted failures. :returns: (requests by kind, the balancer)"""

    def work(planted=lambda _name: None, options=SHORT):
        small = balancer(planted)
        load = Traffic(small.cluster, options, tmp_path).start()
        load.begun()
        small.release.set()
        sent, operations = load.join()
        assert len(operations) == sum(one.kind == "message" for one in sent)
        return {kind: [one for one in sent if one.kind == kind] for kind in evidence.KINDS}, small

    return work


def outcomes(requests):
    return {(one.outcome, one.error) for one in requests}


def test_where_nothing_fails_everything_is_ok(loaded, tmp_path):
    sent, small = loaded()
    assert [len(sent[kind]) for kind in evidence.KINDS] == [10, 10, 5]
    assert all(outcomes(sent[kind]) == {("ok", "")} for kind in evidence.KINDS)
    assert {one.replica for one in sent["get"]} == {"a"} and {one.replica for one in sent["message"]} == {"b"}
    assert {one.replica for one in sent["stream"]} == {None}, "a stream does not say who answers it"
    assert {one.chunks for one in sent["stream"]} == {4}
    assert all(0 <= one.first <= one.seconds for kind in ("get", "stream") for one in sent[kind])
    assert {connection for _name, connection, _key in small.seen} == {"close"}
    written = (tmp_path / "sent.jsonl").read_text().splitlines()
    assert len(written) == 15


def test_a_message_has_its_key_in_its_address_and_is_sent_once(loaded):
    sent, small = loaded(lambda name: "not started" if name.startswith("turn-") else None)
    keys = [key for name, _connection, key in small.seen if name == key]
    assert sorted(keys) == sorted(one.id for one in sent["message"]) and len(set(keys)) == len(keys) == 10
    assert outcomes(sent["message"]) == {("failed", "503 turn_not_started")}


@pytest.mark.parametrize(
    "kind, failure, found",
    [
        ("get", "drop", ("failed", "connection lost")),
        ("get", "503", ("failed", "503 balancer")),
        ("get", "page", ("failed", "200 without a gateway")),
        ("message", "drop", ("failed", "connection lost")),
        ("message", "503", ("failed", "503 balancer")),
        ("message", "page", ("failed", "200 without a code")),
        ("stream", "drop", ("failed", "connection lost")),
        ("stream", "503", ("failed", "503 balancer")),
        ("stream", "cut", ("cut", "connection lost")),
        ("stream", "short", ("cut", "ended without [DONE]")),
        ("stream", "half", ("cut", "half an event")),
        ("stream", "event", ("failed", "error in the stream")),
        ("stream", "other", ("failed", "another answer")),
    ],
)
def test_each_failure_is_found_and_others_are_not_blamed(loaded, kind, failure, found):
    begins = "turn-" if kind == "message" else f"{kind}-"
    sent, _small = loaded(lambda name: failure if name.startswith(begins) else None)
    assert outcomes(sent[kind]) == {found}
    assert all(outcomes(sent[other]) == {("ok", "")} for other in evidence.KINDS if other != kind)


def test_the_part_of_a_stream_that_came_is_counted(loaded):
    sent, _small = loaded(lambda name: "cut" if name.startswith("stream-") else None)
    assert {one.chunks for one in sent["stream"]} == {2} and all(one.first is not None for one in sent["stream"])


def test_a_request_does_not_wait_for_the_one_before_it(loaded):
    sent, _small = loaded(lambda name: "hang" if name.startswith("get-") and name.endswith("-1") else None)
    assert len(sent["get"]) == 10
    slow = [one for one in sent["get"] if one.outcome != "ok"]
    assert [one.id.rsplit("-", 1)[1] for one in slow] == ["1"] and slow[0].seconds > 0.4
    assert all(one.began - one.due < 0.2 for one in sent["get"])


def test_what_the_load_could_not_send_is_told(loaded, monkeypatch):
    monkeypatch.setattr("tests.traffic.load.MOST_AT_ONCE", 2)
    sent, small = loaded(lambda name: "hang" if name.startswith("get-") else None)
    assert outcomes(sent["get"]) == {("failed", "connection lost"), ("unsent", "2 on their way")}
    assert sum(name.startswith("get-") for name, _connection, _key in small.seen) == 2


def test_nobody_listens(balancer, tmp_path):
    small = balancer()
    small.close()
    load = Traffic(small.cluster, SHORT, tmp_path).start()
    time.sleep(0.2)
    load.stop()
    sent, _operations = load.join()
    assert {one.kind for one in sent} == set(evidence.KINDS) and outcomes(sent) == {("failed", "no connection")}


def test_the_load_ends_by_itself(balancer, tmp_path):
    load = Traffic(balancer().cluster, TrafficOptions(conversations=2, seconds=0.2), tmp_path).start()
    sent, _operations = load.join()
    assert 1 <= len(sent) <= 10


def test_what_a_health_answer_says_of_itself_is_kept(loaded):
    sent, _small = loaded(lambda name: "degraded" if name.startswith("get-") else None)
    assert {one.said for one in sent["get"]} == {"degraded"}


@pytest.mark.parametrize("wrong", [{"gets": 101}, {"seconds": 901}, {"messages": 0}, {"messages": 50}])
def test_a_load_without_bounds_is_refused(wrong):
    with pytest.raises(ValueError):
        TrafficOptions(**wrong).of_messages()


def test_evidence_is_read_as_it_was_written(loaded, tmp_path):
    sent, _small = loaded()
    requests = tuple(sent["get"] + sent["message"] + sent["stream"])
    evidence.write(tmp_path / "requests.jsonl", requests)
    assert evidence.read(tmp_path / "requests.jsonl") == requests
