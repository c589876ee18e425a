"""Store a batch so that one bad item costs itself alone: halve what fails until the culprit stands alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def store_bisecting(
    items: Sequence[Item],
    store: Callable[[Sequence[Item]], object],
    is_item_fault: Callable[[Exception], bool],
) -> list[tuple[Item, Exception]]:
    """Store all items in one call; where that fails, store the halves, down to single items.

    One bad item among n costs about 2 log2(n) more calls; n bad ones cost 2n.

    Args:
        items: in the order in which they are stored. An empty sequence stores nothing.
        store: stores some of the items, always neighbours. A call that raises has stored none of them, or storing
            them again leaves the same state.
        is_item_fault: tells an error that items may be to blame for from one of the store itself, such as a database
            that is away: halving would not help there.

    Returns:
        the items that could not be stored even alone, in their order, each with the error that it caused.

    Raises:
        Exception: whatever `store` raised that is no item's fault. What was stored before it stays stored.
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
