# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bot as Telegram holds it: its updates, chats and webhook, what it was asked, and its faults."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse

from telegram.parts import ApiError, Faults, Log, bad_request, decoded, entities, flag, integer, plain
from telegram.webhook import Delivery, Update, Webhook

#: How many chats and messages of a bot can be found.
MOST_CHATS = 10_000
MOST_MESSAGES = 20_000
#: How many updates may wait, and for how many seconds.
MOST_PENDING = 100_000
UPDATE_LIFETIME = 24 * 3600

LONGEST_TEXT = 4096
LONGEST_POLL = 50
#: Kinds of updates that a bot gets only if it asks for them.
UNASKED = ("chat_member", "message_reaction", "message_reaction_count")
#: Ids count on from this moment's number, so that they rise even over a restart: gateways remember ids. Unix time.
FIRST_DAY = 1_767_225_600


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all bots share; times in seconds."""

    retry_base: float = 0.5
    retry_longest: float = 30.0
    webhook_timeout: float = 60.0
    conflict_pause: float = 3.0
    insecure: bool = False


class Poll:
    """A getUpdates call that waits: ``reader`` becomes readable when there are updates, or ``conflict`` is set."""

    def __init__(self):
        self.reader, self._writer = socket.socketpair()
        self.conflict = None
        self._woken = False

    def wake(self):
        if not self._woken:
            self._writer.send(b"\0")
            self._woken = True

    def close(self):
        self.reader.close()
        self._writer.close()


def _recorded(params):
    """Parameters fit to be kept: of files the size, of the webhook's secret enough to tell it from another."""
    kept = {name: f"({len(value)} bytes)" if isinstance(value, bytes) else value for name, value in params.items()}
    if secret := params.get("secret_token"):
        kept["secret_token"] = f"sha256:{hashlib.sha256(str(secret).encode()).hexdigest()[:12]}"
    return kept


