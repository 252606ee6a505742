# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a running Redis server or Sentinel must be started anew. Pure.

Read from what runs, not remembered from what a run of Ansible changed, so that an interrupted run is not forgotten.
"""

from __future__ import annotations

import re

from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import differences


def parse_version(text):
    """``(version, build)`` of ``redis-server --version``; raises ValueError when it is something else."""
    found = re.search(r"\bv=(\S+).*\bbuild=(\S+)", text)
    if not found:
        raise ValueError(f"{text.strip()!r} is not what redis-server --version prints")
    return found.groups()


def reasons(running, installed, wanted, found, pinned, started, changed, reload_needed):
    """Why the process is not what it would be after a restart, one sentence each.

    :param running: ``(version, build)`` of the process
    :param installed: ``(version, build)`` of the program on the disk
    :param wanted: settings by name
    :param found: the process's settings by name
    :param pinned: names of settings that it takes only at its start
    :param started: seconds since 1970
    :param changed: the unit's files, as a dict of path to seconds since 1970
    :param reload_needed: whether systemd has not read the unit's files yet
    """
    why = []
    if running != installed:
        why.append(
            f"Version {running[0]} (build {running[1]}) runs, {installed[0]} (build {installed[1]}) is installed."
        )
    for name, (before, after) in sorted(differences(wanted, found).items()):
        if name in pinned:
            why.append(f"Setting {name} is {before!r}, not {after!r}, and is read only at the start.")
    newer = sorted(path for path, moment in changed.items() if moment > started)
    if newer:
        why.append(f"Changed since it was started: {', '.join(newer)}.")
    elif reload_needed:
        why.append("The unit was changed since systemd read it.")
    return why
