"""Frame of every benchmark: create its folder, and print its result as the last line."""

from __future__ import annotations

import argparse
import faulthandler
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

Result = dict[str, object]


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def measured_once(measure: Callable[[argparse.Namespace, Path], Result], options: argparse.Namespace) -> int:
    """Measure in a temporary folder and print the result; return the exit code.

    The folder is removed unless it is to be kept, or nothing was measured: then it has the logs, and the last line says
    why there is no result.
    """
    # A crash of a library written in C leaves no traceback otherwise.
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="ingest-benchmark-"))
    try:
        result = measure(options, folder)
    except BaseException as error:  # noqa: BLE001 - a stop signal as well ends without a result
        traceback.print_exc()
        result = {"exact": False, "no_result": f"{type(error).__name__}: {error}", "kept": str(folder)}
    if options.keep or "no_result" in result:
        say(f"Kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result), flush=True)
    return 0 if result["exact"] else 1
