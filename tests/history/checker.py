# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Did the cluster keep its promises? Pure: one run's evidence goes in, what was broken comes out.

A conversation is a list of turns, and a turn an atomic read-and-append: its answering model call was shown exactly the
turns that stand before it. Porcupine (:mod:`tests.history.crosscheck`) checks the same statement with a search that
knows none of the rules below.
"""

from __future__ import annotations

import collections
import dataclasses

from .history import OK, REFUSED, UNKNOWN, folded

#: kind -> what it means. All but ``unwitnessed`` break the model of an atomic read-and-append.
KINDS = {
    "lost": "acknowledged, but not in Redis",
    "doubled": "in Redis more than once",
    "reordered": "begun after another turn was acknowledged, but stands before it",
    "stale_view": "its model call did not show a turn acknowledged before it began, or standing before it in Redis",
    "dirty_view": "its model call showed something else than what stands before it in Redis",
    "two_answers": "one key, two different answers (two of the client's, or the client's and the one in Redis)",
    "phantom": "in Redis, but never sent in this conversation",
    "unwitnessed": "answered, but no model call is known that gave this answer",
}
ATOMICITY = frozenset(KINDS) - {"unwitnessed"}


@dataclasses.dataclass(frozen=True)
class Violation:
    kind: str
    conversation: str
    token: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found. ``apart``: tokens that broke no promise, but are worth knowing; ``totals``: its figures."""

    violations: tuple[Violation, ...]
    apart: dict[str, list[str]]
    totals: dict

    @property
    def counts(self):
        """How many violations of each kind."""
        found = collections.Counter(one.kind for one in self.violations)
        return {kind: found[kind] for kind in KINDS}

    @property
    def atomic(self):
        """Conversations are lists, turns atomic: what Porcupine judges too."""
        return not any(one.kind in ATOMICITY for one in self.violations)

    def record(self):
        """The report as JSON data."""
        return {
            "counts": self.counts,
            "apart": {kind: len(found) for kind, found in self.apart.items()},
            "totals": self.totals,
            "violations": [dataclasses.asdict(one) for one in self.violations],
            "apart_tokens": self.apart,
        }


def check(history):
    """Judge a run. :returns: Report"""
    sent = collections.defaultdict(list)
    for operation in history.operations:
        sent[operation.conversation].append(operation)
    calls = collections.defaultdict(list)
    for call in history.calls:
        if call.outcome == "answered" and call.tokens:
            calls[call.tokens[-1]].append(call)
    violations = []
    for name in sorted(sent.keys() | history.stored.keys()):
        found = _conversation(sent[name], history.stored.get(name, ()), calls)
        violations += [Violation(kind, name, token, detail) for kind, token, detail in found]
    return Report(tuple(violations), _apart(history), totals(history))


def view(operation, calls):
    """What the model call behind an operation's first answer showed before its token; None: no such call is known."""
    reply = folded(operation.answers[0].reply)
    matching = [call for call in calls.get(operation.token, ()) if folded(call.reply) == reply]
    return matching[-1].tokens[:-1] if matching else None


def _conversation(operations, turns, calls):
    """Violations in one conversation as (kind, token, detail)."""
    line = [token for turn in turns for token in turn.tokens]
    position = {token: index for index, token in reversed(list(enumerate(line)))}
    known = {operation.token for operation in operations}
    acknowledged = [operation for operation in operations if operation.outcome == OK]

    yield from (("phantom", "", f"no token: {turn.text[:80]!r}") for turn in turns if not turn.tokens)
    for token, times in collections.Counter(line).items():
        if token not in known:
            yield "phantom", token, "never sent in this conversation"
        if times > 1:
            yield "doubled", token, f"{times} times in Redis"
    for operation in acknowledged:
        if operation.token not in position:
            yield "lost", operation.token, f"acknowledged by {operation.answers[0].replica}"

    lost = {operation.token for operation in acknowledged} - position.keys()
    late = {token for turn in turns if turn.late for token in turn.tokens}
    stored = {turn.tokens[-1]: turn for turn in turns if turn.tokens}
    for operation in operations:
        before = [other for other in acknowledged if other.returned < operation.invoked]
        if operation.token in position:
            yield from _order(operation, before, position)
        if operation.outcome == OK:
            yield from _answers(operation, stored.get(operation.token))
            seen = view(operation, calls)
            if seen is None:
                yield "unwitnessed", operation.token, f"reply: {operation.answers[0].reply[:80]!r}"
            else:
                # What was lost is reported once, not again by every turn that still saw it.
                unseen = [other.token for other in before if other.token not in seen]
                seen = [token for token in seen if token not in lost]
                yield from _view(operation.token, seen, unseen, line, position, late)


