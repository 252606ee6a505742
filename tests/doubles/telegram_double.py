# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Telegram's Bot API server, with its users. Nothing leaves the machine.

It takes the place of api.telegram.org in the lab (OpenClaw's ``apiRoot``), so that tests can send messages to a bot as a
user would, see each reply and who sent it, and make Telegram fail in each way that the real one does:

    GET or POST /bot<token>/<method>: parameters in the query, as JSON, as a form or as multipart
    /control/...: for tests, see README.md beside this file

Faithful:

- getUpdates: an offset confirms and removes what is before it; long polling; of two pollers the earlier one gets a 409,
  and so does each one while a webhook is set. The first 409 comes at once, the next ones three seconds late.
- Webhooks: the secret's header, in order per chat and up to ``max_connections`` chats at once; what is not answered with
  2xx is sent again after a growing pause (or ``Retry-After``), until it is accepted or a day old; a method call in the
  answer is executed. A webhook that is set anew gets what was on its way to the old one again.
- Updates of kinds that were not asked for are not queued; update ids rise per bot, message ids too, and both go on
  rising when the program starts again.
- Errors have Telegram's shape and words; who has never written to a bot is a chat that it does not find.

Not faithful:

- Any method not in ``telegram.bot.METHODS`` answers ``true``, even where Telegram has no such method or gives an object.
- Webhooks may be http and on any port; each delivery opens a connection; ``ip_address`` is ignored; the pauses between
  deliveries are only roughly Telegram's. Updates are delivered again only if not accepted, or if told so.
- No limits on the rate of messages unless told so; getUpdates in quick succession is not slowed down.
- Text is kept as sent: entities are found for commands and mentions alone, ``parse_mode`` only decides about the length
  of HTML text, and markup is never refused. No files, no inline mode, no rights in groups, no privacy mode.
- Only the latest 10,000 chats and 20,000 messages of a bot can be found. Everything is lost when the program ends.

Standard library only; needs ``telegram`` (the bots) and ``ollama_double.py`` (common parts) beside it.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import http
import json
import re
import select
import socket
import threading
import time
import urllib.parse

from ollama_double import Handler, HungUp, Server
from telegram.bot import Bot, Settings
from telegram.parts import ApiError, bad_request

MOST_INJECTED = 10_000
LISTS = ("calls", "replies", "deliveries", "polls")


class TelegramDouble:
    """The listener and its bots. ``port`` 0 is any free one."""

    def __init__(self, host="127.0.0.1", port=0, tokens=(), settings=Settings()):
        self._settings = settings
        self._lock = threading.Lock()
        self._bots = {}
        for token in tokens:
            self.add(token)
        self._server = Server((host, port), type("BoundHandler", (TelegramHandler,), {"double": self}))
        self.host, self.port = self._server.server_address[:2]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, token, **about):
        """The bot with this token, a new one if there is none. :raises ValueError: for a malformed token or a second one of a bot"""
        with self._lock:
            if token not in self._bots:
                bot = Bot(token, self._settings, **about)
                if any(other.id == bot.id for other in self._bots.values()):
                    raise ValueError("a bot with this number has another token")
                self._bots[token] = bot
            return self._bots[token]

    def bots(self):
        with self._lock:
            return list(self._bots.values())

    def with_token(self, token):
        with self._lock:
            return self._bots.get(token)

    def with_name(self, name):
        """The bot with this number or token, or None."""
        return self.with_token(name) or next((bot for bot in self.bots() if str(bot.id) == name), None)

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        for bot in self.bots():
            bot.stop()


def parameters(query, content_type, raw):
    """The parameters of a method: text, of JSON bodies any type, of files bytes.

    :raises ApiError: when the body cannot be read
    """
    params = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    kind = content_type.split(";")[0].strip().lower()
    try:
        if not raw:
            return params
        if kind == "application/json":
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise ValueError("not an object")
            return params | body
        if kind == "multipart/form-data":
            return params | _multipart(content_type, raw)
        return params | dict(urllib.parse.parse_qsl(raw.decode(), keep_blank_values=True))
    except ValueError:
        raise bad_request(f"can't parse {'JSON object' if kind == 'application/json' else 'the request'}") from None


