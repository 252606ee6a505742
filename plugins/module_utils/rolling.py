# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which step is next for one gateway replica while all of them are changed, and why. Pure.

Each replica is planned on its own host, from what it is and from what the agents say of the others just then. Nothing is kept in between
but the record, a file beside the replica that is written before it is touched: whoever finds one goes on where the run before ended.
"""

from __future__ import annotations

import dataclasses

#: Verdicts of replicas that answer people.
SERVING = ("ok", "degraded")
#: What a drain for a rolling change gives as its reason.
REASON = "rolling"


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another replica of the datacenter: its agent's ``status`` (empty: no answer) and the ``reason`` of whoever has drained it."""

    id: str
    status: str
    reason: str | None = None

    @property
    def serves(self):
        return self.status in SERVING and self.reason is None

    @property
    def is_rolling(self):
        """Whether it is out because it is being changed just as this one shall be."""
        return self.reason == REASON


@dataclasses.dataclass(frozen=True)
class Mine:
    """The replica that is planned.

    behind: it does not run what it should
    live: what it lacks it takes over while it runs
    runs: its unit is active
    reason: of whoever has drained it; None when it is not drained
    record: what an earlier run has written down before it touched this replica; None when there is nothing
    """

    behind: bool
    runs: bool = True
    reason: str | None = None
    record: dict | None = None
    live: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_unavailable: replicas that may be out at once; patience: seconds to wait for peers to get well."""

    max_unavailable: int = 1
    patience: float = 60.0


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do, and one clause that says why.

    ``skip``: it is as it should be. ``start``: it does not run, so there is nothing to drain. ``take``: drain it, change it, put it back.
    ``live``: change it while it serves; it has to be fit to be taken out all the same, should that fail.
    ``resume``: as ``take``, for one that a run has left drained. ``close``: an earlier run has done it all but forgotten its record.
    ``wait``: not now. ``stop``: not any more.
    """

    action: str
    why: str


#: Steps after which the replica is changed.
GO = ("start", "take", "live", "resume")


def next_step(mine, peers, limits, waited=0.0):
    """The next step for a replica.

    :param peers: the other replicas of its datacenter
    :param waited: seconds since it was first asked for
    """
    if mine.record and mine.reason == REASON:
        return Step("resume", f"a run that began {mine.record.get('began', 'earlier')} has left it drained")
    if not mine.behind:
        return Step("close", "an earlier run has finished it") if mine.record else Step("skip", "it runs what it should")
    if not mine.runs:
        return Step("start", "it does not run")
    obstacle = _obstacle(peers, limits)
    if not obstacle:
        return Step("live" if mine.live else "take", _others(peers))
    if waited < limits.patience:
        return Step("wait", obstacle)
    return Step("stop", f"{obstacle}, for {waited:.0f} s")


def error_rates(before, after, canary):
    """Share of requests that failed between two looks at all balancers, in percent: (of the canary, of the others, requests of the canary).

    A share is None where no request was counted.

    :param before, after: host -> ``servers`` of ``balancer_server``, or None where a balancer did not answer
    """
    counted = {True: [0, 0], False: [0, 0]}
    for host, servers in after.items():
        known = {server["id"]: server for server in before.get(host) or []}
        for server in servers or []:
            if server["requests"] is None:
                continue
            old = known.get(server["id"]) or {"requests": 0, "errors": 0}
            # A reload begins to count anew.
            anew = server["requests"] < (old["requests"] or 0)
            for number, name in enumerate(("requests", "errors")):
                counted[server["id"] == canary][number] += server[name] - (0 if anew else old[name] or 0)
    shares = {mine: round(100 * errors / requests, 2) if requests else None for mine, (requests, errors) in counted.items()}
    return shares[True], shares[False], counted[True][0]


def judge_canary(before, after, canary, limit):
    """Why a canary must not be followed by the others; empty when it may be. Arguments as in :func:`error_rates`.

    What fails everywhere is not the canary's fault: it must fail more often than ``limit`` percent and twice as often as the others.
    """
    mine, others, requests = error_rates(before, after, canary)
    if mine is None or mine <= limit or mine <= 2 * (others or 0):
        return ""
    return f"{mine:g} % of its {requests} requests failed, of the others' {'none was counted' if others is None else f'{others:g} %'}; {limit:g} % may"


def _obstacle(peers, limits):
    """Why a replica that serves must not be taken out now; empty when it may."""
    rolling = [peer.id for peer in peers if peer.is_rolling]
    sick = [f"{peer.id} {_state(peer)}" for peer in peers if not peer.serves and not peer.is_rolling]
    if sick:
        return f"{', '.join(sick)}"
    if len(rolling) >= limits.max_unavailable:
        return f"{', '.join(rolling)} {'is' if len(rolling) == 1 else 'are'} out already, and {limits.max_unavailable} may be"
    if peers and not any(peer.serves for peer in peers):
        return "no other replica would serve"
    return ""


def _state(peer):
    if peer.reason is not None:
        return f"is drained ({peer.reason or 'no reason given'})"
    return f"is {peer.status}" if peer.status else "gives no verdict"


def _others(peers):
    serving = [peer.id for peer in peers if peer.serves]
    return f"{', '.join(serving)} serve{'s' if len(serving) == 1 else ''}" if serving else "it is the only one"
