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
from tests.history.run import FAULTS, Timing, judge, row, run


class SmallCluster:
    """One process that acts as balancer, replicas, Redis and model double. ``fault``: (token, nth request with it) -> a name or None."""

    def __init__(self, fault=lambda _token, _nth: None, remember_keys=True):
        self.fault, self.remember_keys = fault, remember_keys
        self.lines, self.answers, self.calls, self.seen = {}, {}, [], {}
        self.lock = threading.Lock()
        self.servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name)) for name in ("a", "b", "c")]
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
                self.send(200, {"status": "ok", "redis": True, "spooled": 0, "replica": replica})

            def do_POST(self):
                assert self.headers["Authorization"] == "Bearer secret"
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content, fault = cluster.take(replica, request, self.headers["Idempotency-Key"])
                if fault == "refuse":
                    error = {"message": "Not now.", "type": "unavailable_error", "code": "turn_not_started"}
                    self.send(503, {"error": error}, **{"Retry-After": 0})
                elif fault in ("cut before", "cut after"):
                    self.close_connection = True
                else:
                    self.send(200, content)

        return Handler

    def take(self, replica, request, key):
        """One request: (answer, fault)."""
        with self.lock:
            self.seen[key] = self.seen.get(key, 0) + 1
            fault = self.fault(key, self.seen[key])
            if fault in ("refuse", "cut before"):
                return None, fault
            if key not in self.answers or not self.remember_keys:
                name = f"web:{request['user_id']}"
                line = self.lines.setdefault(name, [])
                shown = [turn["messages"][0]["content"] for turn in line] + [request["message"]]
                reply = answer([{"role": "user", "content": text} for text in shown])
                self.calls.append({"outcome": "answered", "user_messages": shown})
                messages = [{"role": "user", "content": request["message"]}]
                messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
                if fault != "lose":
                    line.append({"seq": len(line) + 1, "id": f"{key}/{len(line)}", "replica": replica, "messages": messages})
                self.answers[key] = {"reply": reply, "replica": replica}
            return self.answers[key], fault

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


def nth(name, number, times=1):
    """A fault for the first requests of each client's turn of that number."""
    return lambda token, nth: name if token.endswith(f"-{number}") and nth <= times else None


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
    assert sorted(map(len, cluster.lines.values())) == [6, 6, 6]
    assert judge(tmp_path / "run")["counts"] == result["counts"]


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


@pytest.mark.parametrize("cut", ["cut before", "cut after"])
def test_a_request_without_an_answer_is_sent_again_with_its_key(judged, cut):
    result, cluster = judged(SMALL, fault=None) if cut is None else judged(SMALL, **{"fault": FAULTS["none"]}) if False else (None, None)
    assert (result, cluster) == (None, None)


def test_placeholder():
    assert OK and REFUSED and UNKNOWN