def _multipart(content_type, raw):
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    params = {}
    for part in email.message_from_bytes(head + raw, policy=email.policy.HTTP).iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if name and content is not None:
            params[name] = content if part.get_filename() else content.decode()
    return params


class NoAnswer(Exception):
    """A fault wants the connection closed without an answer."""


class TelegramHandler(Handler):
    """The Bot API, and the control paths for tests."""

    double: TelegramDouble

    def _dispatch(self):
        url = urllib.parse.urlsplit(self.path)
        segments = [urllib.parse.unquote(segment) for segment in url.path.strip("/").split("/")]
        try:
            raw = self.read_raw()
            if segments[0] == "control":
                self._control(segments[1:], url.query, raw)
            elif len(segments) == 2 and segments[0].startswith("bot") and re.fullmatch(r"\w+", segments[1]):
                self._api(self.double.with_token(segments[0][3:]), segments[1], url.query, raw)
            else:
                self.send_json(404, ApiError(404, "Not Found").body())
        except ValueError as error:
            self.send_json(400, {"error": str(error)})
        except (HungUp, NoAnswer, ConnectionError, TimeoutError):
            self.close_connection = True

    # -- the Bot API

    def _api(self, bot, method, query, raw):
        if not bot:
            self.send_json(401, ApiError(401, "Unauthorized").body())
            return
        peer = "{}:{}".format(*self.client_address[:2])
        try:
            params, refusal = parameters(query, self.headers.get("Content-Type", ""), raw), None
        except ApiError as error:
            params, refusal = {}, error
        record, more = bot.begin(method, params, peer), {}
        try:
            self._misbehave(bot, method)
            if refusal:
                raise refusal
            drop = bot.faults.take("drop_replies") if method.lower() == "sendmessage" else None
            if drop and not drop["sent"]:
                raise NoAnswer
            if method.lower() == "getupdates":
                fields = {"result": bot.get_updates(params, self._wait)}
                more = {"update_ids": [update["update_id"] for update in fields["result"]]}
            else:
                fields = bot.call(method, params, peer)
            if drop:
                raise NoAnswer
            status, error, body = 200, None, {"ok": True, **fields}
        except ApiError as failure:
            status, error, body = failure.code, failure.description, failure.body()
            self._pause(bot, record, failure.pause)
        except (HungUp, NoAnswer, ConnectionError) as failure:
            bot.finish(record, None, "not answered" if isinstance(failure, NoAnswer) else "client hung up")
            raise
        # Recorded before it is sent, so that whoever has the answer finds it recorded.
        bot.finish(record, status, error, **more)
        self.send_json(status, body)

    def _pause(self, bot, record, seconds):
        try:
            self.hold(seconds)
        except (HungUp, ConnectionError):
            bot.finish(record, None, "client hung up")
            raise

    def _misbehave(self, bot, method):
        if slow := bot.faults.take("slow", method):
            self.hold(slow["seconds"])
        if refuse := bot.faults.take("refuse", method):
            status = refuse["status"]
            if status == 429:
                raise ApiError(429, "Too Many Requests: retry after 1", retry_after=1)
            phrases = {known.value: known.phrase for known in http.HTTPStatus}
            raise ApiError(status, phrases.get(status, "Unknown Error"))

    def _wait(self, reader, seconds):
        """Wait until ``reader`` is readable or the time is up. :raises HungUp: as soon as the client has gone"""
        deadline = time.monotonic() + seconds
        watched = [reader, self.connection]
        while (left := deadline - time.monotonic()) > 0:
            readable = select.select(watched, [], [], left)[0]
            if reader in readable:
                return
            if readable:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise HungUp
                watched = [reader]  # a pipelined request is waiting, the client is still there

    # -- control paths

    def _control(self, segments, query, raw):
        body = json.loads(raw) if raw else {}
        if not isinstance(body, dict):
            raise ValueError("the request body must be a JSON object")
        name, action = (segments + ["", ""])[:2]
        if name in ("bots", "reset") and len(segments) == 1:
            function, arguments = getattr(self, f"_{self.command.lower()}_{name}", None), (body,)
        elif (bot := self.double.with_name(name)) and len(segments) <= 2:
            if action in LISTS and self.command == "GET":
                function, arguments = self._list, (bot, action, query)
            else:
                function = getattr(self, f"_{self.command.lower()}_bot_{action or 'summary'}", None)
                arguments = (bot, body)
        else:
            function = None
        if function:
            self.send_json(200, function(*arguments))
        else:
            self.send_json(404, {"error": f"no such bot or control path: {self.command} {self.path}"})

    def _get_bots(self, _body):
        return [bot.summary() for bot in self.double.bots()]

    def _post_bots(self, body):
        _only(body, token=str, first_name=str, username=str)
        return self.double.add(**{"token": "", **body}).summary()

    def _post_reset(self, _body):
        for bot in self.double.bots():
            bot.reset()
        return {"reset": True}

    def _get_bot_summary(self, bot, _body):
        return bot.summary()

    def _post_bot_reset(self, bot, _body):
        bot.reset()
        return {"reset": True}

    def _post_bot_messages(self, bot, body):
        texts = dict.fromkeys(("text", "first_name", "language_code", "title", "type"), str)
        _only(body, chat_id=int, user_id=int, count=int, **texts)
        if "chat_id" not in body or not body.get("text"):
            raise ValueError("a message needs chat_id and text")
        if not 1 <= body.get("count", 1) <= MOST_INJECTED:
            raise ValueError(f"count must be a number from 1 to {MOST_INJECTED}")
        return bot.inject(**body)

    def _post_bot_updates(self, bot, body):
        updates = body.get("updates", [body])
        if not isinstance(updates, list) or not all(isinstance(update, dict) for update in updates):
            raise ValueError("updates must be a list of objects")
        return bot.add_updates(updates)

    def _get_bot_faults(self, bot, _body):
        return bot.faults.current()

    def _post_bot_faults(self, bot, body):
        bot.faults.set(body)
        return bot.faults.current()

    @staticmethod
    def _list(bot, name, query):
        wanted = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        try:
            since = int(wanted.pop("since", 0))
        except ValueError:
            raise ValueError("since must be a whole number") from None
        with bot.lock:
            return getattr(bot, name).list(since, wanted)


