"""What people see while the stack starts and stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.markup import escape

from ingest_project.core.terminal_text import printable
from ingest_project.devstack.system import Report, StepState

if TYPE_CHECKING:
    from rich.console import Console


def printed(console: Console) -> Report:
    """A report for `running_stack` that prints one line per event, with the seconds each step took."""
    started: dict[str, float] = {}

    def report(step: str, state: StepState) -> None:
        if state in (StepState.STARTING, StepState.STOPPING):
            started[step] = time.monotonic()
        seconds = time.monotonic() - started.get(step, time.monotonic())
        console.print(_line(escape(printable(step)), state, seconds), highlight=False)

    return report


def _line(step: str, state: StepState, seconds: float) -> str:
    match state:
        case StepState.STARTING:
            return f"[dim]Starting {step} …[/]"
        case StepState.READY:
            return f"[green]✓[/] {step} is ready [dim]({seconds:.1f} s)[/]"
        case StepState.EXTERNAL:
            return f"[green]✓[/] {step}: as set"
        case StepState.NOTE:
            return f"[yellow]{step}.[/]"
        case StepState.STOPPING:
            return f"[dim]Stopping {step} …[/]"
        case StepState.STOPPED:
            return f"[green]✓[/] {step} has stopped [dim]({seconds:.1f} s)[/]"
