"""What a provider signs, and how its events are told from one another."""

from __future__ import annotations

import hashlib
import hmac
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from openclaw_ingress import channels
from openclaw_ingress.channels import Event, Malformed, Reply

NOW = 1_700_000_000


def channel(kind, *secrets, **more):
    account = {"channel": kind, "account": "default", "type": kind, "path": "/x", "secrets": []} | more
    return channels.make(account, [one.encode() for one in secrets or ("one", "two")])


def read(one, document, **headers):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return one.read(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), body)


# --- Telegram


@pytest.mark.parametrize(("token", "good"), [("one", True), ("two", True), ("three", False), ("", False), ("on", False), ("one ", False), ("\udcff", False)])
def test_telegram_token(token, good):
    telegram = channel("telegram")
    assert telegram.verify(CIMultiDict({"x-telegram-bot-api-secret-token": token}), b"", NOW) is good
    assert telegram.verify(CIMultiDict(), b"", NOW) is False


MESSAGE = {"message_id": 7, "chat": {"id": -42}, "from": {"id": 9}}


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({"update_id": 1, "message": MESSAGE}, Event("1", "-42", "", "dedupe:telegram:default:-42:7")),
        ({"update_id": 1, "channel_post": MESSAGE}, Event("1", "-42", "", "dedupe:telegram:default:-42:7")),
        ({"update_id": 1, "message": MESSAGE | {"media_group_id": "g"}}, Event("1", "-42", "-42/g", "dedupe:telegram:default:-42:7")),
        ({"update_id": 1, "edited_message": MESSAGE}, Event("1", "-42")),
        ({"update_id": 1, "callback_query": {"id": "5", "from": {"id": 9}, "message": MESSAGE}}, Event("1", "-42")),
        ({"update_id": 1, "inline_query": {"id": "5", "from": {"id": 9}}}, Event("1", "9")),
        ({"update_id": 1, "message_reaction": {"chat": {"id": -42}, "user": {"id": 9}}}, Event("1", "-42")),
        ({"update_id": 1, "poll": {"id": "5"}}, Event("1", "-")),
        ({"update_id": 1}, Event("1", "-")),
    ],
)
def test_telegram_updates(update, expected):
    assert read(channel("telegram"), update) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"1", b'{"update_id":"1"}', b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_update(body):
    with pytest.raises(Malformed):
        read(channel("telegram"), body)


def test_a_claims_template_is_the_accounts_own():
    update = {"update_id": 1, "message": MESSAGE | {"chat": {"id": "a/b:c"}, "message_thread_id": 3}}
    template = "dedupe:{channel}:{account}:telegram%3A{conversation}~{thread}~{sender}:{message}"
    assert read(channel("telegram", claim=template), update).claim == "dedupe:telegram:default:telegram%3Aa%2Fb%3Ac~3~9:7"


# --- Slack


def signed(body, secret, stamp=NOW):
    digest = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return CIMultiDict({"X-Slack-Request-Timestamp": str(stamp), "X-Slack-Signature": f"v0={digest}"})


def test_slack_signature():
    slack, body = channel("slack"), b'{"a":1}'
    assert slack.verify(signed(body, "one"), body, NOW) and slack.verify(signed(body, "two"), body, NOW + 300)
    assert not slack.verify(signed(body, "three"), body, NOW)
    assert not slack.verify(signed(body, "one"), body + b" ", NOW)
    for off in (301, -301, 10**9):
        assert not slack.verify(signed(body, "one"), body, NOW + off)
    for stamp in ("", "x", "1e9", "-5", "9" * 400, "١"):
        headers = signed(body, "one")
        headers["X-Slack-Request-Timestamp"] = stamp
        assert not slack.verify(headers, body, NOW)
    assert not slack.verify(CIMultiDict(), body, NOW)
    # The known example of Slack's own documentation.
    known = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    known += b"&user_id=U2CERLKJA&user_name=roadrunner"
    known += b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    known += b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    headers = CIMultiDict(
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        }
    )
    assert channel("slack", "8f742231b10e8888abcd99yyyzzz85a5").verify(headers, known, 1531420618)


def test_slack_is_signed_anew_for_the_gateway():
    """A delivery after five minutes would be refused with the signature that came."""
    slack, body = channel("slack"), b"{}"
    headers = CIMultiDict(slack.credentials(body, NOW + 1000.9))
    assert channel("slack", "one").verify(headers, body, NOW + 1000) and not channel("slack", "two").verify(headers, body, NOW + 1000)


def test_slack_events():
    slack = channel("slack")
    assert read(slack, {"type": "url_verification", "challenge": "abc"}) == Reply({"challenge": "abc"})
    event = {"type": "message", "channel": "C1", "user": "U1", "ts": "12.34"}
    document = {"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event": event}
    assert read(slack, document) == Event("Ev1", "T1/C1", "", "dedupe:slack:default:C1:12.34")
    assert read(slack, document | {"event": event | {"subtype": "message_changed"}}) == Event("Ev1", "T1/C1")
    assert read(slack, document | {"event": {"type": "channel_rename", "channel": {"id": "C2"}}}) == Event("Ev1", "T1/C2")
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert read(slack, b"command=%2Fx&team_id=T1&channel_id=C1&trigger_id=9.8", **form) == Event("9.8", "T1/C1")
    payload = {"trigger_id": "9.9", "team": {"id": "T1"}, "channel": {"id": "C1"}}
    assert read(slack, urllib.parse.urlencode({"payload": json.dumps(payload)}).encode(), **form) == Event("9.9", "T1/C1")
    for bad in ({}, [], {"event_id": "Ev1"}, {"event": {}}):
        with pytest.raises(Malformed):
            read(slack, bad)
    for bad in (b"", b"payload=%7B", b"payload=1", b"\xff=1"):
        with pytest.raises(Malformed):
            read(slack, bad, **form)


# --- others


def test_shared_secret():
    crm = channel("shared_secret", header="X-Key", event="header:X-Id", conversation="body:contact.id", group="body:batch", message="body:n")
    assert crm.verify(CIMultiDict({"x-key": "two"}), b"", NOW) and not crm.verify(CIMultiDict({"x-key": "no"}), b"", NOW)
    document = {"contact": {"id": 5}, "batch": "b", "n": 8}
    assert read(crm, document, X_Id="e1") == Event("e1", "5", "b", "dedupe:shared_secret:default:5:8")
    assert read(crm, {"contact": []}, X_Id="e1") == Event("e1", "-")
    assert crm.credentials(b"", NOW) == {"X-Key": "one"}
    with pytest.raises(Malformed, match="it has no header:X-Id"):
        read(crm, document)


@given(st.binary(max_size=200), st.sampled_from(["telegram", "slack", "form"]))
def test_nothing_that_is_sent_breaks_a_channel(body, kind):
    headers = {"Content_Type": "application/x-www-form-urlencoded"} if kind == "form" else {}
    try:
        found = read(channel("slack" if kind == "form" else kind), body, **headers)
    except Malformed as error:
        assert str(error).isascii()
    else:
        assert isinstance(found, (Event, Reply))


KEYS = st.sampled_from(["message", "chat", "id", "from", "event", "channel", "update_id", "event_id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["telegram", "slack"]))
def test_no_document_breaks_a_channel(document, kind):
    document = document | {"update_id": 1, "event_id": "1"} if isinstance(document, dict) else document
    try:
        found = read(channel(kind), document)
    except Malformed:
        return
    assert all(isinstance(one, str) for one in (found.id, found.conversation, found.group, found.claim)) and found.id and found.conversation
