# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is particular to a provider: how it signs its webhooks, and how an event is told from another. Pure but for the secrets' bytes."""

from __future__ import annotations

import abc
import hashlib
import hmac
import json
import urllib.parse
from dataclasses import dataclass

#: The key under which the gateways' plugin claims a message (lib/keys.js, ``dedupe``). Each field is percent-encoded as encodeURIComponent does.
CLAIM = "dedupe:{channel}:{account}:{conversation}:{message}"
#: Seconds by which the time of a Slack signature may be off; what Slack recommends, and its library does.
SLACK_WINDOW = 300


class Malformed(ValueError):
    """A request that is no event; the text says why, without any of its content."""


@dataclass(frozen=True)
class Event:
    """One webhook, as told from others.

    id: unique in its account; conversation: events of one are delivered in order; group: events that belong together, "" when it stands
    alone; claim: Redis key (without the common prefix) of the plugin's claim of its message, "" when it has none
    """

    id: str
    conversation: str
    group: str = ""
    claim: str = ""


@dataclass(frozen=True)
class Reply:
    """An answer to give at once, as JSON: the request is no event."""

    body: dict


class Channel(abc.ABC):
    """One account of a provider. A subclass gives :meth:`verify`, :meth:`read` and :meth:`credentials`; ``headers`` are case-insensitive."""

    #: Headers that prove who sent it. They are not stored: :meth:`credentials` makes them again.
    proofs = ()

    def __init__(self, account, secrets):
        self.account, self.secrets = account, secrets

    @abc.abstractmethod
    def verify(self, headers, body, now):
        """Did somebody send this who has one of the secrets? ``now``: seconds since 1970."""

    @abc.abstractmethod
    def read(self, headers, body):
        """The :class:`Event`, or a :class:`Reply`.

        :raises Malformed: when it is neither
        """

    @abc.abstractmethod
    def credentials(self, body, now):
        """Headers that let a gateway take the body, made with the first secret: what the provider sent may be of another secret, or too old."""

    def claim(self, **fields):
        """The claim's key, "" without a message."""
        if not fields.get("message"):
            return ""
        known = {"channel": self.account["channel"], "account": self.account["account"], "conversation": "", "thread": "", "sender": ""} | fields
        encoded = {name: urllib.parse.quote(str(value), safe="!~*'()") for name, value in known.items()}
        return (self.account.get("claim") or CLAIM).format(**encoded)


class SharedSecret(Channel):
    """A header equals a secret; the configuration says where the rest stands."""

    def __init__(self, account, secrets):
        super().__init__(account, secrets)
        self.header = account["header"]
        self.proofs = (self.header,)

    def verify(self, headers, body, now):
        return _equals_one(headers.get(self.header, ""), self.secrets)

    def read(self, headers, body):
        document = _json(body)
        found = {name: _field(self.account.get(name, ""), headers, document) for name in ("event", "conversation", "group", "message")}
        if not found["event"]:
            raise Malformed(f"it has no {self.account['event']}")
        claim = self.claim(conversation=found["conversation"], message=found["message"])
        return Event(found["event"], found["conversation"] or "-", found["group"], claim)

    def credentials(self, body, now):
        return {self.header: self.secrets[0].decode()}


class Telegram(Channel):
    """Updates of the Bot API."""

    HEADER = "X-Telegram-Bot-Api-Secret-Token"
    proofs = (HEADER,)

    def verify(self, headers, body, now):
        return _equals_one(headers.get(self.HEADER, ""), self.secrets)

    def read(self, headers, body):
        update = _json(body)
        if not isinstance(update, dict) or not isinstance(update.get("update_id"), int):
            raise Malformed("it has no update_id")
        kind, content = next(((kind, one) for kind, one in update.items() if isinstance(one, dict)), ("", {}))
        chat = str(_at(content, "chat", "id") or _at(content, "message", "chat", "id") or _at(content, "from", "id") or _at(content, "user", "id") or "-")
        group = content.get("media_group_id")
        claim = ""
        # Only these begin a turn under their own message's id: an edit has the one of what it edits, a button the one of what it hangs on.
        if kind in ("message", "channel_post"):
            thread, sender = content.get("message_thread_id", ""), _at(content, "from", "id") or ""
            claim = self.claim(conversation=chat, message=content.get("message_id"), thread=thread, sender=sender)
        return Event(str(update["update_id"]), chat, f"{chat}/{group}" if group else "", claim)

    def credentials(self, body, now):
        return {self.HEADER: self.secrets[0].decode()}


