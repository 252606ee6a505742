# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on messages of a channel: each accepted one has exactly one reply, or is told of with a reason. Pure.

The model's double answers with the texts that it was shown, the newest last, so a reply tells which message it answers and what the replica knew.
"""

from __future__ import annotations

import collections
import json
import re
from dataclasses import dataclass, field

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_COUNT = re.compile(r"seen (\d+) user messages?")


@dataclass(frozen=True)
class Sent:
    """A message that somebody wrote. text: its own, once in all messages; chat: the conversation; accepted: the bot's side has taken it over."""

    id: int
    chat: int
    text: str
    accepted: bool


@dataclass(frozen=True)
class Reply:
    """What a chat was sent. time: seconds, of one clock."""

    chat: int
    text: str
    time: float


@dataclass
class Verdict:
    """What was found; sound when there are no violations. told: id -> reason of those without an answer; others: replies that answer no message."""

    answered: int = 0
    violations: list = field(default_factory=list)
    told: dict = field(default_factory=dict)
    waiting: list = field(default_factory=list)
    others: list = field(default_factory=list)

    def __str__(self):
        told = collections.Counter(self.told.values())
        words = [f"{self.answered} answered once", f"{len(self.waiting)} not accepted", *(f"{count} {reason}" for reason, count in sorted(told.items()))]
        return ", ".join([*words, f"{len(self.others)} other replies", f"{len(self.violations)} violations"])


def shown(text):
    """The user's messages that a reply quotes, oldest first; [] for a reply that is none of the model's."""
    return [json.loads(one) for one in _QUOTED.findall(text)] if "user messages" in text or "user message" in text else []


def count(text):
    """How many of the user's messages the model was shown; of many, a reply quotes the first and the last ones."""
    return int(_COUNT.search(text)[1])


def check(sent, replies, told):
    """Compare what was written with what came back.

    :param sent: :class:`Sent` in the order in which each chat wrote them
    :param replies: :class:`Reply` of all chats
    :param told: id of a message -> why it has no answer, as the journal or the replica says
    """
    verdict = Verdict()
    answers = collections.defaultdict(list)
    texts = {one.text: one for one in sent}
    for reply in replies:
        quoted = shown(reply.text)
        # A message that was not answered is part of the next one's turn: both stand in it.
        found = [texts[text] for text in texts if quoted and text in quoted[-1].splitlines()]
        if not found:
            verdict.others.append(reply)
        for one in found:
            answers[one.id].append(reply)
            if one.chat != reply.chat:
                verdict.violations.append(f"message {one.id} of chat {one.chat} was answered in chat {reply.chat}")
    for one in sent:
        count = len(answers[one.id])
        if count > 1:
            verdict.violations.append(f"message {one.id} was answered {count} times")
        elif count == 1:
            verdict.answered += 1
        elif one.id in told:
            verdict.told[one.id] = told[one.id]
        elif one.accepted:
            verdict.violations.append(f"message {one.id} was accepted, has no answer, and nothing tells of it")
        else:
            verdict.waiting.append(one.id)
    verdict.violations += _views(sent, answers)
    return verdict


def _views(sent, answers):
    """Each reply must have been made with all that was answered before it in its chat.

    Which turn came first is told by how much it was shown: under load an answer may be sent before that of the turn before it, by another replica.
    """
    chats = collections.defaultdict(list)
    for one in sent:
        for reply in answers[one.id]:
            quoted = shown(reply.text)
            chats[one.chat].append((count(reply.text), one, quoted))
    for chat, rows in chats.items():
        before = []
        for _count, one, quoted in sorted(rows, key=lambda row: row[0]):
            seen = "\n".join(quoted).splitlines()
            missing = [text for text in before if text not in seen]
            if missing:
                yield f"the answer to message {one.id} of chat {chat} was made without {len(missing)} earlier ones, such as {missing[0]!r}"
            before.append(one.text)
