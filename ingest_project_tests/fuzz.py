"""Run every property test again and again with new random inputs until the time is up: `make fuzz`.

The property tests are those of `make test`, which draws the same few inputs in each run. Each round here draws others,
from a new seed. A failing round ends the run and prints the falsifying example, its seed and the command that repeats
it.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time

from hypothesis import settings

PROFILE = "fuzz"
# What a test draws that states no number, in the long run and in the ordinary one; and the least where it states one.
EXAMPLES, FEW_EXAMPLES, FEWEST_EXAMPLES = 100, 10, 3


def examples(number: int) -> int:
    """Return how many examples a test draws that states a number: that many, and fewer in the ordinary run."""
    return min(number, max(FEWEST_EXAMPLES, number * settings().max_examples // EXAMPLES))


def main() -> int:
    """Run rounds until the minutes are over or one fails; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (default: 10)")
    parser.add_argument("paths", nargs="*", help="test files or folders; all of them by default")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    rounds = 0
    while time.monotonic() < deadline:
        command = _command(secrets.randbelow(2**32), options.paths)
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"Round {rounds + 1} failed. Repeat it with: {' '.join(command)}")  # noqa: T201 - its output
            return code
        rounds += 1
    print(f"{rounds} rounds in {options.minutes:g} minutes, none failed.")  # noqa: T201 - its output
    return 0


def _command(seed: int, paths: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-m", "hypothesis", "--tb=short"),
        *(f"--hypothesis-profile={PROFILE}", f"--hypothesis-seed={seed}"),
        *paths,
    ]


if __name__ == "__main__":
    sys.exit(main())
