# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a replica's process runs what it should, and what has to be done about it. Pure.

A process carries the *generation* it was started with in its environment: a digest over everything it read then.
Comparing it with the wanted one tells even after an interrupted run which processes are behind, where "did this task
change a file" would have forgotten. What OpenClaw takes over while it runs is not in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re

GENERATION = "OPENCLAW_HA_GENERATION"

#: Sections of openclaw.json that OpenClaw takes over while it runs and for which it reloads neither plugins nor channels
#: (docs/gateway/configuration/hot-reload.md in its package; dist/config-reload-plan-*.mjs of 2026.9.6), and what in them is an exception.
LIVE = ("agents", "messages", "models", "skills", "tools")
NOT_LIVE = "decisionModel"

#: What OpenClaw writes to its journal about a change of openclaw.json.
_TAKEN = re.compile(r"config (hot reload|change) applied")
_REFUSED = re.compile(r"config reload (skipped|failed|disabled)|config change requires gateway restart|config hot-reload disabled")


def generation(key, parts):
    """Digest over ``parts``, an iterable of (name, bytes); ``key`` (bytes) keeps weak secrets from being guessed."""
    digest = hmac.new(key or b"-", digestmod=hashlib.sha256)
    for name, content in sorted(parts):
        for piece in (name.encode(), content):
            digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.hexdigest()[:32]


def of_the_start(config):
    """What of openclaw.json counts at a process's start only: the sections that it does not take over while it runs."""
    kept = {key: value for key, value in config.items() if key not in LIVE}
    agents = config.get("agents")
    for name, one in {"defaults": agents.get("defaults"), **(agents.get("entries") or {})}.items() if isinstance(agents, dict) else ():
        if isinstance(one, dict) and NOT_LIVE in one:
            kept.setdefault("agents", {})[name] = one[NOT_LIVE]
    return kept


def taken_over(journal):
    """What OpenClaw says of a changed openclaw.json: (whether it was taken over, its words); (None, "") while it has said nothing.

    :param journal: text that it has written since
    """
    for line in journal.splitlines():
        if _REFUSED.search(line):
            return False, line.strip()
        if _TAKEN.search(line):
            return True, line.strip()
    return None, ""


def version_of(path):
    """The numbers of the version that a directory is named after, such as (2026, 9, 6); None where it is named otherwise."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?", os.path.basename(path))
    # Of the same numbers, what has a suffix came before what has none.
    return (*(int(number) for number in found.groups()[:3]), found[4] is None, found[4] or "") if found else None


def inherits(old, new):
    """Whether a release may go on with what another has stored: a newer one migrates it, an older one refuses it.

    :param old, new: directories named after their versions, in which each keeps its state
    """
    versions = version_of(old), version_of(new)
    return old != new and None not in versions and versions[0] < versions[1]


def running_generation(environ):
    """The generation in the bytes of /proc/PID/environ; empty where there is none."""
    prefix = GENERATION.encode() + b"="
    return next((item[len(prefix) :].decode() for item in environ.split(b"\0") if item.startswith(prefix)), "")


def plan(unit, running, wanted):
    """The systemctl verbs that bring a unit from what is seen to what is wanted, in order.

    :param unit: properties of the unit, see module_utils/systemd.py; empty when systemd knows nothing of it
    :param running: generation of the running process, or an empty text
    :param wanted: generation that should run
    """
    verbs = []
    if unit.get("NeedDaemonReload") == "yes" or unit.get("LoadState") != "loaded":
        verbs.append("daemon-reload")
    if unit.get("UnitFileState") != "enabled":
        verbs.append("enable")
    if unit.get("ActiveState") == "failed":
        verbs.append("reset-failed")
    if unit.get("ActiveState") == "active" and running == wanted:
        return verbs
    return [*verbs, "start" if unit.get("ActiveState") in (None, "inactive", "failed") else "restart"]


def complaints(rc, out, err):
    """What ``openclaw config validate --json`` has against a configuration: a list of texts, empty when it is valid."""
    try:
        told = json.loads(out)
    except ValueError:
        told = {}
    issues = [f"{issue.get('path')}: {issue.get('message')}" for issue in told.get("issues") or []]
    if rc == 0 and told.get("valid") is True:
        return []
    return issues or [" ".join((err or out).split())[-500:] or f"the check ended with status {rc} and said nothing"]
