# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bots are made of: errors, parameters, the text of messages, records and faults."""

from __future__ import annotations

import collections
import html
import json
import re
import threading
import time

#: How much is kept of each list of records; bytes are those of the stored JSON.
MOST_RECORDS = 50_000
MOST_BYTES = 32 * 1024 * 1024
#: Commands and mentions, for the entities of a message.
ENTITY = re.compile(r"(?P<bot_command>(?<!\S)/[A-Za-z0-9_]{1,32}(?:@\w+)?)|(?P<mention>(?<!\w)@\w{5,32})")


class ApiError(Exception):
    """An error that the Bot API answers; ``pause`` is how many seconds later it does so."""

    def __init__(self, code, description, pause=0.0, **parameters):
        super().__init__(description)
        self.code = code
        self.description = description
        self.pause = pause
        self.parameters = parameters

    def body(self):
        more = {"parameters": self.parameters} if self.parameters else {}
        return {"ok": False, "error_code": self.code, "description": self.description, **more}


def bad_request(text):
    return ApiError(400, f"Bad Request: {text}")


# ---- parameters of methods: text in forms and queries, any type in JSON ---------------------------------------------


def integer(params, name, default=0, least=-(2**63), most=2**63):
    """A whole number, brought into the range; what is none counts as absent."""
    try:
        value = int(params.get(name, default))
    except (TypeError, ValueError):
        value = default
    return min(max(value, least), most)


def flag(params, name):
    return str(params.get(name, "")).lower() in ("true", "yes", "1")


def decoded(params, name, kind):
    """A list or an object, also from its JSON text; None when it is absent.

    :raises ApiError: when it is something else
    """
    value = params.get(name)
    if value is None or value == "":
        return None
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise bad_request(f"can't parse {name} JSON object")
    return value


def plain(text, parse_mode):
    """The text that a message shows; of the modes only HTML is known."""
    return html.unescape(re.sub(r"<[^>]*>", "", text)) if str(parse_mode).lower() == "html" else text


def entities(text):
    """The commands and mentions in a text, as Telegram marks them: offsets in UTF-16 units."""

    def units(part):
        return len(part.encode("utf-16-le")) // 2

    return [{"type": match.lastgroup, "offset": units(text[: match.start()]), "length": units(match[0])} for match in ENTITY.finditer(text)]


# ---- records and faults --------------------------------------------------------------------------------------------


class Log:
    """The latest records, bounded in number and bytes. Whoever uses it holds the bot's lock."""

    def __init__(self, most_records=MOST_RECORDS, most_bytes=MOST_BYTES):
        self._most = (most_records, most_bytes)
        self._records = collections.deque()
        self._bytes = 0
        self.count = 0

    def add(self, **fields):
        """Append a record and return it; it may still be changed."""
        self.count += 1
        record = {"id": self.count, "time": round(time.time(), 6), "monotonic": round(time.monotonic(), 6), **fields}
        size = len(json.dumps(record))
        self._records.append((size, record))
        self._bytes += size
        while len(self._records) > self._most[0] or (self._bytes > self._most[1] and len(self._records) > 1):
            self._bytes -= self._records.popleft()[0]
        return record

    def list(self, since=0, fields=()):
        """Copies of the records with an id above ``since`` whose fields, written as text, are those; oldest first."""
        return [
            dict(record)
            for _size, record in self._records
            if record["id"] > since and all(str(record.get(name)) == value for name, value in dict(fields).items())
        ]

    def clear(self):
        self._records.clear()
        self._bytes = 0


#: Each fault and the defaults of its fields; README.md explains them.
FAULTS = {
    "slow": {"seconds": 1.0, "times": None, "methods": None},
    "refuse": {"status": 503, "times": None, "seconds": None, "methods": None},
    "deliver_twice": {"copies": 2, "concurrently": False, "times": 1},
    "drop_replies": {"sent": True, "times": 1},
}
RANGES = {"times": (int, 1, 10**9), "copies": (int, 2, 100), "status": (int, 400, 599), "seconds": ((int, float), 0, 900)}


def _fault(name, fields):
    """The complete fields of a fault. :raises ValueError: with one sentence that names what is wrong"""
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; known are {', '.join(FAULTS)}")
    if not isinstance(fields, dict):
        raise ValueError(f"{name} must be an object or null")
    if unknown := sorted(set(fields) - set(FAULTS[name])):
        raise ValueError(f"{name} has no field {unknown[0]!r}")
    whole = {**FAULTS[name], **fields}
    for field, value in whole.items():
        default = FAULTS[name][field]
        if value is None and (default is None or field == "times"):
            continue  # no limit
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{field} of {name} must be true or false")
        if field in RANGES:
            kinds, least, most = RANGES[field]
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                raise ValueError(f"{field} of {name} must be a number from {least} to {most}")
    methods = whole.get("methods")
    if methods is not None and (not isinstance(methods, list) or not all(isinstance(item, str) for item in methods)):
        raise ValueError("methods must be a list of names")
    return whole


class Faults:
    """The faults of a bot. Thread-safe; one whose number of uses or whose time has run out is gone."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._faults = {}  # name -> [fields, uses left, when it ends]

    def set(self, wanted):
        """Set the faults in ``wanted``, {name: fields}; None in place of the fields ends one.

        :raises ValueError: with one sentence that names what is wrong; then nothing is changed
        """
        checked = {name: None if fields is None else _fault(name, fields) for name, fields in wanted.items()}
        with self._lock:
            for name, fields in checked.items():
                self._faults.pop(name, None)
                if fields:
                    lasts = fields["seconds"] if name == "refuse" else None
                    self._faults[name] = [fields, fields["times"], None if lasts is None else self._clock() + lasts]

    def take(self, name, method=""):
        """The fields of a fault that is to happen now, or None; counts it as used."""
        with self._lock:
            self._forget_ended()
            fields, left, _end = self._faults.get(name, (None, None, None))
            if fields is None or not _concerns(fields.get("methods"), method):
                return None
            if left is not None:
                self._faults[name][1] = left - 1
            return fields

    def current(self):
        """{name: fields}, ``times`` being what is left of it."""
        with self._lock:
            self._forget_ended()
            return {name: {**fields, "times": left} for name, (fields, left, _end) in self._faults.items()}

    def clear(self):
        with self._lock:
            self._faults.clear()

    def _forget_ended(self):
        now = self._clock()
        for name, (_fields, left, end) in list(self._faults.items()):
            if left == 0 or (end is not None and now >= end):
                del self._faults[name]


def _concerns(methods, method):
    return methods is None or method.lower() in (name.lower() for name in methods)
