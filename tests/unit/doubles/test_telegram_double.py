"""The Telegram double over real sockets: the Bot API, deliveries to a webhook, the control paths and the faults."""

import concurrent.futures
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import types

import pytest

import telegram_double

from telegram import bot as telegram_bot
from telegram.parts import Faults, Log, entities

from tests.ports import free_port

OTHER_POLLER = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
WEBHOOK_ACTIVE = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"


@pytest.fixture
def api(telegram, call):
    """A double with one bot: ``api(method, **parameters)`` answers the decoded body, which it checks for Telegram's shape."""
    return client(telegram(), call)


def client(double, call):
    def ask(method, **params):
        reply = call(f"{double.url}/{method}", params, timeout=30)
        if reply.status == 200:
            assert reply.body["ok"] is True and "result" in reply.body
        else:
            assert reply.body["ok"] is False and reply.body["error_code"] == reply.status and reply.body["description"]
        return reply.body

    def control(path, body=None, method=None):
        reply = call(f"{double.control}{path}", body, method)
        assert reply.status == 200, reply.body
        return reply.body

    def say(text, chat_id=42, **more):
        return control("/messages", {"chat_id": chat_id, "text": text, **more})

    ask.double, ask.control, ask.say, ask.bot = double, control, say, double.bot
    return ask


