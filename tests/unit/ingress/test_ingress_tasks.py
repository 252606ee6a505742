"""Tasks end, also those that have missed that they were told to."""

import asyncio

from openclaw_ingress import tasks


def test_one_that_takes_the_first_cancellation_for_something_else_ends_all_the_same():
    async def deaf(times):
        while True:
            try:
                await asyncio.sleep(3600)  # nothing comes
            except asyncio.CancelledError:
                times -= 1
                if times < 0:
                    raise

    async def work():
        made = [asyncio.ensure_future(deaf(times)) for times in (0, 1)]
        await asyncio.sleep(0)  # they begin
        await tasks.end(made)
        assert all(one.cancelled() for one in made)
        # One that never ends is no reason never to end.
        never = asyncio.ensure_future(deaf(tasks._TIMES))  # pylint: disable=protected-access
        await asyncio.sleep(0)  # it begins
        await tasks.end([never])
        assert not never.done()
        await tasks.end([])
        await tasks.end([never])
        assert never.cancelled()

    asyncio.run(work())
