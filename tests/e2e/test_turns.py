"""Turns that are more than a question and an answer, each begun on one replica and continued on another."""

import concurrent.futures
import http.client
import json
import shlex

import pytest
import requests

from lab.shell import wait_for
from tests.history.faults import started

#: So many turns are cut off at once, at different moments of theirs.
CUT_OFF = 20
#: So many turns die with their gateway.
DIED = 5


def chat(cluster, via, user, text, **more):
    """One turn through the gateway's OpenAI-compatible API of one replica; returns the response."""
    return requests.post(
        f"http://{via}/v1/chat/completions",
        json={"model": "openclaw/default", "user": user, "messages": [{"role": "user", "content": text}], **more},
        headers={"Authorization": f"Bearer {cluster.token}"},
        stream=more.get("stream", False),
        timeout=120,
    )


def wire(cluster, match):
    """Messages of the newest model call whose conversation contains ``match``, as the provider got them."""
    answer = requests.get(f"{cluster.llm_url}/requests", params={"match": match}, timeout=10)
    return answer.json()[-1]["messages"]


@pytest.mark.parametrize(("calls", "rounds"), [(1, 2), (2, 1)], ids=["one after the other", "in parallel"])
def test_tool_calls_and_their_results_follow_a_conversation(llm, user, calls, rounds):
    first, second, third = llm.replicas
    llm.behave(mode="tool", calls=calls, rounds=rounds, match=f"{user} one")
    llm.reply(f"{user} one", user, via=first)
    llm.behave(mode="tool", calls=calls, rounds=rounds, match=f"{user} two")
    llm.reply(f"{user} two", user, via=second)
    llm.behave(mode="ok")
    llm.reply(f"{user} three", user, via=third)
    assert llm.shown(user)[-1] == [f"{user} one", f"{user} two", f"{user} three"]
    messages = wire(llm, f"{user} three")
    called = [call["id"] for message in messages for call in message.get("tool_calls") or []]
    answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert len(called) == 2 * calls * rounds and sorted(called) == sorted(answered)


