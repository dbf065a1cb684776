import asyncio
from collections.abc import Callable

import pytest

from api.turns import Turns


async def order(turns: Turns, requests: list[str], hold: Callable[[], object] | None = None) -> list[str]:
    """The tenants of `requests` in the order in which they got their places, all of them waiting from the start."""
    served: list[str] = []

    async def one(tenant: str) -> None:
        async with turns.place(tenant):
            served.append(tenant)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for tenant in requests:
            group.create_task(one(tenant))
            await asyncio.sleep(0)
    return served


def test_tenants_are_served_in_turn() -> None:
    served = asyncio.run(order(Turns(1), ["a"] * 6 + ["b"] * 3 + ["c"]))
    assert served == ["a", "b", "c", "a", "b", "a", "b", "a", "a", "a"]


def test_a_tenant_of_weight_two_has_two_turns_for_one() -> None:
    served = asyncio.run(order(Turns(1, {"a": 2, "b": 1}.__getitem__), ["a"] * 6 + ["b"] * 6))
    assert served[:9].count("a") == 6
    assert served[9:] == ["b"] * 3


def test_a_tenant_leaves_one_place_while_others_wait_and_has_all_when_alone() -> None:
    async def run() -> None:
        turns = Turns(3)
        async with turns.place("a"), turns.place("a"), turns.place("a"):
            assert turns.is_full
            waiting = [asyncio.create_task(order(turns, [tenant])) for tenant in "abab"]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert turns.n_waiting == 4
        assert [await task for task in waiting] == [["a"], ["b"], ["a"], ["b"]]
        assert (turns.n_waiting, turns.is_full) == (0, False)

    asyncio.run(run())


def test_the_place_that_is_freed_goes_to_the_one_that_waits_even_when_the_other_came_first() -> None:
    async def run() -> list[str]:
        turns, served = Turns(2), list[str]()
        freed = asyncio.Event()

        async def one(tenant: str) -> None:
            async with turns.place(tenant):
                served.append(tenant)
                await freed.wait()

        tasks = [asyncio.create_task(one(tenant)) for tenant in ("a", "a", "a", "a", "b")]
        await asyncio.sleep(0.01)
        assert served == ["a", "a"]
        freed.set()
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(run()) == ["a", "a", "b", "a", "a"]


def test_whoever_leaves_or_waits_too_long_keeps_no_place() -> None:
    async def run() -> None:
        turns = Turns(1)
        async with turns.place("a"):
            with pytest.raises(TimeoutError):
                async with turns.place("b", 0.01):
                    pass
            task = asyncio.create_task(order(turns, ["c"]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert turns.n_waiting == 0
        assert await asyncio.wait_for(order(turns, ["b", "c"]), 5) == ["b", "c"]

    asyncio.run(run())


def test_a_place_granted_to_one_that_is_cancelled_goes_to_the_next() -> None:
    async def run() -> None:
        turns = Turns(1)

        async def hold() -> None:
            async with turns.place("a"):
                await asyncio.sleep(10)

        first = turns.place("a")
        await first.__aenter__()
        second = asyncio.create_task(hold())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # grants it to the second, which has not run yet
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not turns.is_full
        assert await asyncio.wait_for(order(turns, ["b"]), 5) == ["b"]

    asyncio.run(run())
