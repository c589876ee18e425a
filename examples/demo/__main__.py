"""Run the demo as a command: `python -m examples.demo`, or `python examples/demo` in any folder."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Started by its path: Python then looks for modules in this folder, not in the checkout.
    sys.path[0] = str(Path(__file__).parents[2])

from examples.demo.run import main

if __name__ == "__main__":
    main()
