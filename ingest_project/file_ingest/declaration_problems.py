"""Problems of reader profiles and declared datasets that need no file to be found, as operators see them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from ingest_project.core.settings import Settings
from ingest_project.core.yaml_models import yaml_files

MAX_SHOWN = 20

Stamps = tuple[tuple[Path, int], ...]
_lock = threading.Lock()
_last: tuple[Stamps, tuple[str, ...]] = ((), ())


def declaration_problems(settings: Settings) -> tuple[str, ...]:
    """Return one sentence for each broken profile or declaration of a user, with its file and line.

    The files are read again only after one of them has changed: the monitor reads them every few seconds.
    """
    global _last  # noqa: PLW0603 - one result per process
    stamps = tuple(_stamps(settings))
    with _lock:
        if stamps != _last[0]:
            _last = (stamps, _problems(settings))
        return _last[1]


def _stamps(settings: Settings) -> Iterator[tuple[Path, int]]:
    """Yield every file of a user's declarations with its time of change; a missing one with 0."""
    folder = settings.declarations
    for path in [*yaml_files(settings.file_ingest.profiles), *sorted(folder.glob("**/*.y*ml"))]:
        try:
            yield path, path.stat().st_mtime_ns
        except OSError:
            yield path, 0


def _problems(settings: Settings) -> tuple[str, ...]:
    # Both bring Polars, which a system without declarations of its own does not need here.
    from ingest_project.readers.datasets import load_declarations  # noqa: PLC0415
    from ingest_project.readers.profiles import load_profiles  # noqa: PLC0415

    broken = [one.problem for one in load_profiles(settings.file_ingest.profiles).broken]
    broken += [one.problem for one in load_declarations(settings).broken]
    return tuple(broken[:MAX_SHOWN])
