# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The evidence of one run as plain data: what clients wrote and were told, and what Redis holds at the end."""

from __future__ import annotations

import dataclasses
import json

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"


@dataclasses.dataclass(frozen=True)
class Write:
    """One token appended to the run's list, sent exactly once.

    ``invoked``/``returned``: seconds of one monotonic clock; ``outcome``: ``ok`` (acknowledged: enough replicas confirmed
    it), ``refused`` (the server answered with an error: it did nothing), ``unknown`` (no answer, or too few confirmed);
    ``via``: address:port that it was sent to; ``pinned``: the client never looks for another primary.
    """

    token: str
    invoked: float
    returned: float
    outcome: str
    via: str
    error: str = ""
    pinned: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """``began``/``ended``: the load; ``fault_began``/``fault_ended``: from breaking to the end of the repair; ``stored``: the list."""

    writes: tuple[Write, ...]
    stored: tuple[str, ...]
    began: float
    ended: float
    fault_began: float
    fault_ended: float

    def save(self, path):
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, path):
        found = json.loads(path.read_text())
        return cls(tuple(Write(**one) for one in found.pop("writes")), tuple(found.pop("stored")), **found)
