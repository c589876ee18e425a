"""Output of commands: tables and sentences for a person, or one JSON object for a script; stdout gets nothing else.

File names, reasons and raw rows are untrusted. They are never interpreted as markup, and a character that could move
the cursor, change colours or reverse the text is printed as an escape.

Commands that take the key of one entry also accept a prefix of it, see `find_by_key`.
"""

from __future__ import annotations

import codecs
import difflib
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from typing import Annotated, Protocol, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest_project.core.errors import PermanentError
from ingest_project.core.logging import printable, to_json

# Width without a terminal: nothing is cut or wrapped, so that grep finds whole lines.
UNBOUNDED_WIDTH = 10_000
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Most to list.")]
Rows = Annotated[int, typer.Option(min=0, max=10_000, help="Most rows of each list.")]
MAX_SEARCHED = 1_000
SHOWN = 5
MIN_SIMILARITY = 0.4
# Number of decimal digits that a float can represent exactly.
EXACT_DIGITS = 15
Record_co = TypeVar("Record_co", covariant=True)
Record = TypeVar("Record")


def escape_unencodable() -> None:
    """Print a character that the encoding of this process's output lacks, as Latin-1 lacks most, as JSON escapes it."""
    codecs.register_error("json", _json_escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="json")


def stdout() -> Console:
    """Return the console for the result of a command."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress, hints and errors."""
    return _console(stderr=True)


def shortened(value: object, length: int) -> str:
    """Return printable text; on a terminal, cut it to a length with an ellipsis."""
    text = printable(value)
    return text if len(text) <= length or not stdout().is_terminal else text[: length - 1] + "…"


def cell(value: object, style: str = "") -> Text:
    """Return a value as a table cell, see `value_text`."""
    return Text(printable(value_text(value)), style)


def value_text(value: object) -> str:
    """Format any value for people, in the same way for commands, pages and alerts.

    None is empty, thousands are separated, a whole number has no decimals, times are in UTC.
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.{EXACT_DIGITS}g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def data_text(value: object) -> str:
    """Format a value of a row for people, the same in commands and pages: like `value_text`, but suitable to copy.

    Numbers have no thousands separators, as in databases: many are ids, years and offsets. A time includes the fraction
    of its second.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.{EXACT_DIGITS}g}" if isinstance(value, float) else str(value)
    text = value_text(value)
    if isinstance(value, datetime) and value.microsecond:
        return f"{text.removesuffix('Z')}{f'.{value:%f}'.rstrip('0')}{'Z' if value.tzinfo else ''}"
    return text


def moment(time: datetime) -> str:
    """Return a time to the second, in UTC; a time without a zone is not converted."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if time.tzinfo else f"{time:%Y-%m-%d %H:%M:%S}"


def ago(time: datetime) -> str:
    """Return the age of a time, rounded, e.g. `3 min ago`."""
    number, unit, *_ = length_of(datetime.now(UTC) - time).split()
    return f"{number} {unit} ago"


def length_of(time: timedelta) -> str:
    """Return a duration in its two largest units, e.g. `3 min 5 s`."""
    seconds = max(0, round(time.total_seconds()))
    units = [("d", seconds // 86_400), ("h", seconds // 3_600 % 24), ("min", seconds // 60 % 60), ("s", seconds % 60)]
    first = next((index for index, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count or unit == "s")


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, e.g. `1 file`, `2,000 files`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def counts(numbers: Mapping[str, int]) -> str:
    """Return names with their numbers, the largest first, e.g. `value_out_of_range 3, device_id_missing 1`."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{printable(name)} {number:,}" for name, number in ordered if number)


def table(*headings: str, numbers: Collection[str] = ()) -> Table:
    """Return an empty table.

    Args:
        headings: headings of the columns.
        numbers: headings of the columns with numbers.
    """
    new_table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        new_table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    return new_table


def add_row(to: Table, *values: object) -> None:
    """Add a row of any values, as printable text."""
    to.add_row(*(value if isinstance(value, Text) else cell(value) for value in values))


def say(text: str, *, style: str = "") -> None:
    """Print one line of result for a person. Unprintable characters are escaped."""
    stdout().print(Text(printable(text), style))


def complain(text: str) -> None:
    """Print one line on stderr. Unprintable characters are escaped."""
    stderr().print(Text(printable(text)))


def show(made: Table, title: str = "") -> None:
    """Print a table for a person, below an empty line and its title if it has one."""
    _show_title(title)
    console = stdout()
    if console.is_terminal:
        console.print(made)
        return
    with console.capture() as rendered:
        console.print(made)
    # Strip the padding: even the last column is padded to its width.
    typer.echo("\n".join(line.rstrip() for line in rendered.get().splitlines()))


