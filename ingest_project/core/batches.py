"""Work on batches: prefetch the next one while one is stored, and isolate the item that makes one fail."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetch(items: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """Iterate over a generator that makes its next item in a background thread while the caller uses the last one.

    An exception of the generator is raised when the caller requests the next item. When the block ends, the generator
    and the thread have ended as well.

    Args:
        items: yields anything but None.
    """
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="prefetch") as worker:
        yield _prefetched(items, worker)


def store_bisecting(
    items: Sequence[Item],
    store: Callable[[Sequence[Item]], object],
    is_item_fault: Callable[[Exception], bool],
) -> list[tuple[Item, Exception]]:
    """Store all items in one call; if that fails, store the halves, down to single items.

    One bad item among n costs about 2 log2(n) more calls; n bad ones cost 2n.

    Args:
        items: in the order in which they are stored. An empty sequence stores nothing.
        store: stores some of the items, always neighbours. A call that raises has stored none of them, or storing
            them again leaves the same state.
        is_item_fault: returns True for an error that an item may have caused, False for one of the store itself, such
            as a database that does not answer: halving would not help there.

    Returns:
        the items that could not be stored even alone, in order, each with the error it caused.

    Raises:
        Exception: an error of `store` that no item caused. What was stored before it stays stored.
    """
    failures: list[tuple[Item, Exception]] = []
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        try:
            store(part)
        except Exception as error:
            if not is_item_fault(error):
                raise
            if len(part) == 1:
                failures.append((part[0], error))
                continue
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
    return failures


def _prefetched(items: Generator[Item, None, None], worker: ThreadPoolExecutor) -> Iterator[Item]:
    # Fields that are bound for log lines are bound in the thread as well.
    context = copy_context()

    def make_next() -> Item | None:
        return context.run(lambda: next(items, None))

    coming = worker.submit(make_next)
    while (item := coming.result()) is not None:
        coming = worker.submit(make_next)
        yield item