def _only(body, **kinds):
    """:raises ValueError: when the body has other fields than these, or of other types"""
    for name, value in body.items():
        if name not in kinds:
            raise ValueError(f"unknown field {name!r}")
        # To Python a bool is a number, too.
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool):
            raise ValueError(f"{name} must be of type {kinds[name].__name__}")


def main(arguments=None):
    usual = Settings()
    parser = argparse.ArgumentParser(description="A stand-in for Telegram's Bot API server, for tests.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8081, help="port of the Bot API and of the control paths; 0: any")
    parser.add_argument("--bot", action="append", default=[], metavar="TOKEN", help="a bot's token; may be repeated")
    parser.add_argument(
        "--retry-base",
        type=float,
        default=usual.retry_base,
        metavar="SECONDS",
        help="pause before the second delivery to a webhook; it doubles each time (%(default)s)",
    )
    parser.add_argument("--retry-longest", type=float, default=usual.retry_longest, metavar="SECONDS", help="longest such pause (%(default)s)")
    parser.add_argument(
        "--webhook-timeout", type=float, default=usual.webhook_timeout, metavar="SECONDS", help="how long a webhook may take to answer (%(default)s)"
    )
    parser.add_argument(
        "--conflict-pause", type=float, default=usual.conflict_pause, metavar="SECONDS", help="how much later a 409 comes that follows another (%(default)s)"
    )
    parser.add_argument("--insecure", action="store_true", help="accept any certificate of a webhook")
    options = vars(parser.parse_args(arguments))
    host, port, tokens = options.pop("host"), options.pop("port"), options.pop("bot")
    try:
        double = TelegramDouble(host, port, tokens, Settings(**options))
    except ValueError as error:
        parser.error(str(error))
    print(f"Telegram stand-in listens on {double.host}:{double.port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
