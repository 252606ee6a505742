"""The report is figures of requests: each is shown with requests made for it."""

import dataclasses
import json

import pytest

from tests.traffic import evidence, logs
from tests.traffic.__main__ import main
from tests.traffic.evidence import Request
from tests.traffic.report import COLUMNS, Visit, heading, longest_gap, percentile, report, row

VISIT = Visit("replica frozen", 100.0, 110.0, 112.0, ("a-1",))


def sent(kind="get", began=100.0, seconds=0.1, outcome="ok", **more):
    return Request(kind, f"{kind}-{began}", began, began, began + seconds, outcome, **more)


@pytest.mark.parametrize("share, wanted", [(0.5, 2), (0.95, 4), (0.99, 4), (0.25, 1), (0, 1)])
def test_percentiles_are_values_that_were_measured(share, wanted):
    assert percentile([4, 1, 3, 2], share) == wanted
    assert percentile([], share) is None


def test_every_outcome_is_counted():
    requests = [
        sent(),
        sent(outcome="failed", error="503 balancer"),
        sent(outcome="failed", error="503 balancer"),
        sent(outcome="failed", error="connection lost"),
        sent(outcome="unsent", error="100 on their way"),
        sent("message"),
        sent("stream", outcome="cut", error="connection lost", chunks=3, replica="a-1", seconds=2),
        sent("stream", outcome="failed", error="no connection"),
    ]
    found = report(requests, VISIT)
    assert (found["get"]["sent"], found["get"]["ok"], found["get"]["failed"], found["get"]["unsent"]) == (4, 1, 3, 1)
    assert found["get"]["reasons"] == {"503 balancer": 2, "connection lost": 1, "100 on their way": 1}
    assert (found["message"]["sent"], found["message"]["failed"]) == (1, 0)
    assert (found["stream"]["sent"], found["stream"]["failed"]) == (2, 1)
    assert found["stream"]["cut"] == [
        {"id": "stream-100.0", "replica": "a-1", "error": "connection lost", "chunks": 3, "began_at": 0.0, "after": 2}
    ]


@pytest.mark.parametrize(
    "began, replica, kind, cut",
    [
        (99.9, "a-1", "stream", True),
        (100.2, "a-1", "stream", True),
        (100.4, "a-1", "stream", False),  # by then it was dead, and the balancer should have known how to go on
        (99.9, "b-1", "stream", False),
        (99.9, "a-1", "message", False),  # a key makes it repeatable
    ],
)
def test_a_stream_that_its_replica_had_when_it_died_is_cut(began, replica, kind, cut):
    one = sent(kind, began=began, seconds=0.5, outcome="failed", error="502 balancer", replica=replica)
    found = report([one], dataclasses.replace(VISIT, broke=100.3))[kind]
    assert (len(found["cut"]), found["failed"], bool(found["reasons"])) == ((1, 0, False) if cut else (0, 1, True))


def test_times_begin_when_a_request_was_due():
    late = Request("get", "x", 1.0, 3.0, 3.5, "ok")
    assert report([late])["get"]["p50"] == 2.5


def test_the_longest_gap_is_between_good_answers():
    requests = [sent(began=at) for at in (1.0, 2.0, 7.0, 8.0)] + [sent(began=5.0, outcome="failed")]
    gap, began = longest_gap(requests)
    assert (round(gap, 3), round(began, 3)) == (5.0, 2.1)
    assert longest_gap([]) == (0.0, None)
    assert longest_gap([sent(began=1.0, outcome="failed"), sent(began=4.0, outcome="failed")])[0] == 3.0
    assert longest_gap([sent(began=1.0), sent(began=9.0, outcome="failed")])[0] == pytest.approx(7.9), "no answer until the end"


