"""The load, the collecting and a whole run, against a small cluster in this process that can be made to fail."""

import contextlib
import dataclasses
import http.server
import json
import re
import threading
import types

import pytest
import requests
import urllib3.exceptions

from tests.doubles.ollama_double import answer
from tests.history import collect
from tests.history.__main__ import main
from tests.history.history import OK, REFUSED, UNKNOWN, TOKEN, read_operations
from tests.history.load import Load, LoadOptions, classify, failure
from tests.history.faults import FAULTS
from tests.history.run import Timing, judge_again, row, run


class SmallCluster:
    """One process that acts as balancer, replicas, Redis and model double.

    ``misbehave``: (token, how often it was sent) -> None, or how this request fails.
    """

    def __init__(self, misbehave=lambda _token, _nth: None, remember_keys=True):
        self.misbehave, self.remember_keys = misbehave, remember_keys
        self.lines, self.answers, self.calls, self.seen, self.warm = {}, {}, [], {}, set()
        self.health = {"redis": True, "spooled": 0}
        self.lock = threading.Lock()
        self.servers = [
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name)) for name in ("a", "b", "c")
        ]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.replicas = tuple(f"127.0.0.1:{server.server_port}" for server in self.servers)
        self.url, self.token = f"http://{self.replicas[0]}", "secret"

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _handler(self, replica):
        cluster = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def send(self, status, content, **headers):
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.send(200, cluster.health | {"replica": replica})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != "Bearer secret":
                    return self.send(401, {"error": {"message": "Unauthorized", "type": "unauthorized"}})
                content, failure = cluster.take(replica, request, self.headers["Idempotency-Key"])
                if failure == "refuse":
                    error = {"message": "Not now.", "type": "unavailable_error", "code": "turn_not_started"}
                    self.send(503, {"error": error}, **{"Retry-After": 0})
                elif failure == "unprocessable":
                    self.send(
                        422,
                        {
                            "error": {
                                "message": "No.",
                                "type": "invalid_request_error",
                                "code": "idempotency_key_reused",
                            }
                        },
                    )
                elif failure in ("cut before", "cut after"):
                    self.close_connection = True
                else:
                    self.send(200, content)
                return None

        return Handler

    def take(self, replica, request, key):
        """One request: (answer, how it fails)."""
        with self.lock:
            if key is None:
                self.warm.add(replica)
                return {"reply": "warm"}, None
            self.seen[key] = self.seen.get(key, 0) + 1
            failure = self.misbehave(key, self.seen[key])
            if failure in ("refuse", "unprocessable", "cut before"):
                return None, failure
            if key not in self.answers or not self.remember_keys:
                name = f"web:{request['user_id']}"
                line = self.lines.setdefault(name, [])
                shown = [turn["messages"][0]["content"] for turn in line] + [request["message"]]
                reply = answer([{"role": "user", "content": text} for text in shown])
                self.calls.append({"outcome": "answered", "user_messages": shown})
                messages = [{"role": "user", "content": request["message"]}]
                messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
                if failure != "lose":
                    line.append(
                        {"seq": len(line) + 1, "id": f"{key}/{len(line)}", "replica": replica, "messages": messages}
                    )
                self.answers[key] = {"reply": reply, "replica": replica}
            return self.answers[key], failure

    def redis(self):
        """As much of a Redis client as collecting needs."""

        def scan_iter(match, count):
            pattern = re.compile(re.escape(match).replace(r"\*", ".*"))
            return (key for key in (f"oc:conv:{name}" for name in list(self.lines)) if pattern.fullmatch(key))

        def lrange(key, start, end):
            assert (start, end) == (0, -1)
            return [json.dumps(turn) for turn in self.lines[key.removeprefix("oc:conv:")]]

        return types.SimpleNamespace(scan_iter=scan_iter, lrange=lrange)

    def model_calls(self, run):
        return tuple(collect.model_call(call) for call in self.calls if f"turn-{run}-" in call["user_messages"][-1])


@pytest.fixture
def small():
    """Makes a small cluster; closed afterwards."""
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options):
            cluster = SmallCluster(*arguments, **options)
            stack.callback(cluster.close)
            return cluster

        yield make


