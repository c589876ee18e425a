"""The first thing that a confined process runs: it limits itself, then becomes the script that it was started for."""

from __future__ import annotations

import resource
import runpy
import sys

OUT_OF_MEMORY = 9


def main() -> None:
    """Set the limits of the command line, then run the script with the rest of it."""
    memory_bytes, cpu_seconds, output_bytes = map(int, sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    del sys.argv[:4]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
