"""Making the next thing while the one before it is used: reading is one process's work, storing another's."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetch(made: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """What a generator makes, each next thing in a thread of its own while the caller works on the one before.

    What the generator raises is raised where its next item is asked for. When the block is left, it is closed, and
    nothing goes on behind the caller's back.

    Args:
        made: never makes None.
    """
    with closing(made), ThreadPoolExecutor(1, thread_name_prefix="ahead") as maker:
        yield _items(made, maker)


def _items(made: Generator[Item, None, None], maker: ThreadPoolExecutor) -> Iterator[Item]:
    # What is bound for log lines is bound in the other thread as well.
    context = copy_context()

    def following() -> Item | None:
        return context.run(lambda: next(made, None))

    coming = maker.submit(following)
    while (item := coming.result()) is not None:
        coming = maker.submit(following)
        yield item
