"""Other users of the machine cannot read the files of a demo."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ingest_project_tests.after_a_demo.finished_demo import Demo


def test_folders_and_files_of_the_state_folder_are_for_one_user_alone(demo: Demo) -> None:
    state_dir = Path(demo.environment["INGEST_STATE_DIR"])
    modes = {}
    for folder, _, names in os.walk(state_dir):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            # Files of the database and of Dagster come and go; a socket is as open as its folder.
            if path.exists() and not (path.is_symlink() or path.is_socket()):
                modes[str(path.relative_to(state_dir))] = stat.S_IMODE(path.stat().st_mode)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert {name.split("/")[0] for name in modes} >= {
        "attachments",
        "dagster_home",
        "delta",
        "landing",
        "logs",
        "postgres",
    }