@pytest.fixture
def judged(small, tmp_path, program, monkeypatch):
    """Runs a load against a small cluster and returns (result, cluster)."""
    monkeypatch.setattr("tests.history.crosscheck.binary", lambda: program)

    def work(options, fault=FAULTS["none"], timing=Timing(), **behaviour):
        cluster = small(**behaviour)
        return run(options, fault, cluster=cluster, directory=tmp_path / "run", timing=timing), cluster

    return work


def at_turn(number, failure, times=1):
    """The first requests of every client's turn of that number fail."""
    return lambda token, nth: failure if token.endswith(f"-{number}") and nth <= times else None


SMALL = LoadOptions(conversations=3, turns=6, patience=20, deadline=60)


def test_a_whole_run_finds_nothing_where_nothing_is_broken(judged, tmp_path):
    result, cluster = judged(dataclasses.replace(SMALL, gets=50, seconds=0.3))
    assert result["ok"] and result["agree"], result
    totals = result["totals"]
    assert (totals["conversations"], totals["turns"], totals["acknowledged"], totals["errors"]) == (3, 18, 18, {})
    assert totals["requests"] == 18 + 3 * 2, "turns 0 and 5 are sent once more"
    assert totals["gets"] > 0 and not totals["get_errors"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert len(read_operations(tmp_path / "run" / "operations.jsonl")) == 18
    assert sorted(map(len, cluster.lines.values())) == [6, 6, 6] and cluster.warm == {"a", "b", "c"}
    assert judge_again(tmp_path / "run") == result


@pytest.mark.parametrize("route", ["replicas", "balancer"])
def test_two_clients_in_one_conversation(judged, route):
    result, cluster = judged(dataclasses.replace(SMALL, clients=2, route=route))
    assert result["ok"], result
    assert result["totals"]["turns"] == 36 and len(cluster.lines) == 3
    answered = {turn["replica"] for line in cluster.lines.values() for turn in line}
    assert answered == ({"a", "b", "c"} if route == "replicas" else {"a"})


def test_every_message_delivered_to_two_replicas(judged):
    result, cluster = judged(dataclasses.replace(SMALL, twins=True, repeat=0))
    assert result["ok"] and result["totals"]["requests"] == 36
    assert set(cluster.seen.values()) == {2}


@pytest.mark.parametrize(
    "failure, error",
    [("cut before", "connection lost"), ("cut after", "connection lost"), ("refuse", "503 turn_not_started")],
)
def test_a_turn_without_an_answer_is_sent_again_with_its_key(judged, failure, error):
    result, cluster = judged(SMALL, misbehave=at_turn(2, failure, times=2))
    assert result["ok"], result
    assert result["totals"]["errors"] == {error: 6} and result["totals"]["acknowledged"] == 18
    assert sorted(times for token, times in cluster.seen.items() if token.endswith("-2")) == [3, 3, 3]


@pytest.mark.parametrize("failure, apart", [("cut before", "unknown_not_stored"), ("cut after", "unknown_stored")])
def test_a_turn_that_is_never_answered_is_given_up_and_counted_apart(judged, failure, apart):
    options = dataclasses.replace(SMALL, conversations=1, turns=4, repeat=0, patience=1)
    result, _cluster = judged(options, misbehave=at_turn(3, failure, times=99))
    assert result["ok"], result
    assert result["apart"][apart] == 1 and result["totals"]["unknown"] == 1 and result["totals"]["longest_stall"] < 5


def test_a_plain_refusal_is_final(judged):
    result, cluster = judged(dataclasses.replace(SMALL, repeat=0), misbehave=at_turn(1, "unprocessable", times=99))
    assert result["ok"] and result["totals"]["refused"] == 3
    assert set(cluster.seen.values()) == {1}


def test_a_cluster_that_loses_a_turn_is_found_out(judged, tmp_path, capsys):
    result, _cluster = judged(dataclasses.replace(SMALL, repeat=0), misbehave=at_turn(4, "lose"))
    assert not result["ok"] and result["agree"] and result["porcupine"]["verdict"] == "illegal"
    assert result["counts"]["lost"] == 3 and result["counts"]["stale_view"] == 3
    assert len(list((tmp_path / "run" / "pictures").glob("*.html"))) == 3
    assert main(["check", str(tmp_path / "run")]) == 1
    assert "3 lost" in capsys.readouterr().out
    assert main(["table", str(tmp_path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["counts"] == result["counts"] and told["totals"] == result["totals"] and told["porcupine"] == "illegal"


def test_a_cluster_that_forgets_keys_is_found_out(judged):
    result, _cluster = judged(SMALL, remember_keys=False)
    assert result["counts"]["doubled"] == 6 and result["counts"]["two_answers"] == 6 and result["agree"]


def test_a_fault_comes_and_goes_while_clients_talk(judged):
    seen = []

    @contextlib.contextmanager
    def broken(cluster):
        seen.append(len(cluster.calls))
        cluster.misbehave = lambda _token, _nth: "refuse"
        try:
            yield
        finally:
            cluster.misbehave = lambda _token, _nth: None

    result, cluster = judged(dataclasses.replace(SMALL, seconds=1), broken, Timing(begin_after=0.5, hold=0.5))
    assert result["ok"], result
    assert result["fault"] == "broken" and 0.5 <= result["fault_seconds"] < 5
    assert 9 <= seen[0] < 18 and result["totals"]["turns_during_fault"] > 0
    assert result["totals"]["errors"]["503 turn_not_started"] > 0 and result["totals"]["longest_stall"] >= 0.3
    assert row(result).startswith("| broken | 3 | 18 |")


def test_a_fault_that_cannot_be_brought_about_ends_the_load(small, tmp_path):
    def impossible(_cluster):
        raise OSError("no such container")

    cluster = small()
    with pytest.raises(OSError, match="no such container"):
        run(
            dataclasses.replace(SMALL, seconds=60),
            impossible,
            cluster=cluster,
            directory=tmp_path,
            timing=Timing(begin_after=0),
        )
    assert sum(map(len, cluster.lines.values())) <= 6


def test_a_replica_that_does_not_answer_before_the_run_ends_it(small, tmp_path):
    cluster = small()
    cluster.token = "wrong"
    with pytest.raises(RuntimeError, match="does not answer before the run: 401"):
        run(SMALL, cluster=cluster, directory=tmp_path)
    assert not cluster.lines


def test_the_load_stops_by_itself(small, tmp_path):
    load = Load(
        small(), dataclasses.replace(SMALL, turns=1000, seconds=1000, deadline=0.5), tmp_path / "operations"
    ).start()
    operations, _gets = load.join()
    assert operations and len(operations) < 20


@pytest.mark.parametrize("wrong", [{"conversations": 201}, {"conversations": 100, "turns": 100}, {"route": "pigeon"}])
def test_a_load_without_bounds_is_refused(wrong):
    with pytest.raises(ValueError):
        LoadOptions(**wrong)


# ---- what a response means


@pytest.mark.parametrize(
    "status, body, outcome, error",
    [
        (200, {"reply": "yes", "replica": "a"}, OK, ""),
        (200, {"choices": []}, UNKNOWN, "200 without a code"),
        (400, {"error": {"code": "invalid_json"}}, REFUSED, "400 invalid_json"),
        (401, {"error": {"message": "Unauthorized", "type": "unauthorized"}}, REFUSED, "401 without a code"),
        (409, {"error": {"code": "conversation_busy"}}, REFUSED, "409 conversation_busy"),
        (409, {"error": {"code": "request_in_progress"}}, UNKNOWN, "409 request_in_progress"),
        (503, {"error": {"code": "outcome_unknown"}}, UNKNOWN, "503 outcome_unknown"),
        (429, {"error": {"code": "rate_limited"}}, REFUSED, "429 rate_limited"),
        (500, {"error": {"code": "turn_failed"}}, UNKNOWN, "500 turn_failed"),
        (502, {"error": {"code": "provider_failed"}}, REFUSED, "502 provider_failed"),
        (502, {"error": {"code": 502, "type": "bad_gateway"}}, UNKNOWN, "502 balancer"),
        (503, {"error": {"code": "turn_not_started"}}, REFUSED, "503 turn_not_started"),
        (503, {"error": {"code": 503, "type": "service_unavailable"}}, UNKNOWN, "503 balancer"),
        (503, None, UNKNOWN, "503 without a code"),
        (504, {"error": {"code": "turn_timeout"}}, UNKNOWN, "504 turn_timeout"),
    ],
)
def test_what_a_response_means(status, body, outcome, error):
    assert classify(status, body) == (outcome, error)


def test_what_an_exception_means():
    refused = urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.NewConnectionError(None, "refused"))
    assert failure(requests.ConnectionError(refused)) == (REFUSED, "no connection")
    assert failure(requests.ConnectTimeout()) == (REFUSED, "no connection")
    assert failure(requests.ReadTimeout()) == (UNKNOWN, "no answer in time")
    assert failure(requests.ConnectionError("reset")) == (UNKNOWN, "connection lost")


def test_nobody_listens(tmp_path):
    cluster = types.SimpleNamespace(url="http://127.0.0.1:9", token="secret", replicas=("127.0.0.1:9",))
    operations, _gets = Load(cluster, LoadOptions(1, 1, patience=1), tmp_path / "operations").start().join()
    (operation,) = operations
    assert operation.outcome == REFUSED and {one.error for one in operation.attempts} == {"no connection"}


# ---- shapes in Redis and of the doubles


def test_a_stored_turn_as_the_plugin_writes_it():
    raw = {
        "seq": 2, "late": True, "id": "5180fda7", "replica": "node1-1", "at": 1795196807885,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "turn-abcdef-0-0-1: hello"}]},
            {"role": "assistant", "content": [{"type": "toolCall", "id": "1", "name": "ls", "arguments": {}}]},
            {"role": "toolResult", "toolCallId": "1", "content": [{"type": "text", "text": "turn-abcdef-0-0-9"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "done"}]},
        ],
    }  # fmt: skip
    turn = collect.stored_turn(raw)
    assert (turn.tokens, turn.replica, turn.late, turn.reply) == (("turn-abcdef-0-0-1",), "node1-1", True, "done")
    assert turn.text == "turn-abcdef-0-0-1: hello" and turn.id == "5180fda7"
    raw["messages"] = raw["messages"][:1]
    assert collect.stored_turn(raw).reply is None