def test_a_sick_replica_is_out_of_rotation_after_the_last_request_that_met_it():
    requests = [
        sent(began=99.0, replica="a-1"),
        sent(began=100.5, replica="a-1", outcome="failed", error="no answer in time"),
        sent(began=101.0, replica="b-1"),
        sent(began=101.5, replica="b-1", tried=("a-1", "b-1")),
        sent(began=102.5, replica="b-1", repeated=True),
        sent("message", began=103.0, outcome="failed", replica="b-1", error="503 balancer"),
        sent(began=104.0, replica="b-1"),
        sent(began=111.0, replica="b-1"),
        sent(began=113.5, replica="a-1"),
    ]
    fault = report(requests, VISIT)["fault"]
    assert fault["out_of_rotation"] == 2.5 and fault["met_while_sick"] == 3
    assert fault["bad_before_out"] == {"get": 1, "message": 0, "stream": 0}
    assert fault["bad_after_out"] == {"get": 0, "message": 1, "stream": 0}
    assert fault["back_after"] == 3.5 and fault["answered_during"] == {"b-1": 4}
    assert (fault["seconds"], fault["healing_seconds"]) == (10, 2)


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ([], None),
        ([[90.0, "a-1", "UP", 100]], None),
        ([[90.0, "a-1", "UP", 100], [101.5, "a-1", "UP", 1]], 1.5),
        ([[90.0, "a-1", "UP", 100], [101.5, "a-1", "UP", 1], [106.0, "a-1", "DOWN", 1]], 1.5),
        ([[90.0, "a-1", "UP", 100], [101.5, "a-1", "DOWN", 100], [102.0, "a-1", "UP", 100], [104.0, "a-1", "DOWN", 100]], 4.0),
        ([[90.0, "a-1", "UP", 100], [101.5, "a-1", "DOWN", 100], [102.0, "a-1", "UP", 100]], None),
        ([[90.0, "a-1", "UP", 100], [111.0, "a-1", "DOWN", 100]], None),
        ([[90.0, "a-1", "DOWN", 100]], 0.0),
        ([[90.0, "a-1", "UP", 100], [101.5, "b-1", "DOWN", 100]], None),
    ],
)
def test_the_balancers_word_counts_where_no_request_met_the_sick_replica(changes, wanted):
    visit = dataclasses.replace(VISIT, changes=tuple(changes))
    fault = report([sent(began=101.0, replica="b-1")], visit)["fault"]
    assert fault["out_of_rotation"] == fault["avoided_by_balancer_after"] == wanted
    late = report([sent(began=105.0, replica="a-1")], visit)["fault"]
    assert late["out_of_rotation"] == 5.0 and late["avoided_by_balancer_after"] == wanted


def test_what_is_sent_again_later_met_another_replica():
    visit = dataclasses.replace(VISIT, changes=([90.0, "a-1", "UP", 100], [101.5, "a-1", "DOWN", 100]))
    requests = [sent(began=101.0, repeated=True), sent(began=104.0, replica="b-1", repeated=True)]
    assert report(requests, visit)["fault"]["out_of_rotation"] == 1.5
    assert report([*requests, sent(began=103.0, replica="b-1", tried=("a-1", "b-1"), repeated=True)], visit)["fault"]["out_of_rotation"] == 3.0


def test_a_replica_that_never_comes_back_has_no_time_for_it():
    assert report([sent(began=111.0, replica="b-1")], VISIT)["fault"]["back_after"] is None


def test_a_fault_without_sick_replicas_has_no_rotation():
    fault = report([sent(said="degraded"), sent("message", outcome="failed")], Visit("redis away", 100.0, 110.0, 111.0))["fault"]
    assert fault["out_of_rotation"] is None and fault["said_during"] == {"degraded": 1}
    assert fault["bad_after_out"] == {"get": 0, "message": 0, "stream": 0} and fault["bad_during"]["message"] == 1


def test_what_failed_before_the_fault_or_after_it_is_told_apart():
    requests = [sent(began=50.0, outcome="failed"), sent(began=99.95, outcome="failed"), sent(began=120.0, outcome="failed")]
    fault = report(requests, VISIT)["fault"]
    assert fault["bad_during"]["get"] == 1 and fault["bad_otherwise"]["get"] == 2


