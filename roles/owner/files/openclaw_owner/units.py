# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of this host's gateways: which they are, and the end of one that cannot be shown to be without a singleton."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

from .decision import Main

log = logging.getLogger("openclaw_owner")

#: Seconds that systemctl may take, and a killed process until it is gone.
DEADLINE = 3.0
_TICKS = os.sysconf("SC_CLK_TCK")
#: Processes that are that and nothing more.
_GONE = ("Z", "X", "x")


def now():
    """Seconds since the boot, those in which the host was suspended too: on what the kernel counts the start of processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started(pid):
    """When a process had started, None when it is gone. What is less than a tick is cut off: it was not earlier.

    :raises OSError: when /proc hides it
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name of the program stands in brackets, and may have any.
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        # That it cannot be seen is no proof that it is gone: a sandbox may hide it.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise OSError(f"/proc hides the process {pid}") from None
    return None if fields[0] in _GONE else int(fields[19]) / _TICKS


def lives(process):
    """Does the process (pid, started) live? One that is hidden does."""
    try:
        return process is not None and started(process[0]) == process[1]
    except OSError:
        return True


async def show(systemctl, unit):
    """The :class:`.decision.Main` of a unit.

    :raises OSError: when systemd does not tell
    """
    at = now()
    found = await _asked(systemctl, unit)
    pid = int(found["MainPID"])
    since = started(pid) if pid else None
    return Main(pid if since is not None else 0, since or 0.0, at, found.get("ActiveState") == "deactivating")


async def _asked(systemctl, unit):
    command = (systemctl, "show", "--property=MainPID,ActiveState", "--", unit)
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
    finally:
        # Cut off at the deadline: it must not stay behind.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    found = dict(line.split("=", 1) for line in out.decode("utf-8", "replace").splitlines() if "=" in line)
    if process.returncode or not found.get("MainPID", "").isdecimal():
        raise OSError(f"systemctl show {unit}: {err.decode('utf-8', 'replace').strip() or 'it says nothing of MainPID'}")
    return found


async def fence(systemctl, unit, known):
    """Kill the main process of a unit, and the process in which a singleton was turned on, and wait until they are gone.

    :param known: (pid, started) of the latter, None when there is none
    :returns: list of the pids that were killed
    :raises OSError: when systemd does not tell, or a process may not be killed
    """
    killed = []
    main = await show(systemctl, unit)
    if main.pid and await _kill(main.pid, lambda: _is_main(systemctl, unit, main)):
        killed.append(main.pid)
    if known and known[0] != main.pid and await _kill(known[0], lambda: _is_same(known)):
        killed.append(known[0])
    return killed


async def _is_main(systemctl, unit, main):
    again = await show(systemctl, unit)
    return (again.pid, again.started) == (main.pid, main.started)


async def _is_same(process):
    return lives(process)


async def _kill(pid, check):
    """Kill a process that ``check`` finds to be the one that is meant, after there is a handle of it: no other one can then get the signal."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not await check():
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        await _end(handle)
    finally:
        os.close(handle)
    return True


async def _end(handle):
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
    finally:
        loop.remove_reader(handle)