def show_list(made: Table, things: str, *, more: bool, which: str = "first") -> None:
    """Print a table of search results, which may be empty or incomplete.

    Args:
        made: the table.
        things: plural noun for its rows, e.g. `files`.
        more: True if further results exist.
        which: part of the results in the table, e.g. `first`.
    """
    if not made.row_count:
        complain(f"No such {things}.")
        return
    show(made)
    if more:
        complain(f"The {which} {made.row_count:,}; --limit shows more.")


def show_facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Print one name and value per line, without names that have no value.

    Long values are not wrapped: an address that the terminal wraps can still be copied.
    """
    known = [(name, value) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        stdout().print(Text.assemble((f"{name:<{width}}  ", "bold"), cell(value)), soft_wrap=True)


def print_json(value: object) -> None:
    """Print a value as the one JSON object of this command; structs, times and enums included."""
    typer.echo(to_json(value, indent=2))


def report_check(problems: Sequence[str], usable: str, unchecked: str = "", *, as_json: bool) -> None:
    """Print the problems that a check found, and end the command with exit code 1 if there are any.

    Args:
        problems: problems, each with its file and line.
        usable: parts without problems, such as `2 datasets`.
        unchecked: sentence about the checks of another command.
        as_json: print one JSON object.
    """
    if unchecked:
        complain(unchecked)
    if as_json:
        print_json({"problems": problems})
    else:
        for problem in problems:
            complain(problem)
        say(f"{usable} usable, {counted(len(problems), 'problem')}.", style="red" if problems else "green")
    if problems:
        raise typer.Exit(1)


def _show_title(title: str) -> None:
    # Print it above the table: rich would wrap the table's own title at the table's width.
    if title:
        stdout().print()
        stdout().print(Text(printable(title), "bold"))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED_WIDTH
    return console


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - of an output
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


class UnknownKeyError(PermanentError):
    """No key, or more than one, has this prefix.

    Args:
        key: key as typed.
        nearest: similar keys.
    """

    def __init__(self, key: str, message: str, nearest: Sequence[str]) -> None:
        self.key = key
        self.nearest = tuple(nearest)
        super().__init__(printable(message))


class SearchableQueue(Protocol[Record_co]):
    """A work queue whose entries can be searched by key."""

    def get(self, key: str, /) -> Record_co | None:
        """Return the entry with this key."""

    def list(self, *, text: str | None = None, limit: int = 100) -> Sequence[Record_co]:
        """Return entries that contain the text."""


def find_by_key(
    queue: SearchableQueue[Record], key: str, key_of: Callable[[Record], str], noun: str, listing: str
) -> Record:
    """Return the entry with this key, or the only one whose key begins with it.

    Args:
        queue: queue to search.
        key: key, or prefix of a key, as typed.
        key_of: returns the key of an entry.
        noun: noun for an entry, for people.
        listing: command that lists the entries.

    Raises:
        UnknownKeyError: no key, or more than one; the message proposes the nearest keys.
    """
    if exact := queue.get(key):
        return exact
    containing = queue.list(text=key, limit=MAX_SEARCHED) if key else ()
    beginning = [record for record in containing if key_of(record).startswith(key)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        keys = [key_of(record) for record in beginning[:SHOWN]]
        message = f"{counted(len(beginning), 'key')} begin with {key!r}: {', '.join(keys)}"
        raise UnknownKeyError(key, message + (", ..." if len(beginning) > SHOWN else "."), keys)
    nearest = [key_of(record) for record in containing[:SHOWN]] or nearest_keys(
        key, [key_of(record) for record in queue.list(limit=MAX_SEARCHED)]
    )
    hint = f" Nearest: {', '.join(nearest)}." if nearest else f" `{listing}` lists the known ones."
    raise UnknownKeyError(key, f"No {noun} has the key {key!r}.{hint}", nearest)


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return the known keys that are most similar to this one, by name or as a whole."""
    by_name: dict[str, str] = {}
    for known_key in known:
        # Propose only the newest version of a name.
        by_name.setdefault(known_key.rpartition("~")[0], known_key)
    names = difflib.get_close_matches(key.rpartition("~")[0] or key, by_name, n=SHOWN, cutoff=MIN_SIMILARITY)
    whole = difflib.get_close_matches(key, known, n=SHOWN, cutoff=MIN_SIMILARITY)
    return list(dict.fromkeys([*whole, *(by_name[name] for name in names)]))[:SHOWN]