def test_two_messages_that_were_merged_into_one_are_two_tokens():
    text = "[Queued user message]\nturn-abcdef-0-0-1: hello\n\nturn-abcdef-0-0-2: hello"
    raw = {"id": "1", "messages": [{"role": "user", "content": text}]}
    assert collect.stored_turn(raw).tokens == ("turn-abcdef-0-0-1", "turn-abcdef-0-0-2")
    assert TOKEN.fullmatch("turn-abcdef-12-1-345")


def test_a_model_call_as_the_doubles_record_it():
    call = collect.model_call(
        {"outcome": "answered", "user_messages": ["turn-abcdef-0-0-0: a", "turn-abcdef-0-0-1: b"]}, "url", "ollama"
    )
    assert call.tokens == ("turn-abcdef-0-0-0", "turn-abcdef-0-0-1")
    assert call.reply == 'ollama seen 2 user messages: "turn-abcdef-0-0-0: a" | "turn-abcdef-0-0-1: b"'


def test_settling_waits_for_spools_and_locks(small):
    cluster = small()
    client = cluster.redis()
    assert collect.settle(cluster, client, "abcdef", seconds=0) == ""
    locked = types.SimpleNamespace(scan_iter=lambda match, count: iter(["oc:lock:web:abcdef-1"]))
    assert collect.settle(cluster, locked, "abcdef", seconds=0) == "oc:lock:web:abcdef-1 is locked"
    cluster.health = {"redis": True, "spooled": 2}
    assert "2 turns waiting" in collect.settle(cluster, client, "abcdef", seconds=0)
    cluster.close()
    assert "does not answer" in collect.settle(cluster, client, "abcdef", seconds=0)
