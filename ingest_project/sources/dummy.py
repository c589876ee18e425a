"""The example files that come with the project, `source_type` dummy.

Everything a local source does, with one more convenience: a path is understood as a name inside the dummy folder as
well, so that the same job works wherever the process was started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest_project.sources.allowed_roots import Roots
from ingest_project.sources.context import SourceContext
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.local import LocalSource


def open_dummy(source_config: Mapping[str, Any], access: SourceContext) -> LocalSource:
    """The folder of INGEST_DUMMY_ROOT; without a path, all of it."""
    root = access.settings.dummy_root
    roots = Roots.of([root], setting="INGEST_DUMMY_ROOT", hard_links=access.settings.allow_hard_links)

    def place(path: str) -> Path:
        return _place(path, root)

    return LocalSource(str(source_config.get("path") or root), roots, place, SourceLimits.of(access.settings))


def _place(path: str, root: Path) -> Path:
    """Relative to the current folder where that is inside the root; otherwise inside the root, or beside its name."""
    from_here = Path(path)
    resolved_root = os.path.realpath(root)
    if from_here.is_absolute() or _is_inside(from_here, resolved_root):
        return from_here
    first, *rest = from_here.parts or (".",)
    return Path(resolved_root, *rest) if first == root.name else Path(resolved_root, path)


def _is_inside(place: Path, folder: str) -> bool:
    try:
        return Path(os.path.realpath(place)).is_relative_to(folder)
    except ValueError:
        return False  # a name that no file can have; opening it says so
