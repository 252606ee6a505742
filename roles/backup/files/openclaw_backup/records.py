# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of runs: one file for each action, for root, and one with numbers alone, for monitoring."""

from __future__ import annotations

import json
import os
import tempfile
import time

from . import plan

ACTIONS = ("make", "check", "prove")


def read(directory):
    """The records by action; an action that never ran is not among them."""
    found = {}
    for action in ACTIONS:
        try:
            with open(os.path.join(directory, "records", f"{action}.json"), encoding="utf-8") as file:
                found[action] = json.load(file)
        except (FileNotFoundError, ValueError):
            continue
    return found


def write(directory, action, result, began):
    """Write a run down; its record."""
    records, now = read(directory), time.time()
    made = plan.record(records.get(action, {}), action, result, began, now)
    os.makedirs(os.path.join(directory, "records"), mode=0o700, exist_ok=True)
    save(os.path.join(directory, "records", f"{action}.json"), made)
    save(os.path.join(directory, "metrics.json"), plan.metrics({**records, action: made}, now), 0o644)
    return made


def save(path, value, mode=0o600):
    """Replace a file as a whole."""
    handle, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
