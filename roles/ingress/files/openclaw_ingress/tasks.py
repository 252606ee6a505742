# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of tasks."""

from __future__ import annotations

import asyncio

#: Seconds after which one that goes on is cancelled again, and how often.
_AGAIN, _TIMES = 0.5, 5


async def end(tasks):
    """Cancel tasks and wait for them, for some seconds at most.

    A cancellation may be lost: when a timeout ends in the same moment, a library takes it for its own.
    """
    tasks = set(tasks)
    for _time in range(_TIMES):
        for task in tasks:
            task.cancel()
        if tasks:
            done, tasks = await asyncio.wait(tasks, timeout=_AGAIN)
            # What they failed of has been logged, or does not matter any more.
            await asyncio.gather(*done, return_exceptions=True)
