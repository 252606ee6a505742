# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What answers mean: each function turns what a probe brought home into a finding. Pure."""

from __future__ import annotations

import collections
import dataclasses
import json

from .verdict import Finding, Unit

SAYS = ("started", "starting", "draining")

#: Restarts are counted over this many seconds.
RESTART_WINDOW = 300
UNIT_PROPERTIES = ("Id", "ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts")

#: Bits of struct timex.status (linux/timex.h), and what adjtimex returns for a clock that is not in sync.
STA_UNSYNC, STA_NANO, TIME_ERROR = 0x0040, 0x2000, 5


@dataclasses.dataclass(frozen=True)
class Answer:
    """A gateway's answer to /startupz: ``says`` is empty when it is none, ``seen`` tells what it was instead."""

    says: str = ""
    seen: str = ""
    version: str = ""
    uptime: int = 0


def startup(status, text):
    """Judge an answer to /startupz by its JSON: a gateway answers unknown paths with 200, and says draining with 503."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get("status") not in SAYS:
        return Answer(seen=f"HTTP {status} without the JSON of a gateway")
    uptime = body.get("uptimeMs")
    seconds = int(uptime / 1000) if isinstance(uptime, (int, float)) and not isinstance(uptime, bool) else 0
    return Answer(body["status"], "", str(body.get("version") or ""), seconds)


def health(status, text):
    """Findings ``redis`` and ``provider`` from a gateway's GET /api/v1/health."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if status != 200 or not isinstance(body, dict) or not isinstance(body.get("redis"), bool):
        return no_health(f"HTTP {status} instead of the health of this replica")
    providers = body.get("providers") if isinstance(body.get("providers"), dict) else {}
    failing = ", ".join(sorted(name for name, closed in providers.items() if closed is False))
    provider = body.get("provider") if isinstance(body.get("provider"), bool) else None
    return {
        "redis": Finding(body["redis"], "" if body["redis"] else "this replica has no working connection"),
        "provider": Finding(provider, f"turns go past {failing or 'the first one'}" if provider is False else ""),
    }


def no_health(seen):
    """The same findings when the gateway did not tell."""
    return {name: Finding(False, f"unknown: {seen}") for name in ("redis", "provider")}


def parse_show(text):
    """Blocks of ``systemctl show`` by unit name."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n"))
    return {block["Id"]: block for block in blocks if "Id" in block}


class Restarts:
    """How often systemd restarted a unit lately, from its counter, which starts again at zero when a person starts the unit."""

    def __init__(self, window=RESTART_WINDOW):
        self._window, self._last, self._steps = window, None, collections.deque()

    def observe(self, counter, now):
        """Take in the counter; returns the number of restarts in the window."""
        if self._last is not None and counter > self._last:
            self._steps.append((now, counter - self._last))
        self._last = counter
        while self._steps and now - self._steps[0][0] > self._window:
            self._steps.popleft()
        return sum(step for _moment, step in self._steps)


def unit(shown, restarts, most):
    """Judge a unit: active, and not restarted again and again.

    :param shown: its properties, None when systemd did not tell
    :param restarts: as many in the window; ``most``: as many are too many
    """
    if shown is None:
        return Unit(Finding(False, "systemd does not tell"))
    state = shown.get("ActiveState", "")
    if state in ("failed", "inactive"):
        status = f", exit status {shown['ExecMainStatus']}" if shown.get("ExecMainStatus", "0") != "0" else ""
        return Unit(Finding(False, f"it is {state} (result {shown.get('Result', 'unknown')}{status})"), dead=True)
    if state == "deactivating":
        return Unit(Finding(True), stopping=True)
    if state not in ("active", "reloading"):
        return Unit(Finding(False, f"it is {state or 'unknown'} ({shown.get('SubState', 'unknown')})"))
    if restarts >= most:
        return Unit(Finding(False, f"restarted {restarts} times in {RESTART_WINDOW // 60} minutes"))
    return Unit(Finding(True))


@dataclasses.dataclass(frozen=True)
class Space:
    """Shares (0 to 1) that are free for an ordinary user; ``inodes`` is None on file systems that do not count them."""

    free: float
    inodes: float | None


def space(stat):
    """The :class:`Space` of an ``os.statvfs_result``: blocks that only root may use count as used."""
    usable = stat.f_blocks - stat.f_bfree + stat.f_bavail
    return Space(stat.f_bavail / usable if usable else 0.0, stat.f_favail / stat.f_files if stat.f_files else None)


def disk(spaces, least_free, least_inodes):
    """Judge paths (path -> :class:`Space`, or a text that says why it is unknown); limits in percent."""
    wrong = []
    for path, found in spaces.items():
        if isinstance(found, str):
            wrong.append(f"{path}: {found}")
            continue
        if found.free * 100 < least_free:
            wrong.append(f"{path} has {found.free:.0%} free")
        if found.inodes is not None and found.inodes * 100 < least_inodes:
            wrong.append(f"{path} has {found.inodes:.0%} of its inodes free")
    return Finding(not wrong, ", ".join(wrong)) if spaces else Finding()


def partner(errors):
    """Judge handshakes (host:port -> why it failed, None when it did not)."""
    wrong = [f"{where}: {error}" for where, error in errors.items() if error]
    return Finding(not wrong, ", ".join(wrong)) if errors else Finding()


def certificate(days, least):
    """Judge certificates (name -> days left, or a text that says why that is unknown)."""
    wrong = []
    for name, left in days.items():
        if isinstance(left, str):
            wrong.append(f"{name}: {left}")
        elif left < 0:
            wrong.append(f"{name} has expired")
        elif left < least:
            wrong.append(f"{name} ends in {left:.0f} days")
    return Finding(not wrong, ", ".join(wrong)) if days else Finding()


@dataclasses.dataclass(frozen=True)
class Clock:
    """What adjtimex says: whether the kernel's clock is disciplined, and seconds still to be corrected."""

    synced: bool
    offset: float


def kernel_clock(result, status, offset):
    """The :class:`Clock` of what adjtimex returned and of two fields of struct timex."""
    return Clock(result != TIME_ERROR and not status & STA_UNSYNC, offset / (1e9 if status & STA_NANO else 1e6))


def clock(seen, most):
    """Judge the clock: in sync, and less than ``most`` seconds off."""
    if not seen.synced:
        return Finding(False, "not in sync: no time service steers this host's clock")
    if abs(seen.offset) > most:
        return Finding(False, f"{seen.offset:+.1f} s off")
    return Finding(True)


class Attention:
    """A clock that stands while its owner does.

    An agent that was frozen itself, or starved, must not take the time in which it did not look for a gateway's silence.
    """

    def __init__(self, now, most=0.5):
        self._last, self._most, self._sum = now, most, 0.0

    def read(self, now):
        """Seconds of attention until ``now``; read at least every ``most`` seconds by whoever pays attention."""
        self._sum += min(max(now - self._last, 0.0), self._most)
        self._last = now
        return self._sum