def test_an_answer_streams_and_is_known_elsewhere(llm, user):
    first, second, _third = llm.replicas
    llm.behave(mode="slow", seconds=2, match=f"{user} one")
    response = chat(llm, first, user, f"{user} one", stream=True)
    lines = [line.removeprefix("data: ") for line in response.iter_lines(decode_unicode=True) if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert len([part for part in parts if part]) > 2, "the answer came in one piece"
    assert f"{user} one" in "".join(parts)
    llm.behave(mode="ok")
    assert chat(llm, second, user, f"{user} two").status_code == 200
    assert llm.shown(user)[-1] == [f"{user} one", f"{user} two"]


def test_a_full_window_is_no_error(llm, user):
    """The provider says that the conversation does not fit: older turns are dropped, for all replicas, and the turn is answered."""
    turns = [f"{user} {number} {'x' * 2000}" for number in range(6)]
    for number, turn in enumerate(turns):
        llm.reply(turn, user, via=llm.replicas[number % 3])
    llm.behave(mode="context_overflow", times=1, match=f"{user} full")
    llm.reply(f"{user} full", user, via=llm.replicas[0])
    llm.behave(mode="ok")
    llm.reply(f"{user} after", user, via=llm.replicas[1])
    shown = llm.shown(user)[-1]
    assert shown[-2:] == [f"{user} full", f"{user} after"]
    assert 2 < len(shown) < len(turns) + 2


def test_a_client_that_hangs_up_leaves_no_trace(llm, user):
    first, second, _third = llm.replicas
    llm.reply(f"{user} one", user, via=first)
    llm.behave(mode="slow", seconds=30, match=f"{user} two")
    client = http.client.HTTPConnection(second, timeout=60)
    body = json.dumps({"channel": "web", "user_id": user, "message": f"{user} two"})
    client.request("POST", "/api/v1/message", body, {"Authorization": f"Bearer {llm.token}", "Content-Type": "application/json"})
    wait_for("the model to be asked", lambda: outcomes(llm, f"{user} two") == ["in progress"], 20)
    client.close()
    # The model's call ends with the client, and the conversation is free for the next turn.
    wait_for("the model call to be given up", lambda: "client hung up" in outcomes(llm, f"{user} two"), 20)
    llm.behave(mode="ok")
    for via in (first, second):
        llm.reply(f"{user} three by {via}", user, via=via)
    assert llm.shown(user)[-1] == [f"{user} one", f"{user} three by {first}", f"{user} three by {second}"]


def test_turns_that_died_with_their_gateway_are_shown_to_nobody(llm, hosts, topology, user):
    """Not even when their repetition was answered elsewhere and the conversations come back as soon as the gateway does.

    Some at once: the gateway gets rid of them itself by and by, and one of them could be lucky.
    """
    replica = topology["replicas"][0]
    host, via, elsewhere = hosts[replica["host"]], *llm.replicas[:2]
    users = [f"{user}-{number}" for number in range(DIED)]

    def say(one, text, via):
        return llm.say(f"{one} {text}", one, via=via, **{"Idempotency-Key": f"{one}-{text}"})

    def answered(one):
        """Whether the third turn has its answer. One that could not begin beside the gateway's own recovery goes again, as a balancer would do it."""
        answer = say(one, "three", via)
        assert answer.status_code == 200 or answer.json()["error"]["code"] == "turn_not_started", answer.text
        return answer.status_code == 200

    with concurrent.futures.ThreadPoolExecutor(DIED) as pool:

        def all_say(text, via):
            assert [answer.status_code for answer in pool.map(say, users, [text] * DIED, [via] * DIED)] == [200] * DIED

        all_say("one", via)
        llm.behave(mode="slow", seconds=30, match=" two")
        cut_off = [pool.submit(say, one, "two", via) for one in users]
        wait_for("the model to be asked", lambda: all(outcomes(llm, f"{one} two") == ["in progress"] for one in users), 30)
        pid = host.check_output("systemctl show --property=MainPID --value %s", replica["unit"])
        host.check_output(f"kill -KILL {pid}")
        assert all(isinstance(one.exception(timeout=20), requests.ConnectionError) for one in cut_off)
        llm.behave(mode="ok")
        all_say("two", elsewhere)
        wait_for(f"{replica['id']} is back", lambda: started(replica))
        list(pool.map(lambda one: wait_for(f"the answer to {one} three", lambda: answered(one)), users))
    for one in users:
        assert llm.shown(one)[-1] == [f"{one} one", f"{one} two", f"{one} three"]


def test_requests_of_a_busy_replica_are_cut_off_and_repeated_elsewhere(cluster, user):
    """As behind a balancer that takes it out: keys and locks are free at once, and each key has one turn.

    That it begins a turn after it was cut off takes a stall that cannot be made here: the plugin's unit tests have it.
    """
    first, second, _third = cluster.replicas
    users = [f"{user}-{number}" for number in range(CUT_OFF)]

    def begin(one):
        client = http.client.HTTPConnection(first, timeout=60)
        headers = {"Authorization": f"Bearer {cluster.token}", "Content-Type": "application/json", "Idempotency-Key": one}
        client.request("POST", "/api/v1/message", json.dumps({"channel": "web", "user_id": one, "message": f"{one} one"}), headers)
        return client

    def repeat(one):
        return cluster.reply(f"{one} one", one, via=second, **{"Idempotency-Key": one})

    with concurrent.futures.ThreadPoolExecutor(CUT_OFF) as pool:
        clients = list(pool.map(begin, users))
        # Some of them have their turn by then, some have begun it, some have not.
        wait_for("a model call", lambda: cluster.shown(user), 20)
        for client in clients:
            client.close()
        list(pool.map(repeat, users))
    for one in users:
        cluster.reply(f"{one} two", one, via=first)
        assert cluster.shown(one)[-1] == [f"{one} one", f"{one} two"]


def outcomes(cluster, match):
    answer = requests.get(f"{cluster.llm_url}/requests", params={"match": match}, timeout=10)
    return [call["outcome"] for call in answer.json()]


#: A replica's own command line, which needs a directory of its own. Arguments: instance, port, session key.
RESET = """
set -a; . "/etc/openclaw/gateway/$1/secrets.env"; . "/etc/openclaw/gateway/$1/replica.env"; set +a
unset OPENCLAW_CONFIG_PATH
HOME=$(mktemp -d); OPENCLAW_STATE_DIR=$HOME
cd "$HOME" && node "$OPENCLAW_RELEASE/node_modules/openclaw/openclaw.mjs" gateway call sessions.reset \\
    --url "ws://127.0.0.1:$2" --params "{\\"key\\": \\"$3\\", \\"reason\\": \\"reset\\"}" --token "$OPENCLAW_GATEWAY_TOKEN_HA"
rm -rf "$HOME"
"""


def test_a_reset_on_one_replica_is_one_on_all(cluster, hosts, topology, user):
    replica = topology["replicas"][0]
    cluster.reply(f"{user} one", user, via=cluster.replicas[1])
    cluster.reply(f"{user} two", user, via=cluster.replicas[0])
    arguments = (str(replica["instance"]), str(replica["port"]), f"agent:main:api:web:{user}")
    hosts[replica["host"]].check_output(f"sh -c {shlex.quote(RESET)} sh {' '.join(map(shlex.quote, arguments))}")
    cluster.reply(f"{user} three", user, via=cluster.replicas[2])
    assert cluster.shown(user)[-1] == [f"{user} three"]


def test_one_key_one_answer_from_any_replica(cluster, user):
    answers = [cluster.say(f"{user} once", user, via=via, **{"Idempotency-Key": user}) for via in (*cluster.replicas, cluster.replicas[0])]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["reply"] for answer in answers}) == 1 and len({answer.json()["replica"] for answer in answers}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None, "true", "true", "true"]
    reused = cluster.say("another message", user, **{"Idempotency-Key": user})
    assert (reused.status_code, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(cluster.shown(f"{user} once")) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"channel": "web", "user_id": "a"}, 400, "invalid_message"),
        ({"channel": "We b", "user_id": "a", "message": "x"}, 400, "invalid_channel"),
        ({"channel": "web", "user_id": "a", "message": "x", "color": "red"}, 400, "unknown_field"),
        ({"channel": "web", "user_id": "a", "message": "x" * 70000}, 413, "body_too_large"),
    ],
)
def test_bad_input_is_refused_by_name(cluster, body, status, code):
    response = requests.post(
        f"{cluster.url}/api/v1/message", json=body, headers={"Authorization": f"Bearer {cluster.token}"}, timeout=30
    )
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