class Slack(Channel):
    """Events, interactions and slash commands of a Slack app."""

    SIGNATURE, TIMESTAMP = "X-Slack-Signature", "X-Slack-Request-Timestamp"
    proofs = (SIGNATURE, TIMESTAMP)

    def verify(self, headers, body, now):
        stamp = headers.get(self.TIMESTAMP, "")
        if not (stamp.isascii() and stamp.isdecimal() and len(stamp) < 16 and abs(now - int(stamp)) <= SLACK_WINDOW):
            return False
        return _equals_one(headers.get(self.SIGNATURE, ""), [self._sign(one, stamp, body) for one in self.secrets])

    def read(self, headers, body):
        if headers.get("Content-Type", "").partition(";")[0].strip() == "application/x-www-form-urlencoded":
            return self._form(body)
        document = _json(body)
        if not isinstance(document, dict):
            raise Malformed("it is no object")
        if document.get("type") == "url_verification":
            return Reply({"challenge": str(document.get("challenge", ""))})
        event = document.get("event")
        if not document.get("event_id") or not isinstance(event, dict):
            raise Malformed("it has no event_id or no event")
        place = event.get("channel")
        channel = str(place.get("id", "") if isinstance(place, dict) else place or event.get("user") or "")
        claim = ""
        if event.get("type") in ("message", "app_mention") and not event.get("subtype"):
            claim = self.claim(conversation=channel, message=event.get("ts"), thread=event.get("thread_ts", ""), sender=event.get("user", ""))
        return Event(str(document["event_id"]), f"{document.get('team_id', '')}/{channel}", "", claim)

    def _form(self, body):
        try:
            form = dict(urllib.parse.parse_qsl(body.decode(), strict_parsing=True, max_num_fields=100))
        except (ValueError, UnicodeDecodeError):
            raise Malformed("it is no form") from None
        if not form:
            raise Malformed("it is no form")
        payload = _json(form["payload"].encode()) if "payload" in form else form
        if not isinstance(payload, dict):
            raise Malformed("its payload is no object")
        channel = payload.get("channel_id") or _at(payload, "channel", "id") or payload.get("user_id") or _at(payload, "user", "id") or ""
        event = payload.get("trigger_id") or hashlib.sha256(body).hexdigest()
        return Event(str(event), f"{payload.get('team_id') or _at(payload, 'team', 'id') or ''}/{channel}")

    def credentials(self, body, now):
        stamp = str(int(now))
        return {self.TIMESTAMP: stamp, self.SIGNATURE: self._sign(self.secrets[0], stamp, body).decode()}

    @staticmethod
    def _sign(secret, stamp, body):
        return b"v0=" + hmac.new(secret, b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest().encode()


TYPES = {"telegram": Telegram, "slack": Slack, "shared_secret": SharedSecret}


def make(account, secrets):
    """The :class:`Channel` of an account of the configuration; ``secrets``: bytes, the first one is the gateways'."""
    return TYPES[account["type"]](account, secrets)


def _equals_one(given, secrets):
    """In a time that depends on neither: all are compared, always."""
    return sum(hmac.compare_digest(given.encode("utf-8", "surrogateescape"), one) for one in secrets) > 0


def _json(body):
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("it is no JSON") from None


def _at(document, *names):
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _field(where, headers, document):
    """A text at ``header:NAME`` or ``body:KEY.KEY``, "" when there is none."""
    kind, _colon, path = where.partition(":")
    found = headers.get(path) if kind == "header" else _at(document, *path.split(".")) if kind == "body" else None
    return str(found) if isinstance(found, (str, int, float)) and not isinstance(found, bool) else ""