def _order(operation, before, position):
    overtaken = [other.token for other in before if position.get(other.token, -1) > position[operation.token]]
    if overtaken:
        yield "reordered", operation.token, f"stands before {', '.join(overtaken)}"


def _answers(operation, turn):
    given = list(operation.answers) + ([turn] if turn else [])
    replies = {folded(one.reply) for one in given if one.reply is not None}
    replicas = {one.replica for one in given if one.replica is not None}
    if len(replies) > 1 or len(replicas) > 1:
        yield "two_answers", operation.token, f"{len(replies)} different replies, from {', '.join(sorted(replicas))}"


def _view(token, seen, unseen, line, position, late):
    """Compare what a turn was shown with what stands before it. ``unseen``: acknowledged before it began, not shown."""
    # A late turn was appended after what came between, and says so: it had read a shorter list.
    standing = line[: position.get(token, 0)]
    expected = standing[: len(set(seen))] if token in late else standing
    missing = dict.fromkeys(unseen) | dict.fromkeys(other for other in expected if other not in seen)
    if missing:
        yield "stale_view", token, f"not shown: {', '.join(missing)}" + (" (flagged late)" if token in late else "")
    # Of a turn that is not in Redis, only what Redis does not hold at all can be called wrong.
    extra = [other for other in seen if other not in (expected if token in position else line)]
    if extra:
        yield "dirty_view", token, f"shown, but not standing before it: {', '.join(extra)}"
    elif not missing and token in position and seen != expected:
        yield "dirty_view", token, f"shown twice or in another order: {', '.join(seen)}"


def _apart(history):
    stored = {token for turns in history.stored.values() for turn in turns for token in turn.tokens}
    apart = {"refused_but_stored": [], "unknown_stored": [], "unknown_not_stored": []}
    for operation in history.operations:
        there = operation.token in stored
        if operation.outcome == REFUSED and there:
            apart["refused_but_stored"].append(operation.token)
        elif operation.outcome == UNKNOWN:
            apart["unknown_stored" if there else "unknown_not_stored"].append(operation.token)
    apart["late"] = [token for turns in history.stored.values() for turn in turns if turn.late for token in turn.tokens]
    return apart


def totals(history):
    """Figures of a run: counts, errors that clients saw by kind, seconds from a turn's first request to its answer."""
    operations = history.operations
    outcomes = collections.Counter(operation.outcome for operation in operations)
    attempts = [attempt for operation in operations for attempt in operation.attempts]
    stalls = sorted(operation.stall for operation in operations)
    window = history.window
    during = [
        one for one in operations if window and one.invoked <= window.ended and one.invoked + one.stall >= window.began
    ]
    return {
        "conversations": len({operation.conversation for operation in operations}),
        "turns": len(operations),
        "requests": len(attempts),
        "acknowledged": outcomes[OK],
        "refused": outcomes[REFUSED],
        "unknown": outcomes[UNKNOWN],
        "errors": dict(collections.Counter(attempt.error for attempt in attempts if attempt.error).most_common()),
        "median_turn": round(stalls[len(stalls) // 2], 3) if stalls else None,
        "longest_stall": round(stalls[-1], 3) if stalls else None,
        "turns_during_fault": len(during),
        "gets": len(history.gets),
        "get_errors": dict(collections.Counter(get.error for get in history.gets if get.error).most_common()),
        "longest_get": round(max((get.returned - get.invoked for get in history.gets), default=0), 3),
    }