class Bot:
    """A bot as Telegram holds it. Thread-safe.

    :raises ValueError: when the token is not of the form NUMBER:SECRET
    """

    def __init__(self, token, settings=Settings(), first_name="Double", username=None):
        if not re.fullmatch(r"[1-9]\d{0,15}:[\w-]+", token, re.ASCII):
            raise ValueError("a bot's token is NUMBER:SECRET, the secret of A-Z a-z 0-9 _ -")
        self.id = int(token.split(":")[0])
        self.settings = settings
        self.user = {"id": self.id, "is_bot": True, "first_name": first_name, "username": username or f"double{self.id}_bot"}
        self.lock = threading.RLock()
        self.faults = Faults()
        self.calls, self.replies, self.deliveries, self.polls = Log(), Log(), Log(), Log()
        self.conflicts = 0
        self.confirmed_offset = 0
        self.last_error = {}  # of getWebhookInfo
        first = int((time.time() - FIRST_DAY) * 10)
        self._update_ids = itertools.count(first)
        self._message_ids = itertools.count(first)
        self._pending = collections.OrderedDict()  # update id -> Update
        self._chats = collections.OrderedDict()
        self._messages = collections.OrderedDict()  # (chat id, message id) -> message
        self._callbacks = collections.deque(maxlen=MOST_MESSAGES)
        self._commands = {}
        self._allowed = ()
        self._poll = None
        self._next_conflict = 0.0
        self._webhook = None
        self._delivery = None

    # -- for tests

    def inject(self, chat_id, text, user_id=None, count=1, **about):
        """``count`` messages of a user, in each "{n}" replaced by its number from 1; returns update and message ids.

        ``about`` may have ``first_name``, ``language_code``, and of a group ``title`` and ``type``.
        """
        sender = {
            "id": abs(chat_id) if user_id is None else user_id,
            "is_bot": False,
            "first_name": about.get("first_name", "Ada"),
            "language_code": about.get("language_code", "en"),
        }
        if chat_id > 0:
            chat = {"id": chat_id, "type": "private", "first_name": sender["first_name"]}
        else:
            usual = "supergroup" if str(chat_id).startswith("-100") else "group"
            chat = {"id": chat_id, "type": about.get("type", usual), "title": about.get("title", "Group")}
        messages = []
        for number in range(1, count + 1):
            words = text.replace("{n}", str(number))
            message = {"from": sender, "chat": chat, "text": words}
            if found := entities(words):
                message["entities"] = found
            messages.append({"message": message})
        return self.add_updates(messages)

    def add_updates(self, updates):
        """Queue updates; ``update_id``, and of messages ``message_id`` and ``date``, are filled in.

        Returns {"update_ids", "message_ids"}; an update of a kind that the bot does not want gets no id.

        :raises ValueError: when an update has not exactly one kind, or too many would wait
        """
        kinds = [[name for name in update if name != "update_id"] for update in updates]
        if not all(len(kind) == 1 and isinstance(update[kind[0]], dict) for kind, update in zip(kinds, updates)):
            raise ValueError("an update is an object with one field that is an object")
        update_ids, message_ids = [], []
        with self.lock:
            if len(self._pending) + len(updates) > MOST_PENDING:
                raise ValueError(f"more than {MOST_PENDING} updates would wait")
            for (kind,), update in zip(kinds, updates):
                content, lane = self._completed(kind, dict(update[kind]))
                if "message_id" in content:
                    message_ids.append(content["message_id"])
                if kind not in (self._allowed or {kind} - set(UNASKED)):
                    continue
                body = {"update_id": next(self._update_ids), kind: content}
                update_ids.append(body["update_id"])
                queued = Update(body, lane, time.monotonic() + UPDATE_LIFETIME)
                self._pending[queued.id] = queued
                if self._delivery:
                    self._delivery.add(queued)
            if update_ids and self._poll:
                self._poll.wake()
        return {"update_ids": update_ids, "message_ids": message_ids}

    def _completed(self, kind, content):
        """The content of an update with what it lacks, and the lane it is delivered in: its chat, else its user."""
        message = content.get("message") if kind == "callback_query" else content
        chat = (message or {}).get("chat")
        if kind == "callback_query":
            content.setdefault("id", str(next(self._message_ids)))
            self._callbacks.append(str(content["id"]))
        if not isinstance(chat, dict) or not isinstance(chat.get("id"), int):
            return content, str((content.get("from") or {}).get("id"))
        self._remember(self._chats, chat["id"], chat, MOST_CHATS)
        if kind.endswith(("message", "channel_post")):
            defaults = {"date": int(time.time())}
            if "message_id" not in content:
                defaults["message_id"] = next(self._message_ids)
            content = {**defaults, **content}
            self._remember(self._messages, (chat["id"], content["message_id"]), content, MOST_MESSAGES)
        return content, str(chat["id"])

    @staticmethod
    def _remember(kept, key, value, most):
        kept[key] = value
        kept.move_to_end(key)
        while len(kept) > most:
            kept.popitem(last=False)

    def summary(self):
        with self.lock:
            webhook = self._webhook
            return {
                "id": self.id,
                "username": self.user["username"],
                "mode": "webhook" if webhook else "polling",
                "webhook": self.webhook_info({}),
                "has_secret_token": bool(webhook and webhook.secret_token),
                "pending": list(itertools.islice(self._pending, 1000)),
                "polling_now": self._poll is not None,
                "confirmed_offset": self.confirmed_offset,
                "conflicts": self.conflicts,
                "faults": self.faults.current(),
                "counts": {name: getattr(self, name).count for name in ("calls", "replies", "deliveries", "polls")},
            }

    def reset(self):
        """Forget records, faults and waiting updates; webhook, commands, chats stay, and ids go on rising."""
        with self.lock:
            self.faults.clear()
            self._drop_pending()
            self.conflicts = 0
            self.last_error = {}
            for log in (self.calls, self.replies, self.deliveries, self.polls):
                log.clear()

    def stop(self):
        with self.lock:
            self._replace_webhook(None)

    # -- calls

    def begin(self, method, params, peer, via="api"):
        """Record a call that has arrived; getUpdates has a list of its own."""
        log = self.polls if method.lower() == "getupdates" else self.calls
        with self.lock:
            return log.add(method=method, params=_recorded(params), peer=peer, via=via, status=None, seconds=None, error=None)

    def finish(self, record, status, error=None, **more):
        """Record how a call ended: the HTTP status, None if there was no answer."""
        with self.lock:
            seconds = round(time.monotonic() - record["monotonic"], 6)
            record.update(status=status, seconds=seconds, error=error, **more)
            if status == 409:
                self.conflicts += 1

    def call(self, method, params, peer, via="api"):
        """Execute any method but getUpdates; returns the fields of a good answer.

        :raises ApiError: as Telegram would answer
        """
        function = METHODS.get(method.lower())
        with self.lock:
            if not function:
                return {"result": True}
            result = function(self, params)
            if function is Bot.send_message:
                self.replies.add(
                    chat_id=result["chat"]["id"],
                    message_id=result["message_id"],
                    text=str(params["text"]),
                    parse_mode=params.get("parse_mode"),
                    reply_parameters=_reply_parameters(params),
                    peer=peer,
                    via=via,
                )
        # A few methods say something beside the result.
        return {"result": True, "description": result} if isinstance(result, str) else {"result": result}

    def called_back(self, params, url):
        """Execute the method call in a webhook's answer; nobody is told how it went."""
        method = params.pop("method")
        record = self.begin(method, params, url, "webhook")
        try:
            if method.lower() in ("getupdates", "setwebhook", "deletewebhook"):
                raise bad_request("the method can't be called in an answer")
            self.call(method, params, url, "webhook")
            self.finish(record, 200)
        except ApiError as error:
            self.finish(record, error.code, error.description)

    # -- updates

    def get_updates(self, params, wait):
        """The updates from ``offset`` on; confirms the earlier ones.

        ``wait(socket, seconds)`` returns when the socket is readable or the time is up.

        :raises ApiError: 409
        """
        offset, limit = integer(params, "offset"), integer(params, "limit", 100, 1, 100)
        timeout = integer(params, "timeout", 0, 0, LONGEST_POLL)
        with self.lock:
            if self._webhook:
                raise self._conflict("can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first")
            self._allow(params)
            self._end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
            updates = self._updates(offset, limit)
            if updates or not timeout:
                return updates
            poll = self._poll = Poll()
        try:
            wait(poll.reader, timeout)
        finally:
            with self.lock:
                poll.close()
                if self._poll is poll:
                    self._poll = None
        with self.lock:
            if poll.conflict:
                raise self._conflict(poll.conflict)
            return self._updates(offset, limit)

    def _updates(self, offset, limit):
        self._expire()
        if offset < 0:  # counted from the end of the queue
            offset = next(iter(list(self._pending)[offset:]), 0)
        while self._pending and next(iter(self._pending)) < offset:
            self._pending.popitem(last=False)
        self.confirmed_offset = max(self.confirmed_offset, offset)
        return [update.body for update in itertools.islice(self._pending.values(), limit)]

    def _end_poll(self, conflict):
        if self._poll:
            self._poll.conflict = conflict
            self._poll.wake()
            self._poll = None

    def _conflict(self, text):
        """A 409; after the first one each comes late, so that two pollers do not chase each other."""
        now = time.monotonic()
        pause = self.settings.conflict_pause if now < self._next_conflict else 0.0
        if not pause:
            self._next_conflict = now + self.settings.conflict_pause
        return ApiError(409, f"Conflict: {text}", pause)

    def _expire(self):
        now = time.monotonic()
        while self._pending and next(iter(self._pending.values())).expires <= now:
            self._pending.popitem(last=False)

    def _allow(self, params):
        kinds = decoded(params, "allowed_updates", list)
        if kinds is not None:
            self._allowed = tuple(str(kind) for kind in kinds)

    def waits(self, update):
        """Whether an update is still to be delivered."""
        with self.lock:
            self._expire()
            return update.id in self._pending

    def confirm(self, update):
        with self.lock:
            self._pending.pop(update.id, None)

    # -- webhook

    def set_webhook(self, params):
        url = str(params.get("url") or "")
        if not url:
            return self.delete_webhook(params)
        try:
            parts = urllib.parse.urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise bad_request("invalid webhook URL specified")
        secret = str(params.get("secret_token") or "")
        if len(secret) > 256:
            raise bad_request("secret token is too long")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            raise bad_request("secret token contains unallowed characters")
        certificate = params.get("certificate")
        certificate = certificate.decode("ascii", "replace") if isinstance(certificate, bytes) else None
        webhook = Webhook(url, secret, integer(params, "max_connections", 40, 1, 100), certificate)
        context = self._tls(webhook)
        self._allow(params)
        if flag(params, "drop_pending_updates"):
            self._drop_pending()
        if webhook == self._webhook:
            return "Webhook is already set"
        self._end_poll("terminated by setWebhook request")
        self._replace_webhook(webhook, context)
        return "Webhook was set"

    def _tls(self, webhook):
        if not webhook.url.startswith("https"):
            return None
        try:
            context = ssl.create_default_context(cadata=webhook.certificate)
        except ssl.SSLError:
            raise bad_request("bad webhook: the certificate can't be read") from None
        if self.settings.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def delete_webhook(self, params):
        if flag(params, "drop_pending_updates"):
            self._drop_pending()
        if not self._webhook:
            return "Webhook is already deleted"
        self._replace_webhook(None)
        return "Webhook was deleted"

    def _replace_webhook(self, webhook, context=None):
        if self._delivery:
            self._delivery.stop()
        self._webhook = webhook
        self.last_error = {}
        # What is on its way to the old address goes to the new one as well, as with Telegram.
        self._delivery = Delivery(self, webhook, context, self._pending.values()) if webhook else None

    def _drop_pending(self):
        self._pending.clear()
        if self._delivery:  # a new one does not wait for a pause after a failure
            self._delivery.stop()
            self._delivery = Delivery(self, self._webhook, self._delivery.context, ())

    def webhook_info(self, _params):
        self._expire()
        webhook = self._webhook
        info = {
            "url": webhook.url if webhook else "",
            "has_custom_certificate": bool(webhook and webhook.certificate),
            "pending_update_count": len(self._pending),
        }
        if webhook:
            info["max_connections"] = webhook.max_connections
        info |= self.last_error
        if self._allowed:
            info["allowed_updates"] = list(self._allowed)
        return info

    # -- messages

    def _chat(self, params):
        if params.get("chat_id") in (None, ""):
            raise bad_request("chat_id is empty")
        chat = self._chats.get(integer(params, "chat_id"))
        if not chat:
            raise bad_request("chat not found")
        return chat

    def _text(self, params):
        text = plain(str(params.get("text") or ""), params.get("parse_mode"))
        if not text.strip():
            raise bad_request("message text is empty")
        if len(text) > LONGEST_TEXT:
            raise bad_request("message is too long")
        return text

    def _message(self, chat, message_id, purpose):
        message = self._messages.get((chat["id"], message_id))
        if not message:
            raise bad_request(f"message to {purpose} not found")
        return message

    def send_message(self, params):
        chat, text = self._chat(params), self._text(params)
        message = {"message_id": 0, "from": self.user, "chat": chat, "date": int(time.time()), "text": text}
        if thread := integer(params, "message_thread_id"):
            message["message_thread_id"] = thread
        reply = _reply_parameters(params)
        if reply:
            try:
                original = self._message(chat, integer(reply, "message_id"), "be replied")
                message["reply_to_message"] = {k: v for k, v in original.items() if k != "reply_to_message"}
            except ApiError:
                if not flag(reply, "allow_sending_without_reply"):
                    raise
        message["message_id"] = next(self._message_ids)
        self._remember(self._messages, (chat["id"], message["message_id"]), message, MOST_MESSAGES)
        return message

    def edit_message_text(self, params):
        if params.get("inline_message_id"):
            return True
        chat, text = self._chat(params), self._text(params)
        message = self._message(chat, integer(params, "message_id"), "edit")
        if message.get("from") != self.user:
            raise bad_request("message can't be edited")
        if message["text"] == text:
            raise bad_request(
                "message is not modified: specified new message content and reply markup are exactly the same as a "
                "current content and reply markup of the message"
            )
        edited = {**message, "text": text, "edit_date": int(time.time())}
        self._messages[chat["id"], message["message_id"]] = edited
        return edited

    def delete_message(self, params):
        chat = self._chat(params)
        message = self._message(chat, integer(params, "message_id"), "delete")
        del self._messages[chat["id"], message["message_id"]]
        return True

    def set_message_reaction(self, params):
        self._message(self._chat(params), integer(params, "message_id"), "react")
        decoded(params, "reaction", list)
        return True

    def send_chat_action(self, params):
        self._chat(params)
        if not params.get("action"):
            raise bad_request("wrong parameter action in request")
        return True

    def answer_callback_query(self, params):
        if str(params.get("callback_query_id")) not in self._callbacks:
            raise bad_request("query is too old and response timeout expired or query ID is invalid")
        return True

    # -- the rest

    def get_me(self, _params):
        return {
            **self.user,
            "can_join_groups": True,
            "can_read_all_group_messages": True,
            "supports_inline_queries": False,
            "can_connect_to_business": False,
            "has_main_web_app": False,
        }

    def get_chat(self, params):
        return {**self._chat(params), "accent_color_id": 0, "max_reaction_count": 11}

    def get_file(self, _params):
        raise bad_request("wrong file_id or the file is temporarily unavailable")

    @staticmethod
    def _commands_key(params):
        scope = decoded(params, "scope", dict) or {"type": "default"}
        return json.dumps(scope, sort_keys=True), str(params.get("language_code") or "")

    def set_my_commands(self, params):
        commands = decoded(params, "commands", list) or []
        if len(commands) > 100:
            raise bad_request("BOT_COMMANDS_TOO_MUCH")
        kept = []
        for command in commands:
            if not isinstance(command, dict):
                raise bad_request("can't parse BotCommand: Expected an Object")
            name, about = (str(command.get(field) or "") for field in ("command", "description"))
            if not re.fullmatch(r"/?[a-z0-9_]{1,32}", name):
                raise bad_request("BOT_COMMAND_INVALID")
            if not 1 <= len(about) <= 256:
                raise bad_request("BOT_COMMAND_DESCRIPTION_INVALID")
            kept.append({"command": name.lstrip("/"), "description": about})
        self._commands[self._commands_key(params)] = kept
        return True

    def delete_my_commands(self, params):
        self._commands.pop(self._commands_key(params), None)
        return True

    def get_my_commands(self, params):
        return self._commands.get(self._commands_key(params), [])


def _reply_parameters(params):
    """The message that is replied to, also from the older parameters; None if there is none."""
    reply = decoded(params, "reply_parameters", dict)
    if reply is None and integer(params, "reply_to_message_id"):
        reply = {"message_id": integer(params, "reply_to_message_id")}
        if flag(params, "allow_sending_without_reply"):
            reply["allow_sending_without_reply"] = True
    return reply


#: Names are looked up in lower case, as Telegram does.
METHODS = {
    "getme": Bot.get_me,
    "setwebhook": Bot.set_webhook,
    "deletewebhook": Bot.delete_webhook,
    "getwebhookinfo": Bot.webhook_info,
    "sendmessage": Bot.send_message,
    "editmessagetext": Bot.edit_message_text,
    "deletemessage": Bot.delete_message,
    "setmessagereaction": Bot.set_message_reaction,
    "sendchataction": Bot.send_chat_action,
    "answercallbackquery": Bot.answer_callback_query,
    "setmycommands": Bot.set_my_commands,
    "deletemycommands": Bot.delete_my_commands,
    "getmycommands": Bot.get_my_commands,
    "getchat": Bot.get_chat,
    "getfile": Bot.get_file,
}
