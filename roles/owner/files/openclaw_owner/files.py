# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What turns a singleton on and off: a JSON file of each replica and section that OpenClaw includes, and reads again when it changes."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile

#: A file of the replicas of which nothing is on.
NOTHING = "{}\n"


def merged(contents):
    """One JSON object of several, merged at all depths."""
    found = {}
    for one in contents:
        _merge(found, one)
    return found


def _merge(into, content):
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = merged([value]) if isinstance(value, dict) else value


def within(content, whole):
    """Does a JSON object have all that another one has?"""
    if isinstance(content, dict) and isinstance(whole, dict):
        return all(key in whole and within(value, whole[key]) for key, value in content.items())
    return content == whole


def text(content):
    """As it stands in the file."""
    return json.dumps(content, sort_keys=True) + "\n" if content else NOTHING


def read(path):
    """(text, JSON object) of a file; both are empty when it cannot be read, the object when it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = file.read()
        content = json.loads(found)
    except OSError:
        return "", {}
    except ValueError:
        return "?", {}
    return found, content if isinstance(content, dict) else {}


def write(path, content, still=lambda: True):
    """Replace a file at once; makes its directory where there is none.

    :param still: asked immediately before; without its yes nothing happens
    :returns: whether it was written
    :raises OSError: when it cannot be
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", dir=directory)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o640)
        if not still():
            os.unlink(temporary)
            return False
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def held(settings, now):
    """Are all leases that the service has noted owned, and long enough for its next life to renew them?

    :param now: seconds of the clock of the notes (CLOCK_BOOTTIME)
    """
    try:
        noted = [one["state"] for one in read(settings["state_file"])[1].values()]
        left = [state["valid"] - now for state in noted if state["phase"] == "owned"]
    except (KeyError, TypeError):
        return False
    # A life that comes to nothing, and the next one, do not renew: then what is on is turned off as early as without Redis.
    return bool(noted) and len(left) == len(noted) and all(settings["stop_seconds"] + 1 < one <= settings["lease_seconds"] for one in left)


def off(settings):
    """Turn everything off in all files of the configuration; what is off is left alone.

    :returns: list of (path, why it cannot be written)
    """
    failed = []
    for replica in settings["replicas"]:
        for path in replica["sections"].values():
            try:
                if read(path)[0] != NOTHING:
                    write(path, NOTHING)
            except OSError as error:
                failed.append((path, error.strerror or str(error)))
    return failed
