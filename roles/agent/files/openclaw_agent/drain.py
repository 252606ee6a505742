# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drain switch: one small file for each drained replica. It is there or it is not, so it outlives every process."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile


def read(directory, replica):
    """What the switch of a replica says: None when it is off, else ``since``, ``by`` and ``reason``."""
    path = os.path.join(directory, replica)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(4096)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        text = ""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    # Somebody has put it there: that it cannot be read is no reason to send requests.
    body = body if isinstance(body, dict) else {"reason": f"{path} cannot be read"}
    return {key: str(body.get(key) or "") for key in ("since", "by", "reason")}


def drain(directory, replica, by, reason="", now=None):
    """Turn the switch on; returns False when it was on already, and then leaves alone who did that and when."""
    if read(directory, replica) is not None:
        return False
    now = now or datetime.datetime.now(datetime.timezone.utc)
    text = json.dumps({"since": now.isoformat(timespec="seconds"), "by": by, "reason": reason})
    os.makedirs(directory, mode=0o755, exist_ok=True)
    # Its name starts with a dot, as no replica's does.
    handle, temporary = tempfile.mkstemp(prefix=".", dir=directory)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(directory, replica))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(directory)
    return True


def ready(directory, replica):
    """Turn the switch off; returns False when it was off already."""
    try:
        os.unlink(os.path.join(directory, replica))
    except FileNotFoundError:
        return False
    _sync(directory)
    return True


def _sync(directory):
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
