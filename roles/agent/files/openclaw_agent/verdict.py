# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on one replica, from what was seen of it. Pure: times are given, nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

OK, DEGRADED, DRAINING, DOWN = "ok", "degraded", "draining", "down"
STATUSES = (OK, DEGRADED, DRAINING, DOWN)
#: In the order in which they stand in the verdict.
CHECKS = ("disk", "gateway", "unit", "partner", "certificate", "redis", "provider", "clock")

#: HAProxy reads one short line.
_LONGEST_REASON = 80


@dataclass(frozen=True)
class Finding:
    """What one check found: ``ok`` is None where there is nothing to look at; ``problem`` is one clause when it is False."""

    ok: bool | None = None
    problem: str = ""


@dataclass(frozen=True)
class Gateway:
    """What is known of a gateway's process.

    says: status of its last good answer to /startupz (started, starting, draining), empty before the first
    silent: seconds since then, or since the agent began to look
    gone: nothing listened on its port, and since then it has given no good answer
    seen: what stood in the place of a good answer at the last look, in words
    """

    says: str = ""
    silent: float = 0.0
    gone: bool = False
    seen: str = ""
    version: str = ""
    uptime: int = 0


@dataclass(frozen=True)
class Unit:
    """What systemd says of a replica's unit: its finding, and the states that decide more than a finding does."""

    finding: Finding = Finding()
    dead: bool = False
    stopping: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds without a good answer after which others are preferred, and after which the gateway counts as dead."""

    stalled: float = 1.5
    dead: float = 6.0


@dataclass(frozen=True)
class Verdict:
    """Status, each check's boolean, why, and the line for HAProxy's agent-check."""

    status: str
    checks: dict
    problems: list = field(default_factory=list)
    line: str = ""


def judge(gateway, unit, findings, drain, limits):
    """The verdict on one replica.

    :param gateway: a :class:`Gateway`; ``unit``: a :class:`Unit`
    :param findings: name of each other check -> :class:`Finding`
    :param drain: what the switch says (dict), None when it is off
    """
    state, problem = gateway_state(gateway, limits)
    found = {**findings, "gateway": Finding(not problem, problem), "unit": unit.finding}
    found = {name: found.get(name, Finding()) for name in CHECKS}
    problems = [f"{name}: {finding.problem}" for name, finding in found.items() if finding.ok is False]
    status = OK
    if state in ("gone", "dead", "starting") or unit.dead:
        status = DOWN
    elif drain is not None or state == "draining" or unit.stopping:
        status = DRAINING
    elif problems:
        # Dependencies are shared by all replicas: one that is sick must not take every replica out.
        status = DEGRADED
    reason = next((text for name in ("gateway", "unit") for text in problems if text.startswith(name)), "")
    return Verdict(status, {name: finding.ok for name, finding in found.items()}, problems, _line(status, state, reason))


def gateway_state(gateway, limits):
    """(state, problem): started, starting, draining, stalled, dead, gone or unknown; problem is empty when it serves."""
    if gateway.gone:
        return "gone", "nothing listens on its port"
    silence = f"no good answer for {gateway.silent:.1f} s" + (f" ({gateway.seen})" if gateway.seen else "")
    if gateway.silent > limits.dead:
        return "dead", silence
    if gateway.says == "draining":
        return "draining", "it was told to stop and finishes what it has"
    if gateway.says == "starting":
        return "starting", "it is starting"
    if gateway.silent > limits.stalled:
        return "stalled", silence
    # A restart of the agent takes nobody out: before the first answer nothing speaks against a gateway, and nothing for it.
    return ("started", "") if gateway.says else ("unknown", silence)


def _line(status, state, reason):
    """HAProxy's agent-check. Its words ready, drain and maint are the operator's at the balancer: the agent never says them."""
    if status == DOWN:
        text = "".join(char if char.isprintable() and char.isascii() else "?" for char in reason)
        return f"down #{text[:_LONGEST_REASON]}\n"
    if status == DRAINING:
        return "up 0%\n"
    # Weight 1 of 100: the others get everything new while there are others, nothing is cut, and the last one is never lost.
    return "up 1%\n" if state == "stalled" else "up 100%\n"


def document(replica, gateway, verdict, drain, host):
    """The JSON of a verdict, as it is answered."""
    return {
        "status": verdict.status,
        "replica": replica["id"],
        "host": host,
        "zone": replica["zone"],
        "version": gateway.version,
        "uptime_seconds": gateway.uptime,
        "checks": verdict.checks,
        "problems": verdict.problems,
        "drain": drain,
        "observed_seconds": round(gateway.silent, 2),
    }
