"""Print tables and sentences for a person: results on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Without a terminal nothing is cut or wrapped: lines are for grep.
UNBOUNDED_WIDTH = 10_000


def say(text: str) -> None:
    """Print one sentence of the result."""
    _console().print(Text(text))


def note(text: str) -> None:
    """Print what happens, on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table.

    Args:
        title: above it.
        columns: their headings, all of them empty for none; one that begins with # holds numbers.
        rows: a value for each column.
    """
    made = Table(box=None, show_header=any(columns), header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else Text(_text(value)) for value in row))
    console = _console()
    console.print()
    console.print(Text(title, "bold"))
    console.print(made)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else UNBOUNDED_WIDTH, highlight=False)
