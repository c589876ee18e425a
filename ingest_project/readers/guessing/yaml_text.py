"""Write a proposed declaration as YAML, each value with a comment that says what it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import yaml

from ingest_project.core.logging import printable

QUESTION = "QUESTION: "
WIDTH = 1_000_000


@dataclass
class Draft:
    """Lines of YAML.

    Args:
        lines: written so far.
        questions: that a person must answer.
        indent: of further lines, in steps of two blanks.
    """

    lines: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    indent: int = 0

    def add(self, key: str, value: object = None, comment: str = "", *, question: str = "", depth: int = 0) -> None:
        """Add a key with its value; None begins a group of further keys."""
        text = f"{scalar(key)}:" + ("" if value is None else f" {scalar(value)}")
        self._add(text, comment, question, depth)

    def item(self, value: object, comment: str = "", *, question: str = "", depth: int = 0) -> None:
        """Add an item of a list."""
        self._add(f"- {scalar(value)}", comment, question, depth)

    def _add(self, text: str, comment: str, question: str, depth: int) -> None:
        if question:
            self.questions.append(question)
        said = "; ".join(part for part in (comment, QUESTION + question if question else "") if part)
        self.lines.append("  " * (self.indent + depth) + text + (f"  # {printable(said)}" if said else ""))

    def text(self, above: Iterable[str] = ()) -> str:
        """Return the YAML, below these lines of comment."""
        head = [f"# {printable(line)}" for line in above]
        if self.questions:
            number = len(self.questions)
            head.append(f"# {number} question{'s' if number > 1 else ''} for a person: see QUESTION below.")
        return "\n".join([*head, *self.lines, ""])


def scalar(value: object) -> str:
    """Return a value as YAML on one line: a text with line ends, which a file may have in a name, is escaped."""
    text = _dumped(value)
    return _dumped(value, style='"') if "\n" in text else text


def _dumped(value: object, style: str | None = None) -> str:
    text = yaml.safe_dump(
        value, allow_unicode=True, default_flow_style=True, default_style=style, width=WIDTH, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
