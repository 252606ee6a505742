# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients did, what Redis holds, what the model was shown: a run's evidence as data that goes to disk and back.

Every turn of a run carries a token, ``turn-<run>-<conversation>-<client>-<number>``, which is its idempotency key as
well. A token is looked for in any text, so evidence from different places is joined without trusting any of them. Times
are seconds of one monotonic clock of the machine that ran the clients.
"""

from __future__ import annotations

import dataclasses
import json
import re

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"
TOKEN = re.compile(r"turn-[0-9a-f]{6}-\d+-\d+-\d+")


def tokens(text):
    """The tokens in a text, in order; one that stands there twice is listed twice."""
    return tuple(TOKEN.findall(text))


def folded(text):
    """A text as far as it counts: the gateway trims and folds white space."""
    return " ".join(text.split())


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One HTTP request. ``error`` is a short kind such as ``503 turn_not_started``, "" when it was answered."""

    invoked: float
    returned: float
    via: str
    outcome: str
    status: int | None = None
    error: str = ""
    reply: str | None = None
    replica: str | None = None


@dataclasses.dataclass(frozen=True)
class Operation:
    """One turn as its client lived it: all requests with its key, repeated until it was answered or given up."""

    conversation: str
    client: int
    number: int
    key: str
    message: str
    attempts: tuple[Attempt, ...]

    @property
    def token(self):
        return tokens(self.message)[0]

    @property
    def invoked(self):
        return self.attempts[0].invoked

    @property
    def answers(self):
        """The answered attempts, first answer first."""
        return sorted((one for one in self.attempts if one.outcome == OK), key=lambda one: one.returned)

    @property
    def outcome(self):
        """``ok`` once answered; ``refused`` only when every request was: an unknown one may have had its effect."""
        outcomes = {one.outcome for one in self.attempts}
        return OK if OK in outcomes else UNKNOWN if UNKNOWN in outcomes else REFUSED

    @property
    def returned(self):
        """When the client knew that its turn was taken; None: never."""
        return self.answers[0].returned if self.outcome == OK else None

    @property
    def stall(self):
        """Seconds from the first request to the answer, or to giving up."""
        return (self.returned or max(one.returned for one in self.attempts)) - self.invoked


@dataclasses.dataclass(frozen=True)
class StoredTurn:
    """One element of a conversation's list in Redis. ``reply``: its last answer; None when it has none."""

    tokens: tuple[str, ...]
    text: str = ""
    id: str = ""
    replica: str | None = None
    late: bool = False
    reply: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """One request that a model double received: the tokens in its user messages, oldest first, and its answer."""

    tokens: tuple[str, ...]
    reply: str
    outcome: str = "answered"
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Get:
    """One steady GET beside the turns."""

    invoked: float
    returned: float
    status: int | None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Window:
    """When a fault was there."""

    name: str
    began: float
    ended: float


@dataclasses.dataclass(frozen=True)
class History:
    """The whole evidence of one run. ``stored``: conversation -> its turns, oldest first."""

    operations: tuple[Operation, ...]
    stored: dict[str, tuple[StoredTurn, ...]]
    calls: tuple[ModelCall, ...]
    gets: tuple[Get, ...] = ()
    window: Window | None = None

    def save(self, path):
        """Write it as one JSON document, with what the Go checker would have to derive written out."""
        operations = [operation_record(one) for one in self.operations]
        path.write_text(json.dumps(dataclasses.asdict(self) | {"operations": operations}, indent=1))

    @classmethod
    def read(cls, path):
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, data):
        """The inverse of :meth:`save`, from decoded JSON."""
        return cls(
            tuple(operation(one) for one in data["operations"]),
            {name: tuple(_made(StoredTurn, one) for one in turns) for name, turns in data["stored"].items()},
            tuple(_made(ModelCall, one) for one in data["calls"]),
            tuple(Get(**one) for one in data["gets"]),
            Window(**data["window"]) if data["window"] else None,
        )


def operation_record(one):
    """An operation as one JSON object: its fields, and token, outcome, invoked and returned beside them."""
    derived = {name: getattr(one, name) for name in ("token", "outcome", "invoked", "returned")}
    return dataclasses.asdict(one) | derived


def operation(record):
    """The inverse of :func:`operation_record`."""
    fields = {field.name: record[field.name] for field in dataclasses.fields(Operation)}
    return Operation(**fields | {"attempts": tuple(Attempt(**attempt) for attempt in record["attempts"])})


def read_operations(path):
    """Operations from a file of JSON lines, as :class:`tests.history.load.Load` writes it."""
    return tuple(operation(json.loads(line)) for line in path.read_text().splitlines())


def _made(kind, record):
    return kind(**record | {"tokens": tuple(record["tokens"])})
