"""Frame of every benchmark: create its folder, and print its result as the last line."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

Result = dict[str, object]


def say(text: str) -> None:
    """Tell what happens, on standard error."""
    print(text, file=sys.stderr, flush=True)


def measured_once(measure: Callable[[argparse.Namespace, Path], Result], options: argparse.Namespace) -> int:
    """Measure in a folder of its own, which goes afterwards unless it is to be kept; the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-benchmark-"))
    try:
        result = measure(options, folder)
    finally:
        if options.keep:
            say(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result), flush=True)
    return 0 if result["exact"] else 1
