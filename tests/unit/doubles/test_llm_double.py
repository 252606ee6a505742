"""The LLM double over real sockets: what it answers, what it records, how it misbehaves."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error

import pytest

import ollama_double

from tests.ports import free_port

INTERNAL = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nRuntime notes\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"


def user(text):
    return {"role": "user", "content": text}


def ask(call, url, *texts, **more):
    messages = [message for text in texts for message in (user(text), {"role": "assistant", "content": "noted"})][:-1]
    return call(f"{url}/v1/chat/completions", {"model": "double", "messages": messages, **more})


def behave(call, url, **behaviour):
    reply = call(f"{url}/behaviour", behaviour)
    assert reply.status == 200, reply.body
    return reply.body


def events(raw):
    """The data of each server-sent event."""
    return [block.removeprefix("data: ") for block in raw.decode().split("\n\n") if block]


# ---- answers


def test_the_answer_says_how_many_user_messages_it_was_shown_and_which(llm, call):
    reply = ask(call, llm.url, "one", 'two "quoted"', "three")
    assert (
        reply.body["choices"][0]["message"]["content"] == 'seen 3 user messages: "one" | "two \\"quoted\\"" | "three"'
    )
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    assert (
        reply.body["usage"]["total_tokens"]
        == reply.body["usage"]["prompt_tokens"] + reply.body["usage"]["completion_tokens"]
    )


def test_decorations_of_openclaw_are_not_counted(llm, call):
    messages = [
        {"role": "system", "content": "x" * 5000},
        user("[Fri 2026-11-20 16:20 UTC] my name is Ada\n\nRuntime: agent=main | sessionId=1f45 | host=vm"),
        user([{"type": "text", "text": "[Fri 2026-11-20 16:21 GMT+1] and now?"}]),
        user("[Fri 2026-11-20 16:21 UTC] <turn_aborted>\nThe previous turn was interrupted.\n</turn_aborted>"),
        user(INTERNAL),
        user("[Fri 2026-11-20 16:22 UTC] [Retry after the previous model attempt failed or timed out]\n\nagain"),
        user(f"{INTERNAL}\n\nlast"),
        user('[Fri 2026-11-20 16:23 UTC] Conversation info: \u27e6openclaw:ctx\u27e7\n```json\n{"sender":{"id":"42"}}\n```\n\nby Telegram'),
    ]
    reply = call(f"{llm.url}/v1/chat/completions", {"model": "double", "messages": messages})
    assert (
        reply.body["choices"][0]["message"]["content"]
        == 'seen 5 user messages: "my name is Ada" | "and now?" | "again" | "last" | "by Telegram"'
    )


def test_only_a_time_stamp_is_taken_for_one():
    assert ollama_double.said(user("[order 17] where is it?")) == "[order 17] where is it?"


def test_long_histories_are_counted_in_full_and_quoted_in_part():
    text = ollama_double.answer([user(f"m{number}") for number in range(100)])
    assert text.startswith('seen 100 user messages: "m0" | ') and text.endswith('| "m99"') and "(60 more)" in text
    assert len(ollama_double.answer([user("y" * 100000)])) < 300


def test_a_stream_holds_the_same_answer_and_the_usage_when_asked_for(llm, call):
    whole = ask(call, llm.url, "one", "two").body["choices"][0]["message"]["content"]
    raw = ask(call, llm.url, "one", "two", stream=True, stream_options={"include_usage": True})
    assert raw.headers["Content-Type"] == "text/event-stream"
    *chunks, usage, done = events(raw.body)
    deltas = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"].get("content") or "" for choice in deltas) == whole
    assert len(deltas) > 3 and deltas[-1]["finish_reason"] == "stop"
    assert json.loads(usage)["usage"]["completion_tokens"] > 0 and json.loads(usage)["choices"] == []
    assert done == "[DONE]"
    assert "usage" not in events(ask(call, llm.url, "one", stream=True).body)[-2]


def test_models(llm, call):
    assert call(f"{llm.url}/v1/models").body["data"][0]["id"] == "double"


@pytest.mark.parametrize("body", [[1], {"messages": "x"}, {"messages": ["x"]}, {}])
def test_bad_requests_are_refused(llm, call, body):
    reply = call(f"{llm.url}/v1/chat/completions", body)
    assert reply.status == 400 and reply.body["error"]["message"]
    assert call(f"{llm.url}/requests").body == []


def test_unknown_path(llm, call):
    assert call(f"{llm.url}/v1/unknown").status == 404


# ---- records


def test_requests_are_recorded_without_secrets(llm, call):
    headers = {
        "Authorization": "Bearer very-secret",
        "X-OpenClaw-Session": "s1",
        "Cookie": "also-secret",
        "User-Agent": "test",
    }
    for text in ("one", "two"):
        messages = [{"role": "system", "content": "z" * 9000}, user(text)]
        call(f"{llm.url}/v1/chat/completions", {"model": "m", "messages": messages}, headers=headers)
    records = call(f"{llm.url}/requests").body
    assert [record["user_messages"] for record in records] == [["one"], ["two"]]
    first = records[0]
    assert (first["model"], first["outcome"], first["stream"]) == ("m", "answered", False)
    assert first["messages"][0]["content"] == "(9000 characters)"
    assert first["headers"]["user-agent"] == "test" and first["headers"]["x-openclaw-session"] == "s1"
    assert abs(first["time"] - time.time()) < 60 and first["seconds"] >= 0
    assert "secret" not in json.dumps(records) and len(first["key_fingerprint"]) == 12
    assert [record["id"] for record in call(f"{llm.url}/requests?since={first['id']}").body] == [records[1]["id"]]
    assert len(call(f"{llm.url}/requests?match=two").body) == 1


def test_requests_can_be_cleared_on_either_port(llm, call):
    for port in (llm.url, llm.control):
        ask(call, llm.url, "one")
        assert len(call(f"{port}/requests").body) == 1
        assert call(f"{port}/requests", method="DELETE").status == 200
        assert call(f"{llm.url}/requests").body == []


def test_the_record_is_bounded_in_number_and_bytes():
    headers = http.client.HTTPMessage()
    few = ollama_double.Recorder(most_requests=3)
    for number in range(10):
        few.add({"messages": [user(str(number))]}, headers)
    assert [record["id"] for record in few.list()] == [8, 9, 10]
    small = ollama_double.Recorder(most_bytes=10000)
    for _number in range(10):
        small.add({"messages": [user("x" * 1000)]}, headers)
    assert 1 <= len(small.list()) < 10


def test_concurrent_requests_are_all_recorded_once(llm, call):
    threads = [threading.Thread(target=ask, args=(call, llm.url, f"t{number}")) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = call(f"{llm.url}/requests").body
    assert sorted(record["user_messages"][0] for record in records) == sorted(f"t{number}" for number in range(40))
    assert len({record["id"] for record in records}) == 40


# ---- misbehaviour


@pytest.mark.parametrize(
    "mode, status, code",
    [
        ("500", 500, None),
        ("503", 503, None),
        (429, 429, "rate_limit_exceeded"),
        ("401", 401, "invalid_api_key"),
        ("context_overflow", 400, "context_length_exceeded"),
    ],
)
def test_errors_until_told_otherwise(llm, call, mode, status, code):
    behave(call, llm.url, mode=mode)
    for _attempt in range(2):
        reply = ask(call, llm.url, "one")
        assert (reply.status, reply.body["error"]["code"]) == (status, code)
    assert ("Retry-After" in reply.headers) == (status == 429)
    behave(call, llm.url, mode="ok")
    assert ask(call, llm.url, "one").status == 200
    assert [record["outcome"] for record in call(f"{llm.url}/requests").body] == [f"error {status}"] * 2 + ["answered"]


def test_a_behaviour_ends_after_its_time(llm, call, until):
    behave(call, llm.url, mode="500", seconds=0.3)
    assert ask(call, llm.url, "one").status == 500
    until(lambda: ask(call, llm.url, "one").status == 200)
    assert call(f"{llm.url}/behaviour").body["mode"] == "ok"


def test_a_behaviour_can_be_limited_to_some_calls(llm, call):
    behave(call, llm.url, mode="500", times=2, match="sick")
    assert [ask(call, llm.url, text).status for text in ("sick", "well", "sick", "sick")] == [500, 200, 500, 200]


def test_the_match_looks_at_the_newest_message_only(llm, call):
    behave(call, llm.url, mode="500", match="sick")
    assert ask(call, llm.url, "sick", "well").status == 200


@pytest.mark.parametrize(
    "behaviour",
    [
        {"mode": "unknown"},
        {"mode": "hang", "seconds": "x"},
        {"mode": "hang", "seconds": -1},
        {"mode": "hang", "seconds": 1e9},
        {"mode": "500", "times": 0},
        {"mode": "500", "match": 3},
        {"mode": "500", "surprise": 1},
    ],
)
def test_unknown_behaviour_is_refused_and_changes_nothing(llm, call, behaviour):
    reply = call(f"{llm.url}/behaviour", behaviour)
    assert reply.status == 400 and reply.body["error"]["message"]
    assert call(f"{llm.url}/behaviour").body["mode"] == "ok"


def test_hang_says_nothing_until_the_client_gives_up(llm, call, until):
    behave(call, llm.url, mode="hang")
    with pytest.raises(TimeoutError):
        call(f"{llm.url}/v1/chat/completions", {"messages": [user("one")]}, timeout=0.3)
    until(lambda: call(f"{llm.url}/requests").body[0]["outcome"] == "client hung up")


def test_hang_lets_go_when_the_behaviour_changes(llm, call, until):
    behave(call, llm.url, mode="hang", times=1)
    failures = []

    def attempt():
        try:
            ask(call, llm.url, "one")
        except (urllib.error.URLError, ConnectionError, http.client.HTTPException) as error:
            failures.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    until(lambda: call(f"{llm.url}/requests").body)
    assert call(f"{llm.url}/requests").body[0]["outcome"] == "in progress"
    behave(call, llm.url, mode="ok")
    thread.join(5)
    assert failures
    assert call(f"{llm.url}/requests").body[0]["outcome"] == "hung"


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_refuse_really_closes_the_socket_while_the_control_port_answers(llm, call, until):
    behave(call, llm.url, mode="refuse", seconds=60)
    assert refused(llm.port)
    assert call(f"{llm.control}/behaviour").body["mode"] == "refuse"
    assert call(f"{llm.control}/v1/models").status == 404
    behave(call, llm.control, mode="ok")
    assert ask(call, llm.url, "one").status == 200


def test_refuse_ends_by_itself(llm, call, until):
    behave(call, llm.url, mode="refuse", seconds=0.3)
    assert refused(llm.port)
    until(lambda: not refused(llm.port))
    assert ask(call, llm.url, "one").status == 200


def test_refuse_also_ends_connections_that_were_open(llm, call):
    connection = http.client.HTTPConnection("127.0.0.1", llm.port, timeout=5)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().read()
    kept = connection.sock
    behave(call, llm.control, mode="refuse", seconds=60)
    kept.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert kept.recv(100) == b""
    connection.close()


def first_bytes(port, stream):
    """Seconds until the response's head, and until its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    start = time.monotonic()
    connection.request(
        "POST", "/v1/chat/completions", json.dumps({"messages": [user("one two three")], "stream": stream})
    )
    response = connection.getresponse()
    head = time.monotonic() - start
    first = response.read(1) and time.monotonic() - start
    response.read()
    connection.close()
    return head, first, time.monotonic() - start