# ---- rows


def result(requests, visit=VISIT):
    counts = {"lost": 0, "doubled": 1, "phantom": 2}
    return {"name": visit.name, "engine": "haproxy", "traffic": report(requests, visit), "history": {"counts": counts}, "vip": {"of": "node1", "then": "node2"}}


def test_a_row_has_a_cell_for_each_column():
    told = row(result([sent(), sent(began=101.0, replica="a-1"), sent("message", outcome="failed", error="503 balancer"), sent("stream", outcome="cut")]))
    assert told == (
        "| replica frozen | haproxy | 2 / 0 | 1 / 1 / 1 / 0 | 1 / 0 / 1 | 1.0 s | 1.0 s |"
        " message: 1 x 503 balancer; 1 cut on an unknown replica; 2 phantom; of node1; then node2 |"
    )
    assert told.count(" | ") == heading().splitlines()[0].count(" | ") == len(COLUMNS) - 1


def test_a_table_is_made_of_the_evidence_again(tmp_path, capsys):
    directory = tmp_path / "one"
    directory.mkdir()
    evidence.write(directory / "requests.jsonl", [sent(), sent(began=105.0)])
    stale = result([sent()]) | {"visit": vars(VISIT)}
    (directory / "result.json").write_text(json.dumps(stale))
    assert main(["table", str(tmp_path)]) == 0
    assert "| 2 / 0 |" in capsys.readouterr().out
    assert main(["table", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["traffic"]["get"]["sent"] == 2


# ---- what balancers' logs say

REPLICAS = [
    {"id": "node1-1", "address": "198.18.0.1", "port": 18789},
    {"id": "node1-10", "address": "198.18.0.1", "port": 1878},
    {"id": "node2-1", "address": "198.18.0.11", "port": 18789},
]
HAPROXY = '198.18.0.9:40598 [25/Nov/2026:22:21:42.924] openclaw gateways/{} 0/0/14/24/38 {} 413 - - {} 12/12/11/2/{} 0/0 "POST /api/v1/message HTTP/1.1" id={}'


@pytest.mark.parametrize(
    "line, found",
    [
        (HAPROXY.format("node1-1", 200, "----", "0", "x"), (("node1-1",), False)),
        (HAPROXY.format("node1-10", 200, "----", "0", "x"), (("node1-10",), False)),
        (HAPROXY.format("node2-1", 200, "----", "+1", "x"), (("node2-1",), True)),
        (HAPROXY.format("node2-1", 502, "SH--", "2", "x"), (("node2-1",), True)),
        (HAPROXY.format("<NOSRV>", 503, "SC--", "0", "x"), ((), False)),
        ('"GET /api/v1/health HTTP/1.1" 200 upstream=198.18.0.11:18789 upstream_time=0.004 id=x', (("node2-1",), False)),
        ('"GET /api/v1/health HTTP/1.1" 200 upstream=198.18.0.1:18789, 198.18.0.11:18789 upstream_time=5.0, 0.1 id=x', (("node1-1", "node2-1"), True)),
    ],
)
def test_which_replicas_a_line_names(line, found):
    assert logs.tried(line, REPLICAS) == found


def test_the_log_tells_where_streams_and_failures_went():
    requests = [
        Request("stream", "stream-abc-1", 0, 0, 1, "cut"),
        Request("get", "get-abc-1", 0, 0, 1, "ok", replica="node1-1"),
        Request("get", "get-abc-11", 0, 0, 1, "failed"),
    ]
    lines = [HAPROXY.format("node2-1", 200, "SD--", "0", "stream-abc-1"), HAPROXY.format("node1-1", 200, "----", "+1", "get-abc-1"), "a line of something else"]
    stream, get, unknown = logs.add(requests, lines, REPLICAS)
    assert (stream.replica, stream.repeated) == ("node2-1", False)
    assert (get.replica, get.repeated) == ("node1-1", True)
    assert (unknown.replica, unknown.tried) == (None, ())
