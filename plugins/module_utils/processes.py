# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``/proc`` says of this host's processes."""

from __future__ import annotations

import os
import time

#: Seconds by which :func:`started` may be wrong, and some more.
EXACT = 0.05


def text_of(path, default=""):
    """Text of a file, ``default`` where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return default


def _fields(process):
    """What follows the name in ``/proc/PID/stat``; empty for a process that has ended."""
    return text_of(f"/proc/{process}/stat").rpartition(")")[2].split()


def named(name):
    """Numbers of the processes with a program name."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and text_of(f"/proc/{entry}/comm").strip() == name]


def parent(process):
    """Number of a process's parent, None where it has ended."""
    fields = _fields(process)
    return int(fields[1]) if fields else None


def children(process):
    """Numbers of the processes that a process has started, with any of its threads."""
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return []
    return [int(number) for thread in threads for number in text_of(f"/proc/{process}/task/{thread}/children").split()]


def family(process):
    """Numbers of a process and of all that it and they have started."""
    return [process, *(one for child in children(process) for one in family(child))]


def held(process):
    """Bytes of memory that a process holds for good, files that it has mapped excepted; 0 where it has ended."""
    lines = text_of(f"/proc/{process}/status").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def started(process):
    """When a process was started, in seconds since 1970; None where it has ended."""
    fields = _fields(process)
    if not fields:
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def replaced_program(process):
    """Path of the program that a process runs, where another file has taken its place since; else empty."""
    try:
        path, gone, _rest = os.readlink(f"/proc/{process}/exe").partition(" (deleted)")
    except OSError:
        return ""
    return path if gone else ""
