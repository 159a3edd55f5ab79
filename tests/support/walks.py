"""Random walks against a model, in an event loop of their own."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from support.world import World, new_world

T = TypeVar("T")


class WorldWalk(RuleBasedStateMachine):
    """A walk whose rules ask the application of a world."""

    world: ClassVar[World]
    runner: ClassVar["asyncio.Runner"]

    @classmethod
    def run(cls, new: Callable[[], AbstractAsyncContextManager[str]], folder: Path, examples: int, steps: int) -> None:
        """Walk so often, and so far, in a world whose database `new` makes."""
        # A factory, because a runner without one would take the event loop of the other tests with it when it closes.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as cls.runner:
            stack = contextlib.AsyncExitStack()

            async def start() -> World:
                return await stack.enter_async_context(new_world(await stack.enter_async_context(new()), folder))

            try:
                cls.world = cls.runner.run(start())
                run_state_machine_as_test(
                    cls,
                    settings=settings(max_examples=examples, stateful_step_count=steps),
                )
            finally:
                cls.runner.run(stack.aclose())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def empty(self, *tables: str) -> None:
        for table in tables:
            self.wait(self.world.database.execute(f"DELETE FROM {table}"))
