# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Did Redis keep what it acknowledged? Pure: a run's record goes in, what was broken comes out.

All clients append to one list, each token once. So the list must hold every acknowledged token exactly once, and a
token whose write began after another one was acknowledged must stand behind it.
"""

from __future__ import annotations

import collections

from .record import OK, REFUSED, UNKNOWN

KINDS = {
    "lost": "acknowledged, but not in Redis",
    "doubled": "in Redis more than once",
    "reordered": "begun after another write was acknowledged, but stands before it",
    "refused_but_stored": "answered with an error, but in Redis",
    "phantom": "in Redis, but never written",
}


def check(record):
    """Judge a run.

    :returns: dict with ``violations`` (kind -> tokens, every kind of KINDS), and figures: ``writes``, ``acknowledged``,
        ``refused``, ``unknown``, ``unknown_stored`` (unknown ones that survived: no violation, and no promise), ``errors``
        (text -> count), ``gap`` (see :func:`gap`), ``pinned`` (the same counts for clients that look for no other primary)
    """
    writes = {one.token: one for one in record.writes}
    times = collections.Counter(record.stored)
    acknowledged = [one for one in record.writes if one.outcome == OK]
    return {
        "violations": {
            "lost": [one.token for one in acknowledged if one.token not in times],
            "doubled": [token for token, count in times.items() if count > 1],
            "reordered": _reordered(record.stored, writes),
            "refused_but_stored": [one.token for one in record.writes if one.outcome == REFUSED and one.token in times],
            "phantom": [token for token in times if token not in writes],
        },
        **_counts(record.writes, times),
        "pinned": _counts([one for one in record.writes if one.pinned], times),
        "errors": dict(collections.Counter(one.error for one in record.writes if one.error).most_common()),
        "gap": gap(record),
        "fault_seconds": round(record.fault_ended - record.fault_began, 3),
    }


def gap(record):
    """The longest time, in seconds, in which no client that may look for the primary had a write acknowledged."""
    moments = sorted(one.returned for one in record.writes if one.outcome == OK and not one.pinned)
    moments = [record.began, *moments, record.ended]
    return round(max(later - earlier for earlier, later in zip(moments, moments[1:])), 3)


def _reordered(stored, writes):
    """Tokens that stand before one that was acknowledged before they were begun."""
    found, earliest = [], float("inf")
    for token in reversed(stored):
        one = writes.get(token)
        if one is None:
            continue
        if one.invoked > earliest:
            found.append(token)
        if one.outcome == OK:
            earliest = min(earliest, one.returned)
    return found[::-1]


def _counts(writes, times):
    outcomes = collections.Counter(one.outcome for one in writes)
    return {
        "writes": len(writes),
        "acknowledged": outcomes[OK],
        "refused": outcomes[REFUSED],
        "unknown": outcomes[UNKNOWN],
        "unknown_stored": sum(one.outcome == UNKNOWN and one.token in times for one in writes),
    }
