# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""People who write to the bots of the Telegram double, and what the journal and the replicas say of their messages."""

from __future__ import annotations

import json
import time

import requests

from lab.cluster import BOTS, PEOPLE
from lab.shell import wait_for
from tests.history.faults import execute

from .checker import Reply, Sent, check

WEBHOOK, POLLING = BOTS


class Bot:
    """One bot of the double since the last :meth:`reset`."""

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.account = f"telegram/{BOTS[number]}"
        self.url = f"{cluster.lab.telegram_url}/control/{number}"
        self.written = []

    def reset(self):
        """Forget what was; ids go on rising."""
        self._post("reset", {})
        self.written = []
        return self

    def write(self, chat, text):
        """Somebody writes; ``text`` must be one of its own."""
        (number,) = self._post("messages", {"chat_id": chat, "text": text})["update_ids"]
        self.written.append((number, chat, text))
        return number

    def burst(self, chats, count, word):
        """``count`` messages in each of the chats, as fast as it goes, in turn."""
        for number in range(count):
            for chat in chats:
                self.write(chat, f"{word} {chat} {number}")

    def fault(self, **faults):
        """Faults of the double; None ends one."""
        return self._post("faults", faults)

    def state(self):
        return self.get("")

    def get(self, what, **filters):
        return requests.get(f"{self.url}/{what}".rstrip("/"), params=filters, timeout=10).json()

    def replies(self):
        return [Reply(one["chat_id"], one["text"], one["monotonic"]) for one in self.get("replies")]

    def accepted(self):
        """Ids of the updates that the bot's side has taken over."""
        if BOTS[self.number] == "webhook":
            return {one["update_id"] for one in self.get("deliveries") if one["status"] == 200}
        waiting = set(self.state()["pending"])
        return {number for number, _chat, _text in self.written} - waiting

    def verdict(self, told=None):
        """See :func:`.checker.check`."""
        taken = self.accepted()
        sent = [Sent(number, chat, text, number in taken) for number, chat, text in self.written]
        return check(sent, self.replies(), told if told is not None else self.told())

    def told(self):
        """Id of an update -> why it has no answer, of the dead letters."""
        return {int(one["event"]): one["reason"] for one in dead(self.cluster) if one["account"] == self.account}

    def settled(self, seconds=240):
        """Wait until nothing is on its way any more; the verdict then."""

        def quiet():
            return not self.state()["pending"] and not waiting(self.cluster) and (verdict := self.verdict()) and not verdict.waiting and verdict

        def answered():
            # A turn is committed before its answer is sent.
            return (verdict := self.verdict()) and verdict.answered + len(verdict.told) == len(self.written) and verdict

        try:
            wait_for(f"an end of what was written to bot {self.number}", quiet, seconds)
            return wait_for("the answers of what is committed", answered, 60)
        except Exception as error:
            raise AssertionError(f"{error}; {self.verdict()}; {self.verdict().violations[:5]}") from error

    def _post(self, what, document):
        answer = requests.post(f"{self.url}/{what}", json=document, timeout=10)
        answer.raise_for_status()
        return answer.json()


def people(count, first=0):
    """Chats of some people who may write."""
    return list(PEOPLE)[first : first + count]


def ingress(cluster, *words, host=None):
    """What ``openclaw-ingress`` prints on a host, as data."""
    host = host or cluster.topology["ingresses"][0]["host"]
    return json.loads(execute(cluster, host, "openclaw-ingress", *words, "--json") or "null")


def waiting(cluster):
    """Events in the journal that wait, or whose turn goes on."""
    return ingress(cluster, "list")


def dead(cluster):
    """Dead letters."""
    return ingress(cluster, "list", "--dead")


def ingress_status(cluster, host):
    """/health of a host's ingress."""
    port = next(one["status_port"] for one in cluster.topology["ingresses"] if one["host"] == host)
    return json.loads(execute(cluster, host, "curl", "-s", f"http://127.0.0.1:{port}/health"))


def owners(cluster):
    """Singleton -> what the owners say of it: its holder, host, token, and since when; of the hosts that answer."""
    found = {}
    for one in cluster.topology["owners"]:
        try:
            told = json.loads(execute(cluster, one["host"], "curl", "-s", "--max-time", "3", f"http://127.0.0.1:{one['port']}/health"))
        except (RuntimeError, ValueError):
            continue
        for name, row in told["singletons"].items():
            if row["state"] == "owned":
                found.setdefault(name, []).append(row)
    return found


def now():
    """The clock of the double's ``monotonic``: containers share it."""
    return time.monotonic()
