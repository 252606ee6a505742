"""Histories made by hand, and by hypothesis: consistent ones, and ones that break exactly one promise."""

import dataclasses

from hypothesis import strategies as st

from tests.history.history import OK, REFUSED, UNKNOWN, Attempt, History, ModelCall, Operation, StoredTurn

REPLICAS = ("node1-1", "node2-1", "node3-1")


class World:
    """A cluster that keeps every promise, one turn after another. Turn n of a conversation happens at 10 n."""

    def __init__(self):
        self.operations, self.stored, self.calls = [], {}, []

    def turn(self, conversation=0, outcome="ok", early=1, after=1, behind=0, repeated=False):
        """Let one turn happen.

        :param outcome: ok, refused, lost (unknown, not stored) or unknown (but stored)
        :param early: it was sent so long before it happened
        :param after: its client knew so long afterwards
        :param behind: it read so many turns too early, and is flagged late
        :param repeated: its first request had no answer, and its message was sent once more after the answer
        """
        name = f"web:abcdef-{conversation}"
        line = self.stored.setdefault(name, [])
        number = len([one for one in self.operations if one.conversation == name])
        moment, replica = 10 * (number + 1), REPLICAS[number % 3]
        behind = min(behind, len(line))
        shown = [token for turn in line[: len(line) - behind] for token in turn.tokens]
        invoked = moment - early
        if behind:
            # It had begun, and read, before the turns that it did not see.
            invoked = min(invoked, 10 * (1 + int(line[-behind].tokens[0].rsplit("-", 1)[1])) - 1)
        token = f"turn-abcdef-{conversation}-0-{number}"
        reply = f"seen {len(shown) + 1}: {token}"
        if outcome in ("ok", "unknown"):
            line.append(StoredTurn((token,), f"{token}: hello", f"id {token}", replica, bool(behind), reply))
            self.calls.append(ModelCall((*shown, token), reply))
        answered = Attempt(invoked, moment + after, "balancer", OK, 200, "", reply, replica)
        attempts = [{
            "ok": answered,
            "refused": Attempt(invoked, moment + after, "balancer", REFUSED, 503, "503 turn_not_started"),
        }.get(outcome, Attempt(invoked, moment + after, "balancer", UNKNOWN, None, "connection lost"))]  # fmt: skip
        if repeated and outcome == "ok":
            attempts.insert(0, Attempt(invoked, invoked, "balancer", UNKNOWN, None, "connection lost"))
            attempts.append(dataclasses.replace(answered, invoked=moment + after, returned=moment + after + 1))
        self.operations.append(Operation(name, 0, number, token, f"{token}: hello", tuple(attempts)))
        return self

    def history(self):
        stored = {name: tuple(turns) for name, turns in self.stored.items() if turns}
        return History(tuple(self.operations), stored, tuple(self.calls))


@st.composite
def consistent(draw):
    """A history that keeps every promise, with overlapping, unknown, refused, late and repeated turns."""
    world = World()
    for conversation in range(draw(st.integers(1, 2))):
        for _number in range(draw(st.integers(1, 7))):
            world.turn(
                conversation,
                draw(st.sampled_from(("ok", "ok", "ok", "ok", "unknown", "lost", "refused"))),
                draw(st.integers(1, 25)),
                draw(st.integers(1, 25)),
                draw(st.sampled_from((0, 0, 0, 0, 1, 2))),
                draw(st.booleans()),
            )
    return world.history()


# ---- breaking one promise: each returns the broken history, or None where there is nothing to break


def _replace(history, name, turns):
    stored = history.stored | {name: tuple(turns)}
    return dataclasses.replace(history, stored={name: turns for name, turns in stored.items() if turns})


def _acknowledged(history):
    return [one for one in history.operations if one.outcome == OK]


def _pick(draw, things):
    return draw(st.sampled_from(things)) if things else None


def lose(history, draw):
    target = _pick(draw, _acknowledged(history))
    if target is None:
        return None
    turns = history.stored.get(target.conversation, ())
    return _replace(history, target.conversation, [turn for turn in turns if target.token not in turn.tokens])


def double(history, draw):
    name = _pick(draw, sorted(history.stored))
    if name is None:
        return None
    turns = list(history.stored[name])
    turns.insert(draw(st.integers(0, len(turns))), draw(st.sampled_from(turns)))
    return _replace(history, name, turns)


def _successive(history):
    known = _acknowledged(history)
    return [(a, b) for a in known for b in known if a.conversation == b.conversation and a.returned < b.invoked]


def reorder(history, draw):
    stored = {token for turns in history.stored.values() for turn in turns for token in turn.tokens}
    pair = _pick(draw, [pair for pair in _successive(history) if {one.token for one in pair} <= stored])
    if pair is None:
        return None
    name = pair[0].conversation
    turns = list(history.stored[name])
    first, second = (next(i for i, turn in enumerate(turns) if one.token in turn.tokens) for one in pair)
    turns[first], turns[second] = turns[second], turns[first]
    return _replace(history, name, turns)


def _reshow(history, token, change):
    calls = tuple(
        dataclasses.replace(call, tokens=(*change(list(call.tokens[:-1])), token)) if call.tokens[-1] == token else call
        for call in history.calls
    )
    return dataclasses.replace(history, calls=calls)


def hide(history, draw):
    pair = _pick(draw, _successive(history))
    if pair is None:
        return None
    return _reshow(history, pair[1].token, lambda shown: [token for token in shown if token != pair[0].token])


def show_twice(history, draw):
    target = _pick(draw, _acknowledged(history))
    if target is None:
        return None
    extra = f"turn-abcdef-{draw(st.sampled_from((target.conversation[-1], '9')))}-0-{draw(st.integers(50, 60))}"
    place = draw(st.integers(0, 7))
    return _reshow(
        history, target.token, lambda shown: [*shown[:place], draw(st.sampled_from((*shown, extra))), *shown[place:]]
    )


def answer_twice(history, draw):
    target = _pick(draw, _acknowledged(history))
    if target is None:
        return None
    first = target.answers[0]
    other = dataclasses.replace(
        first, invoked=first.returned, returned=first.returned + 1,
        **draw(st.sampled_from(({"reply": "something else"}, {"replica": "node9-1"}))),
    )  # fmt: skip
    changed = dataclasses.replace(target, attempts=(*target.attempts, other))
    return dataclasses.replace(
        history, operations=tuple(changed if one is target else one for one in history.operations)
    )


def conjure(history, draw):
    name = _pick(draw, sorted(history.stored))
    if name is None:
        return None
    turns = list(history.stored[name])
    turns.insert(
        draw(st.integers(0, len(turns))),
        draw(st.sampled_from((StoredTurn(("turn-abcdef-0-7-7",)), StoredTurn((), "hello")))),
    )
    return _replace(history, name, turns)


def forget_call(history, draw):
    target = _pick(draw, _acknowledged(history))
    if target is None:
        return None
    return dataclasses.replace(history, calls=tuple(call for call in history.calls if call.tokens[-1] != target.token))


#: kind of violation -> how to bring it about
BREAKS = {
    "lost": lose, "doubled": double, "reordered": reorder, "stale_view": hide, "dirty_view": show_twice,
    "two_answers": answer_twice, "phantom": conjure, "unwitnessed": forget_call,
}  # fmt: skip