@pytest.fixture
def background():
    """Runs a function in a thread; returns its future."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        yield pool.submit


def texts(updates):
    return [update["message"]["text"] for update in updates]


def polling(api):
    return api.control("")["polling_now"]


@pytest.fixture
def webhook():
    """Starts webhooks: ``received`` bodies and headers; ``answer(update)`` gives a status, a body and headers, or None for none."""
    servers = []

    def start(answer=lambda update: (200, b"", {}), port=0, certificate=None):
        hook = types.SimpleNamespace(received=[], headers=[], lock=threading.Lock(), answer=answer)

        class Hook(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                update = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with hook.lock:
                    hook.received.append(update)
                    hook.headers.append(self.headers)
                reply = hook.answer(update)
                if reply:
                    status, body, headers = reply
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Hook)
        server.daemon_threads = True
        server.block_on_close = False
        server.handle_error = lambda *_arguments: None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        hook.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}/hook?from=telegram"
        return hook

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answers(*statuses):
    """An answer per delivery, 200 after the last."""
    left = list(statuses)
    return lambda _update: (left.pop(0) if left else 200, b"", {})


# ---- requests and parameters


def test_a_bot_knows_itself(api):
    me = api("getMe")["result"]
    assert me["id"] == 101 and me["is_bot"] is True and me["username"].endswith("_bot") and me["first_name"]
    assert api("GETME")["result"] == me


def test_unknown_tokens_and_paths(api, call):
    reply = call(f"{api.double.root}/bot101:wrong/getMe")
    assert reply.status == 401
    assert reply.body == {"ok": False, "error_code": 401, "description": "Unauthorized"}
    for path in ("", "/bot101:secret-1", "/file/bot101:secret-1/photos/1.jpg"):
        reply = call(f"{api.double.root}{path}")
        assert reply.status == 404 and reply.body["description"] == "Not Found"


MULTIPART = (
    b'--xx\r\nContent-Disposition: form-data; name="chat_id"\r\n\r\n42\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="text"\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\nan alle\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="thumb"; filename="a.bin"\r\nContent-Type: application/octet-stream\r\n\r\n\xff\x00\xfe\r\n'
    b"--xx--\r\n"
)


@pytest.mark.parametrize(
    "method, query, kind, body",
    [
        ("GET", "?chat_id=42&text=Gr%C3%BC%C3%9Fe%0D%0Aan+alle", None, None),
        ("POST", "?chat_id=42", "application/x-www-form-urlencoded", b"text=Gr%C3%BC%C3%9Fe%0D%0Aan+alle"),
        ("POST", "", "application/json; charset=utf-8", json.dumps({"chat_id": 42, "text": "Grüße\r\nan alle"}).encode()),
        ("POST", "", "multipart/form-data; boundary=xx", MULTIPART),
    ],
    ids=["query", "form", "json", "multipart"],
)
def test_parameters_come_in_every_form(api, method, query, kind, body):
    api.say("hello")
    connection = http.client.HTTPConnection("127.0.0.1", api.double.double.port, timeout=10)
    connection.request(method, f"/bot101:secret-1/sendMessage{query}", body, {"Content-Type": kind} if kind else {})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["ok"] and answer["result"]["text"] == "Grüße\r\nan alle"
    assert api.control("/replies")[0]["chat_id"] == 42


@pytest.mark.parametrize("body", [b"{", b"[1]"])
def test_a_broken_body_is_refused(api, body):
    connection = http.client.HTTPConnection("127.0.0.1", api.double.double.port, timeout=10)
    connection.request("POST", "/bot101:secret-1/getMe", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer == {"ok": False, "error_code": 400, "description": "Bad Request: can't parse JSON object"}


def test_other_methods_answer_true_and_are_recorded(api):
    assert api("setMyDescription", description="d") == {"ok": True, "result": True}
    (record,) = api.control("/calls")
    assert record["method"] == "setMyDescription" and record["params"] == {"description": "d"}
    assert record["status"] == 200 and record["via"] == "api" and record["peer"].startswith("127.0.0.1:")
    assert record["seconds"] >= 0 and abs(record["time"] - time.time()) < 60 and record["monotonic"] <= time.monotonic()


# ---- getUpdates


def test_an_update_looks_like_telegrams(api):
    ids = api.say("/start now @double101_bot", first_name="Ada", language_code="de")
    (update,) = api("getUpdates")["result"]
    message = update["message"]
    assert update["update_id"] == ids["update_ids"][0] and message["message_id"] == ids["message_ids"][0]
    assert message["chat"] == {"id": 42, "type": "private", "first_name": "Ada"}
    assert message["from"] == {"id": 42, "is_bot": False, "first_name": "Ada", "language_code": "de"}
    assert abs(message["date"] - time.time()) < 60 and isinstance(message["date"], int)
    assert message["entities"] == [{"type": "bot_command", "offset": 0, "length": 6}, {"type": "mention", "offset": 11, "length": 14}]


def test_entities_count_in_utf_16():
    assert entities("\N{GRINNING FACE} /go") == [{"type": "bot_command", "offset": 3, "length": 3}]
    assert entities("a/b me@example.org") == []


def test_groups(api):
    api.say("hi", chat_id=-5, user_id=7, title="Friends")
    api.say("hi", chat_id=-1005, user_id=7)
    first, second = (update["message"] for update in api("getUpdates")["result"])
    assert first["chat"] == {"id": -5, "type": "group", "title": "Friends"} and first["from"]["id"] == 7
    assert second["chat"]["type"] == "supergroup"
    assert api("getChat", chat_id=-5)["result"]["title"] == "Friends"


def test_an_offset_confirms_what_is_before_it(api):
    ids = api.say("m{n}", count=4)["update_ids"]
    assert ids == list(range(ids[0], ids[0] + 4))
    assert texts(api("getUpdates", limit=2)["result"]) == ["m1", "m2"]
    assert texts(api("getUpdates")["result"]) == ["m1", "m2", "m3", "m4"], "nothing was confirmed"
    assert texts(api("getUpdates", offset=ids[2])["result"]) == ["m3", "m4"]
    assert texts(api("getUpdates")["result"]) == ["m3", "m4"], "the first two are gone"
    assert texts(api("getUpdates", offset=-1)["result"]) == ["m4"], "counted from the end"
    assert api("getUpdates", offset=ids[3] + 1)["result"] == []
    state = api.control("")
    assert state["pending"] == [] and state["confirmed_offset"] == ids[3] + 1
    assert [poll["update_ids"] for poll in api.control("/polls")][:2] == [ids[:2], ids]


def test_limits_are_brought_into_their_range(api):
    api.say("m{n}", count=120)
    for limit, expected in ((0, 1), (1000, 100), ("many", 100)):
        assert len(api("getUpdates", limit=limit)["result"]) == expected


def test_a_long_poll_ends_with_the_first_update(api, background, until):
    poll = background(api, "getUpdates", timeout=30)
    until(lambda: polling(api))
    started = time.monotonic()
    api.say("hello")
    assert texts(poll.result(10)["result"]) == ["hello"]
    assert time.monotonic() - started < 5
    assert not polling(api)


def test_a_long_poll_ends_empty_after_its_time(api):
    started = time.monotonic()
    assert api("getUpdates", timeout=1)["result"] == []
    assert 0.9 < time.monotonic() - started < 5


def test_of_two_pollers_the_earlier_gets_a_conflict(api, background, until):
    first = background(api, "getUpdates", timeout=30)
    until(lambda: polling(api))
    second = background(api, "getUpdates", timeout=30)
    assert first.result(10) == {"ok": False, "error_code": 409, "description": OTHER_POLLER}
    until(lambda: len(api.control("/polls")) == 2 and polling(api))
    assert not second.done()
    api.say("for the second")
    assert texts(second.result(10)["result"]) == ["for the second"]
    assert api.control("")["conflicts"] == 1
    one, two = api.control("/polls")
    assert (one["status"], two["status"]) == (409, 200) and one["peer"] != two["peer"]


def test_a_conflict_soon_after_another_comes_late(telegram, call, background, until):
    api = client(telegram(conflict_pause=3), call)
    waiting, seconds = background(api, "getUpdates", timeout=30), []
    for number in range(2, 4):
        until(lambda: polling(api) and len(api.control("/polls")) == number - 1)
        started = time.monotonic()
        earlier, waiting = waiting, background(api, "getUpdates", timeout=30)
        assert earlier.result(10)["error_code"] == 409
        seconds.append(time.monotonic() - started)
    assert seconds[0] < 2.5 and seconds[1] > 2.9
    api.say("end")
    assert waiting.result(10)["result"]


def test_a_poller_that_goes_away_takes_nothing_with_it(api, until):
    with socket.create_connection(("127.0.0.1", api.double.double.port)) as gone:
        gone.sendall(b"GET /bot101:secret-1/getUpdates?timeout=30 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: polling(api))
    until(lambda: not polling(api))
    api.say("still there")
    assert texts(api("getUpdates", timeout=5)["result"]) == ["still there"]
    assert api.control("")["conflicts"] == 0
    assert api.control("/polls")[0]["error"] == "client hung up"


def test_no_polling_while_a_webhook_is_set(api, webhook, background, until):
    poll = background(api, "getUpdates", timeout=30)
    until(lambda: polling(api))
    api("setWebhook", url=webhook().url)
    assert poll.result(10)["description"] == "Conflict: terminated by setWebhook request"
    assert api("getUpdates") == {"ok": False, "error_code": 409, "description": WEBHOOK_ACTIVE}
    assert api.control("")["conflicts"] == 2
    api("deleteWebhook")
    assert api("getUpdates")["result"] == []


def test_kinds_of_updates_that_were_not_asked_for_are_not_queued(api):
    def kinds():
        updates = [{"message": {"chat": {"id": 1, "type": "private"}, "text": "x"}}, {"poll": {"id": "1"}}, {"chat_member": {}}]
        assert len(api.control("/updates", {"updates": updates})["message_ids"]) == 1
        received = api("getUpdates")["result"]
        api("getUpdates", offset=received[-1]["update_id"] + 1)
        return [next(name for name in update if name != "update_id") for update in received]

    assert kinds() == ["message", "poll"]
    api("getUpdates", allowed_updates=json.dumps(["poll", "chat_member"]))
    assert kinds() == ["poll", "chat_member"], "the wish lasts"
    assert api("getWebhookInfo")["result"]["allowed_updates"] == ["poll", "chat_member"]
    api("getUpdates", allowed_updates=[])
    assert kinds() == ["message", "poll"]
    assert api("getUpdates", allowed_updates="x")["error_code"] == 400


def test_updates_are_kept_for_a_day(api, monkeypatch):
    monkeypatch.setattr(telegram_bot, "UPDATE_LIFETIME", 0)
    api.say("old")
    monkeypatch.undo()
    api.say("new")
    assert telegram_bot.UPDATE_LIFETIME == 24 * 3600
    assert texts(api("getUpdates")["result"]) == ["new"]


# ---- webhooks


def test_a_webhook_gets_every_update_with_the_secret(api, webhook, until):
    hook = webhook(lambda update: (200, b"", {"X-OpenClaw-Delivery-Accepted": "durable"}))
    assert api("setWebhook", url=hook.url, secret_token="s3cret_-")["description"] == "Webhook was set"
    assert api("setWebhook", url=hook.url, secret_token="s3cret_-")["description"] == "Webhook is already set"
    ids = api.say("m{n}", count=20)
    until(lambda: api.control("")["pending"] == [])
    assert texts(hook.received) == [f"m{number}" for number in range(1, 21)], "in order, each once"
    assert {headers["X-Telegram-Bot-Api-Secret-Token"] for headers in hook.headers} == {"s3cret_-"}
    assert {headers["Content-Type"] for headers in hook.headers} == {"application/json"}
    deliveries = api.control("/deliveries")
    assert [delivery["update_id"] for delivery in deliveries] == ids["update_ids"]
    assert all(delivery["status"] == 200 and delivery["seconds"] > 0 and not delivery["error"] for delivery in deliveries)
    assert deliveries[0]["headers"] == {"x-openclaw-delivery-accepted": "durable"}
    info = api("getWebhookInfo")["result"]
    assert info == {"url": hook.url, "has_custom_certificate": False, "pending_update_count": 0, "max_connections": 40}


def test_without_a_secret_there_is_no_header(api, webhook, until):
    hook = webhook()
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: hook.received)
    assert "X-Telegram-Bot-Api-Secret-Token" not in hook.headers[0]


@pytest.mark.parametrize(
    "wrong, description",
    [
        ({"url": "ftp://127.0.0.1/"}, "invalid webhook URL specified"),
        ({"url": "nowhere"}, "invalid webhook URL specified"),
        ({"url": "http://127.0.0.1:99999/"}, "invalid webhook URL specified"),
        ({"secret_token": "a" * 257}, "secret token is too long"),
        ({"secret_token": "a b"}, "secret token contains unallowed characters"),
        ({"secret_token": "a\n"}, "secret token contains unallowed characters"),
    ],
)
def test_webhooks_that_are_refused(api, wrong, description):
    answer = api("setWebhook", **{"url": "http://127.0.0.1:1/", **wrong})
    assert answer == {"ok": False, "error_code": 400, "description": f"Bad Request: {description}"}
    assert api("getWebhookInfo")["result"]["url"] == ""


def test_an_empty_url_deletes_the_webhook_and_updates_wait_for_a_poller(api, webhook, until):
    hook = webhook(lambda _update: (503, b"", {}))
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: hook.received)
    until(lambda: "last_error_message" in api("getWebhookInfo")["result"])
    assert api("setWebhook", url="")["description"] == "Webhook was deleted"
    assert "last_error_message" not in api("getWebhookInfo")["result"]
    assert api("deleteWebhook")["description"] == "Webhook is already deleted"
    assert texts(api("getUpdates")["result"]) == ["hello"]


def test_waiting_updates_go_to_a_new_webhook_unless_dropped(api, webhook, until):
    hook = webhook()
    api.say("before")
    api("setWebhook", url=hook.url)
    until(lambda: api.control("")["pending"] == [])
    assert texts(hook.received) == ["before"]
    api("deleteWebhook")
    api.say("dropped")
    api("deleteWebhook", drop_pending_updates=True)
    assert api("getUpdates")["result"] == []
    api.say("dropped")
    api("setWebhook", url=hook.url, drop_pending_updates="true")
    api.say("after")
    until(lambda: len(hook.received) == 2)
    assert texts(hook.received) == ["before", "after"]


def test_a_failure_is_retried_with_growing_pauses_and_keeps_the_order(telegram, call, webhook, until):
    api = client(telegram(retry_base=0.05, retry_longest=0.1), call)
    hook = webhook(answers(500, 302, 404, 500, 503))
    api("setWebhook", url=hook.url)
    api.say("m{n}", count=3)
    until(lambda: api.control("")["pending"] == [])
    assert texts(hook.received) == ["m1"] * 6 + ["m2", "m3"]
    records = api.control("/deliveries")
    assert [record["status"] for record in records] == [500, 302, 404, 500, 503, 200, 200, 200]
    assert [record["attempt"] for record in records] == [1, 2, 3, 4, 5, 6, 1, 1]
    moments = [record["monotonic"] for record in records]
    pauses = [later - earlier for earlier, later in zip(moments, moments[1:])]
    for pause, least in zip(pauses, (0.05, 0.1, 0.1, 0.1, 0.1)):
        assert least <= pause + 0.001
    assert pauses[4] < 0.7, "not longer than the longest pause; 0.8 if it went on doubling"
    assert api("getWebhookInfo")["result"]["last_error_message"] == "Wrong response from the webhook: 503 Service Unavailable"
    assert abs(api("getWebhookInfo")["result"]["last_error_date"] - time.time()) < 60


def test_a_chat_whose_updates_fail_holds_up_no_other(api, webhook, until):
    hook = webhook(lambda update: (503 if update["message"]["chat"]["id"] == 1 else 200, b"", {}))
    api("setWebhook", url=hook.url, max_connections=1)
    api.say("bad{n}", chat_id=1, count=2)
    api.say("good{n}", chat_id=2, count=2)
    until(lambda: api("getWebhookInfo")["result"]["pending_update_count"] == 2)
    assert [text for text in texts(hook.received) if text.startswith("good")] == ["good1", "good2"]
    assert "bad2" not in texts(hook.received)


def test_a_webhook_may_ask_for_a_pause(telegram, call, webhook, until):
    api = client(telegram(retry_base=0.01, retry_longest=1), call)
    first = [(503, b"", {"Retry-After": "60"})]
    hook = webhook(lambda _update: first.pop() if first else (200, b"", {}))
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: api.control("")["pending"] == [])
    one, two = (record["monotonic"] for record in api.control("/deliveries"))
    assert 1 <= two - one + 0.001, "as asked, but at most the longest pause"


def test_as_many_chats_at_once_as_the_webhook_allows(api, webhook, until):
    release, lock, now, most = threading.Event(), threading.Lock(), [0], [0]

    def answer(_update):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        release.wait(10)
        with lock:
            now[0] -= 1
        return 200, b"", {}

    hook = webhook(answer)
    api("setWebhook", url=hook.url, max_connections=3)
    for chat in range(1, 6):
        api.say("m{n}", chat_id=chat, count=2)
    until(lambda: most[0] == 3)
    assert api("getWebhookInfo")["result"]["pending_update_count"] == 10
    assert {update["message"]["text"] for update in hook.received} == {"m1"}, "one at a time of each chat"
    release.set()
    until(lambda: api.control("")["pending"] == [])
    assert most[0] == 3 and len(hook.received) == 10
    for chat in range(1, 6):
        assert texts(update for update in hook.received if update["message"]["chat"]["id"] == chat) == ["m1", "m2"]


def test_a_refused_connection_is_retried(api, webhook, until):
    port = free_port()
    api("setWebhook", url=f"http://127.0.0.1:{port}/")
    api.say("hello")
    until(lambda: len(api.control("/deliveries")) >= 2)
    assert api("getWebhookInfo")["result"]["last_error_message"] == "Connection refused"
    hook = webhook(port=port)
    until(lambda: api.control("")["pending"] == [])
    assert texts(hook.received) == ["hello"]
    assert api.control("/deliveries")[0]["status"] is None


def test_a_webhook_that_does_not_answer_in_time_gets_it_again(telegram, call, webhook, until):
    api = client(telegram(webhook_timeout=0.2), call)
    release, calls = threading.Event(), []

    def answer(update):
        calls.append(update)
        if len(calls) == 1:
            release.wait(10)
        return 200, b"", {}

    hook = webhook(answer)
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: api.control("")["pending"] == [])
    release.set()
    assert texts(hook.received) == ["hello", "hello"]
    first = api.control("/deliveries")[0]
    assert first["error"] == "Read timeout expired" and first["seconds"] >= 0.19


def test_a_webhook_that_hangs_up_gets_it_again(api, webhook, until):
    left = [None]
    hook = webhook(lambda _update: left.pop() if left else (200, b"", {}))
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: api.control("")["pending"] == [])
    assert len(hook.received) == 2
    assert api.control("/deliveries")[0]["error"] == "Connection closed"


def test_an_update_is_given_up_after_its_lifetime(api, webhook, until):
    hook = webhook(lambda update: (503 if update["message"]["text"] == "old" else 200, b"", {}))
    api("setWebhook", url=hook.url)
    api.say("old")
    until(lambda: hook.received)
    with api.bot.lock:
        next(iter(api.bot._pending.values())).expires = time.monotonic()
    api.say("new")
    until(lambda: api("getWebhookInfo")["result"]["pending_update_count"] == 0)
    assert texts(hook.received)[-1] == "new"


@pytest.mark.parametrize(
    "kind, body",
    [
        ("application/json", b'{"method": "sendMessage", "chat_id": 42, "text": "at once"}'),
        ("application/x-www-form-urlencoded", b"method=sendMessage&chat_id=42&text=at+once"),
    ],
)
def test_a_method_call_in_the_answer_is_executed(api, webhook, until, kind, body):
    hook = webhook(lambda _update: (200, body, {"Content-Type": kind}))
    api("setWebhook", url=hook.url)
    api.say("hello")
    (reply,) = until(lambda: api.control("/replies"))
    assert reply["text"] == "at once" and reply["chat_id"] == 42 and reply["via"] == "webhook" and reply["peer"] == hook.url


def test_a_method_call_in_an_answer_that_is_no_success_is_not_executed(api, webhook, until):
    bad = [(500, b'{"method": "sendMessage", "chat_id": 42, "text": "no"}', {"Content-Type": "application/json"})]
    hook = webhook(lambda _update: bad.pop() if bad else (200, b'{"method": "deleteWebhook"}', {}))
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: api.control("")["pending"] == [])
    assert api.control("/replies") == []
    assert api.control("")["mode"] == "webhook", "nor one that changes the webhook"


def test_what_was_on_its_way_goes_to_the_new_webhook_as_well(api, webhook, until):
    release = threading.Event()
    old, new = webhook(lambda _update: (release.wait(10), (200, b"", {}))[1]), webhook()
    api("setWebhook", url=old.url)
    api.say("m{n}", count=2)
    until(lambda: old.received)
    api("setWebhook", url=new.url)
    until(lambda: api.control("")["pending"] == [])
    release.set()
    until(lambda: all(record["status"] for record in api.control("/deliveries")))
    assert texts(old.received) == ["m1"] and texts(new.received) == ["m1", "m2"]


def test_a_webhook_that_was_replaced_gets_nothing_more(telegram, call, webhook, until):
    api = client(telegram(retry_longest=0.05), call)
    old, new = (webhook(lambda _update: (503, b"", {})) for _hook in range(2))
    api("setWebhook", url=old.url)
    api.say("hello")
    until(lambda: len(old.received) > 1)
    api("setWebhook", url=new.url)
    before = len(old.received)
    until(lambda: len(new.received) > 5)
    assert len(old.received) <= before + 1, "at most the one that was on its way"


@pytest.mark.parametrize("drop", ["reset", "setWebhook"])
def test_what_was_dropped_holds_up_nothing_new(telegram, call, webhook, until, drop):
    api = client(telegram(retry_base=30, retry_longest=30), call)
    hook = webhook(answers(503))
    api("setWebhook", url=hook.url)
    api.say("old")
    until(lambda: "last_error_message" in api("getWebhookInfo")["result"])
    if drop == "reset":
        api.control("/reset", {})
    else:
        api("setWebhook", url=hook.url, drop_pending_updates=True)
    api.say("new")
    until(lambda: api.control("")["pending"] == [])
    assert texts(hook.received) == ["old", "new"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path / "key", "-out", path / "cert"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    both = path / "both"
    both.write_text((path / "key").read_text() + (path / "cert").read_text())
    return types.SimpleNamespace(file=both, public=(path / "cert").read_text())


def test_a_self_signed_certificate_is_refused(api, webhook, certificate, until):
    hook = webhook(certificate=certificate.file)
    api("setWebhook", url=hook.url)
    api.say("hello")
    message = until(lambda: api("getWebhookInfo")["result"].get("last_error_message"))
    assert message.startswith("SSL error {") and "CERTIFICATE_VERIFY_FAILED" in message
    assert hook.received == []


def test_a_self_signed_certificate_is_accepted_if_told_so(telegram, call, webhook, certificate, until):
    api, hook = client(telegram(insecure=True), call), webhook(certificate=certificate.file)
    api("setWebhook", url=hook.url)
    api.say("hello")
    until(lambda: hook.received)


def test_a_self_signed_certificate_is_accepted_if_uploaded(api, webhook, certificate, until):
    hook = webhook(certificate=certificate.file)

    def upload(certificate_text):
        body = (
            f'--xx\r\nContent-Disposition: form-data; name="url"\r\n\r\n{hook.url}\r\n'
            f'--xx\r\nContent-Disposition: form-data; name="certificate"; filename="c.pem"\r\n\r\n{certificate_text}\r\n--xx--\r\n'
        )
        connection = http.client.HTTPConnection("127.0.0.1", api.double.double.port, timeout=10)
        connection.request("POST", "/bot101:secret-1/setWebhook", body.encode(), {"Content-Type": "multipart/form-data; boundary=xx"})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    assert upload("nonsense") == 400
    assert upload(certificate.public) == 200
    api.say("hello")
    until(lambda: hook.received)
    assert api("getWebhookInfo")["result"]["has_custom_certificate"] is True


# ---- messages


def test_a_reply_is_sent_and_recorded(api):
    (asked,) = api.say("hello")["message_ids"]
    message = api("sendMessage", chat_id="42", text="<b>1 &lt; 2</b>", parse_mode="HTML", reply_parameters={"message_id": asked})["result"]
    assert message["message_id"] > asked and message["text"] == "1 < 2" and message["chat"]["id"] == 42
    assert message["from"]["id"] == 101 and message["from"]["is_bot"] is True
    assert message["reply_to_message"]["text"] == "hello"
    (reply,) = api.control("/replies")
    assert reply["text"] == "<b>1 &lt; 2</b>" and reply["parse_mode"] == "HTML" and reply["message_id"] == message["message_id"]
    assert reply["reply_parameters"] == {"message_id": asked} and reply["peer"].startswith("127.0.0.1:")
    assert api.control("")["pending"], "the bot's own messages are no updates, and confirm none"


def test_message_ids_rise(api):
    ids = [*api.say("a{n}", count=2)["message_ids"], api("sendMessage", chat_id=42, text="x")["result"]["message_id"]]
    ids += api.say("b")["message_ids"]
    assert ids == sorted(set(ids)) and len(ids) == 4


@pytest.mark.parametrize(
    "method, params, description",
    [
        ("sendMessage", {"text": "x"}, "chat_id is empty"),
        ("sendMessage", {"chat_id": 43, "text": "x"}, "chat not found"),
        ("sendMessage", {"chat_id": "@someone", "text": "x"}, "chat not found"),
        ("sendMessage", {"chat_id": 42}, "message text is empty"),
        ("sendMessage", {"chat_id": 42, "text": " \n"}, "message text is empty"),
        ("sendMessage", {"chat_id": 42, "text": "x" * 4097}, "message is too long"),
        ("sendMessage", {"chat_id": 42, "text": "x", "reply_parameters": '{"message_id": 1}'}, "message to be replied not found"),
        ("sendMessage", {"chat_id": 42, "text": "x", "reply_to_message_id": 1}, "message to be replied not found"),
        ("sendMessage", {"chat_id": 42, "text": "x", "reply_parameters": "{"}, "can't parse reply_parameters JSON object"),
        ("sendChatAction", {"chat_id": 42}, "wrong parameter action in request"),
        ("editMessageText", {"chat_id": 42, "text": "x", "message_id": 1}, "message to edit not found"),
        ("deleteMessage", {"chat_id": 42, "message_id": 1}, "message to delete not found"),
        ("setMessageReaction", {"chat_id": 42, "message_id": 1}, "message to react not found"),
        ("answerCallbackQuery", {"callback_query_id": "1"}, "query is too old and response timeout expired or query ID is invalid"),
        ("setMyCommands", {"commands": [{"command": "Bad Name", "description": "d"}]}, "BOT_COMMAND_INVALID"),
        ("setMyCommands", {"commands": [{"command": "c", "description": "d"}] * 101}, "BOT_COMMANDS_TOO_MUCH"),
        ("setMyCommands", {"commands": ["c"]}, "can't parse BotCommand: Expected an Object"),
        ("getChat", {"chat_id": 43}, "chat not found"),
        ("getFile", {"file_id": "x"}, "wrong file_id or the file is temporarily unavailable"),
    ],
)
def test_what_telegram_refuses(api, method, params, description):
    api.say("hello")
    assert api(method, **params) == {"ok": False, "error_code": 400, "description": f"Bad Request: {description}"}
    assert api.control("/replies") == []
    assert api.control("/calls")[-1]["error"] == f"Bad Request: {description}"


def test_a_reply_to_nothing_may_be_allowed(api):
    api.say("hello")
    for reply in (
        {"reply_parameters": {"message_id": 1, "allow_sending_without_reply": True}},
        {"reply_to_message_id": 1, "allow_sending_without_reply": "true"},
    ):
        assert "reply_to_message" not in api("sendMessage", chat_id=42, text="x", **reply)["result"]


def test_the_longest_text_counts_without_markup(api):
    api.say("hello")
    assert api("sendMessage", chat_id=42, text="<b>" + "x" * 4096 + "</b>", parse_mode="HTML")["ok"]


def test_messages_are_edited_reacted_to_and_deleted(api):
    (asked,) = api.say("hello")["message_ids"]
    sent = api("sendMessage", chat_id=42, text="one")["result"]["message_id"]
    about = {"chat_id": 42, "message_id": sent}
    edited = api("editMessageText", text="two", **about)["result"]
    assert edited["text"] == "two" and edited["message_id"] == sent and edited["edit_date"]
    assert api("editMessageText", text="two", **about)["description"].startswith("Bad Request: message is not modified")
    assert api("editMessageText", chat_id=42, message_id=asked, text="x")["description"] == "Bad Request: message can't be edited"
    assert api("setMessageReaction", chat_id=42, message_id=asked, reaction=[{"type": "emoji", "emoji": "x"}])["result"] is True
    assert api("sendChatAction", chat_id=42, action="typing")["result"] is True
    assert api("deleteMessage", **about)["result"] is True
    assert api("deleteMessage", **about)["error_code"] == 400


def test_callback_queries_are_answered(api):
    query = {"callback_query": {"from": {"id": 42}, "data": "yes", "message": {"message_id": 1, "chat": {"id": 42, "type": "private"}}}}
    api.control("/updates", query)
    (update,) = api("getUpdates")["result"]
    assert update["callback_query"]["data"] == "yes"
    assert api("answerCallbackQuery", callback_query_id=update["callback_query"]["id"])["result"] is True


def test_commands_are_kept_per_scope_and_language(api):
    commands = [{"command": "help", "description": "Help"}]
    group = {"scope": json.dumps({"type": "all_group_chats"})}
    assert api("setMyCommands", commands=json.dumps(commands))["result"] is True
    assert api("getMyCommands")["result"] == commands
    assert api("getMyCommands", scope={"type": "default"})["result"] == commands
    assert api("getMyCommands", **group)["result"] == [] and api("getMyCommands", language_code="de")["result"] == []
    assert api("deleteMyCommands", **group)["result"] is True and api("getMyCommands")["result"] == commands
    assert api("deleteMyCommands")["result"] is True and api("getMyCommands")["result"] == []


# ---- faults


def test_slow(api):
    api.control("/faults", {"slow": {"seconds": 0.5, "times": 1, "methods": ["getme"]}})
    assert api.control("/faults")["slow"]["times"] == 1
    seconds = []
    for method in ("getMyCommands", "getMe", "getMe"):
        started = time.monotonic()
        assert api(method)["ok"]
        seconds.append(time.monotonic() - started)
    assert seconds[1] >= 0.5 > max(seconds[0], seconds[2])


def test_refuse_a_number_of_calls(api):
    api.say("hello")
    api.control("/faults", {"refuse": {"status": 502, "times": 2, "methods": ["sendMessage"]}})
    assert api("getMe")["ok"]
    assert [api("sendMessage", chat_id=42, text="x").get("error_code") for _attempt in range(3)] == [502, 502, None]
    assert len(api.control("/replies")) == 1 and api.control("/faults") == {}
    api.control("/faults", {"refuse": {"status": 429}})
    assert api("getUpdates") == {
        "ok": False, "error_code": 429, "description": "Too Many Requests: retry after 1", "parameters": {"retry_after": 1}
    }  # fmt: skip
    api.control("/faults", {"refuse": None})
    assert api("getUpdates")["ok"]


def test_refuse_for_a_time():
    now = [0.0]
    faults = Faults(lambda: now[0])
    faults.set({"refuse": {"seconds": 5}})
    now[0] = 4.9
    assert faults.take("refuse")["status"] == 503
    now[0] = 5
    assert faults.take("refuse") is None and faults.current() == {}


@pytest.mark.parametrize("concurrently", [False, True])
def test_deliver_twice(api, webhook, until, concurrently):
    meeting = threading.Barrier(3)
    hook = webhook(lambda update: (concurrently and update["message"]["text"] == "m1" and meeting.wait(10), (200, b"", {}))[1])
    api("setWebhook", url=hook.url)
    api.control("/faults", {"deliver_twice": {"copies": 3, "concurrently": concurrently}})
    api.say("m{n}", count=2)
    until(lambda: api.control("")["pending"] == [] and len(hook.received) == 4)
    assert sorted(texts(hook.received)) == ["m1", "m1", "m1", "m2"]
    until(lambda: all(record["status"] for record in api.control("/deliveries")))
    first = [record for record in api.control("/deliveries") if record["update_id"] == hook.received[0]["update_id"]]
    assert sorted(record["copy"] for record in first) == [1, 2, 3]


@pytest.mark.parametrize("sent", [True, False])
def test_drop_replies(api, sent):
    api.say("hello")
    api.control("/faults", {"drop_replies": {"sent": sent}})
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        api("sendMessage", chat_id=42, text="lost?")
    assert [reply["text"] for reply in api.control("/replies")] == (["lost?"] if sent else [])
    assert api.control("/calls")[-1]["error"] == "not answered" and api.control("/calls")[-1]["status"] is None
    assert api("sendMessage", chat_id=42, text="again")["ok"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"slwo": {}},
        {"slow": 1},
        {"slow": {"time": 1}},
        {"slow": {"seconds": -1}},
        {"slow": {"seconds": None}},
        {"slow": {"times": 0}},
        {"slow": {"methods": "getMe"}},
        {"refuse": {"status": 200}},
        {"refuse": {"times": True}},
        {"deliver_twice": {"copies": 1}},
        {"drop_replies": {"sent": 1}},
    ],
)
def test_wrong_faults_are_refused(api, call, wrong):
    reply = call(f"{api.double.control}/faults", wrong)
    assert reply.status == 400 and reply.body["error"]
    assert api.control("/faults") == {}


# ---- control paths


def test_bots_are_apart_and_can_be_added(api, call):
    added = call(f"{api.double.root}/control/bots", {"token": "102:x", "username": "second_bot"}).body
    assert added["id"] == 102 and added["mode"] == "polling"
    assert call(f"{api.double.root}/control/bots", {"token": "102:x"}).body["username"] == "second_bot", "the same one"
    assert [bot["id"] for bot in call(f"{api.double.root}/control/bots").body] == [101, 102]
    call(f"{api.double.root}/control/102:x/messages", {"chat_id": 1, "text": "for the second"})
    assert api("getUpdates")["result"] == []
    assert texts(call(f"{api.double.root}/bot102:x/getUpdates").body["result"]) == ["for the second"]
    for wrong in ("102:y", "x", "1:", "0:a", 5):
        assert call(f"{api.double.root}/control/bots", {"token": wrong}).status == 400


@pytest.mark.parametrize(
    "path, body",
    [
        ("/messages", {"text": "x"}),
        ("/messages", {"chat_id": 42}),
        ("/messages", {"chat_id": "42", "text": "x"}),
        ("/messages", {"chat_id": 42, "text": "x", "count": 0}),
        ("/messages", {"chat_id": 42, "text": "x", "unknown": 1}),
        ("/updates", {"updates": 1}),
        ("/updates", {"message": {}, "poll": {}}),
        ("/updates", {"message": "x"}),
        ("/replies?since=x", None),
    ],
)
def test_wrong_control_requests_are_refused(api, call, path, body):
    assert call(f"{api.double.control}{path}", body).status == 400
    assert api.control("")["pending"] == []


def test_unknown_control_paths(api, call):
    for path in ("/control/999", "/control/101/nothing", "/control/101/replies/1", "/control"):
        assert call(f"{api.double.root}{path}").status == 404


def test_lists_are_narrowed(api):
    api.say("hello")
    api.say("hello", chat_id=43)
    for chat, text in ((42, "one"), (43, "two"), (42, "three")):
        api("sendMessage", chat_id=chat, text=text)
    assert [reply["text"] for reply in api.control("/replies?chat_id=42")] == ["one", "three"]
    assert [reply["text"] for reply in api.control("/replies?since=1")] == ["two", "three"]
    assert api.control("/calls?method=getMe") == []


def test_reset_forgets_what_was_seen_but_not_where_updates_go(api, webhook, call):
    hook = webhook(lambda _update: (503, b"", {}))
    api("setWebhook", url=hook.url)
    before = api.say("hello")
    api("sendMessage", chat_id=42, text="x")
    api.control("/faults", {"refuse": {}})
    assert call(f"{api.double.root}/control/reset", {}).body == {"reset": True}
    state = api.control("")
    assert state["pending"] == [] and state["faults"] == {} and state["webhook"]["url"] == hook.url
    assert api.control("/replies") == api.control("/calls") == []
    assert api("sendMessage", chat_id=42, text="the chat is still known")["ok"]
    after = api.say("hello")
    assert after["update_ids"] > before["update_ids"] and after["message_ids"] > before["message_ids"]
    api.control("/reset", {})
    assert api.control("/replies") == []


def test_secrets_and_files_are_not_recorded(api, webhook):
    api("setWebhook", url=webhook().url, secret_token="very-secret")
    assert api.control("")["has_secret_token"] is True
    for path in ("", "/calls"):
        assert "very-secret" not in json.dumps(api.control(path)) and "secret-1" not in json.dumps(api.control(path))
    assert telegram_bot._recorded({"photo": b"123"}) == {"photo": "(3 bytes)"}


def test_records_are_bounded():
    log = Log(most_records=3)
    for number in range(5):
        log.add(number=number)
    assert [(record["id"], record["number"]) for record in log.list()] == [(3, 2), (4, 3), (5, 4)]
    log = Log(most_bytes=2000)
    for _number in range(5):
        log.add(text="x" * 800)
    assert [record["id"] for record in log.list()] == [4, 5]


def test_messages_chats_and_waiting_updates_are_bounded(monkeypatch):
    for name in ("MOST_MESSAGES", "MOST_CHATS"):
        monkeypatch.setattr(telegram_bot, name, 2)
    monkeypatch.setattr(telegram_bot, "MOST_PENDING", 5)
    bot = telegram_bot.Bot("1:a")
    for chat in (1, 2, 3):
        bot.inject(chat, "x")
    assert len(bot._chats) == len(bot._messages) == 2
    with pytest.raises(ValueError, match="would wait"):
        bot.inject(1, "x", count=3)
    assert len(bot.inject(1, "x", count=2)["update_ids"]) == 2


def test_ids_go_on_rising_over_a_restart(monkeypatch):
    ids = []
    for moment in (1_800_000_000, 1_800_000_010):
        monkeypatch.setattr(telegram_bot.time, "time", lambda moment=moment: moment)
        injected = telegram_bot.Bot("1:a").inject(1, "x", count=50)
        ids.append(injected["update_ids"] + injected["message_ids"])
    assert max(ids[0]) < min(ids[1]) and max(ids[1]) < 2**31


def test_the_command_line(call):
    port = free_port()
    program = subprocess.Popen(
        [sys.executable, "-B", telegram_double.__file__, "--port", str(port), "--bot", "1:a", "--bot", "2:b", "--retry-base", "0.1"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout.readline() == f"Telegram stand-in listens on 127.0.0.1:{port}\n"
        assert [call(f"http://127.0.0.1:{port}/bot{token}/getMe").body["result"]["id"] for token in ("1:a", "2:b")] == [1, 2]
    finally:
        program.terminate()
        program.communicate(timeout=5)
    command = [sys.executable, "-B", telegram_double.__file__, "--bot", "x"]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert wrong.returncode == 2 and "token" in wrong.stderr