def test_slow_answers(llm, call):
    behave(call, llm.url, mode="slow", seconds=0.6)
    head, _first, end = first_bytes(llm.port, stream=False)
    assert head > 0.5 and end < 5
    head, first, end = first_bytes(llm.port, stream=True)
    assert first < 0.5 < end
    behave(call, llm.url, mode="slow_first_token", seconds=0.6)
    head, first, end = first_bytes(llm.port, stream=True)
    assert head < 0.5 < first


def test_a_client_that_hangs_up_in_a_slow_stream_is_noticed(llm, call, until):
    behave(call, llm.url, mode="slow", seconds=60)
    with socket.create_connection(("127.0.0.1", llm.port)) as client:
        body = json.dumps({"messages": [user("one")], "stream": True})
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert client.recv(10)
    until(lambda: call(f"{llm.url}/requests").body[0]["outcome"] == "client hung up")


def test_tools_are_called_and_then_answered_in_words(llm, call):
    behave(call, llm.url, mode="tool", arguments={"path": "."}, calls=2, rounds=2)
    messages = [user("list it")]
    tools = [{"type": "function", "function": {"name": "ls"}}]
    for _round in range(2):
        reply = call(f"{llm.url}/v1/chat/completions", {"messages": messages, "tools": tools}).body["choices"][0]
        calls = reply["message"]["tool_calls"]
        assert reply["finish_reason"] == "tool_calls" and [call_["function"]["name"] for call_ in calls] == ["ls", "ls"]
        assert json.loads(calls[0]["function"]["arguments"]) == {"path": "."}
        messages.append(reply["message"])
        messages += [{"role": "tool", "tool_call_id": call_["id"], "content": "done"} for call_ in calls]
        messages.append(user(INTERNAL))
    reply = call(f"{llm.url}/v1/chat/completions", {"messages": messages, "tools": tools}).body["choices"][0]
    assert reply["message"]["content"] == 'seen 1 user message: "list it"'
    streamed = call(f"{llm.url}/v1/chat/completions", {"messages": messages[:1], "tools": tools, "stream": True}).body
    assert sum('"tool_calls": [' in event for event in events(streamed)) == 2


# ---- as a program


def test_it_runs_as_a_program(call, until):
    port, control = free_port(), free_port()
    program = subprocess.Popen(
        [
            sys.executable,
            "-B",
            ollama_double.__file__.replace("ollama_double", "llm_double"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--control-port",
            str(control),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert f"127.0.0.1:{port}" in program.stdout.readline()
        assert (
            ask(call, f"http://127.0.0.1:{port}", "hello").body["choices"][0]["message"]["content"]
            == 'seen 1 user message: "hello"'
        )
        assert call(f"http://127.0.0.1:{control}/requests").body[0]["user_messages"] == ["hello"]
    finally:
        program.terminate()
        program.communicate(timeout=5)
