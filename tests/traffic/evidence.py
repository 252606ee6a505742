# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One request as its client saw it, one JSON object a line. Times are seconds of one monotonic clock."""

from __future__ import annotations

import dataclasses
import json

GET, MESSAGE, STREAM = KINDS = ("get", "message", "stream")
#: ``cut``: a stream that began and did not end with [DONE]. ``unsent``: the load's own bound was reached.
OK, FAILED, CUT, UNSENT = "ok", "failed", "cut", "unsent"


@dataclasses.dataclass(frozen=True)
class Request:
    """``due``: when it was to be sent, which is where its time begins. ``first``: seconds to the first byte of the answer.

    ``said``: what the health route said of its replica. ``tried`` and ``repeated`` come from the balancers' logs: the replicas that
    are named there, and whether a balancer sent it more than once.
    """

    kind: str
    id: str
    due: float
    began: float
    ended: float
    outcome: str
    error: str = ""
    status: int | None = None
    replica: str | None = None
    first: float | None = None
    chunks: int = 0
    said: str = ""
    tried: tuple[str, ...] = ()
    repeated: bool = False

    @property
    def seconds(self):
        return self.ended - self.due

    def line(self):
        return json.dumps(dataclasses.asdict(self)) + "\n"


def of_operation(operation, due=None):
    """A message of the history checker's load, sent once, as a request."""
    attempt = operation.attempts[0]
    return Request(
        kind=MESSAGE,
        id=operation.key,
        due=attempt.invoked if due is None else due,
        began=attempt.invoked,
        ended=attempt.returned,
        outcome=OK if attempt.outcome == "ok" else FAILED,
        error=attempt.error,
        status=attempt.status,
        replica=attempt.replica,
    )


def write(path, requests):
    path.write_text("".join(request.line() for request in requests))


def read(path):
    records = map(json.loads, path.read_text().splitlines())
    return tuple(Request(**record | {"tried": tuple(record["tried"])}) for record in records)
