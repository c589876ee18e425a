"""Compile the shared imports of the test processes once, before each process would do it itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from _pytest.assertion.rewrite import (
    PYC_TAIL,
    _read_pyc,
    _rewrite_test,
    _write_pyc,
    assertstate_key,
    get_cache_dir,
    try_makedirs,
)


def compile_once(config: pytest.Config, folder: Path) -> None:
    """Rewrite the assertions of every test module as pytest does; what is compiled already stays.

    Args:
        config: of this run.
        folder: of the modules.
    """
    modules = [path for path in sorted(folder.rglob("*.py")) if path.name.startswith(("test_", "conftest"))]
    missing = [path for path in modules if _read_pyc(path, _compiled(path)) is None]
    children = [_forked(partial(_rewrite, config, missing[half::2])) for half in range(2) if missing[half:]]
    for child in children:
        os.waitpid(child, 0)


def _forked(work: Callable[[], object]) -> int:
    if pid := os.fork():
        return pid
    try:
        work()
    finally:
        # Whatever does not work here is done, or shown, where the module is imported.
        os._exit(0)


def _rewrite(config: pytest.Config, modules: list[Path]) -> None:
    for path in modules:
        source_hash, code = _rewrite_test(path, config)
        if try_makedirs(get_cache_dir(path)):
            _write_pyc(config.stash[assertstate_key], code, source_hash, _compiled(path))


def _compiled(path: Path) -> Path:
    return get_cache_dir(path) / f"{path.stem}{PYC_TAIL}"
