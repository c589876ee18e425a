"""Keep files of this system private to its own user.

Rows, attachments, logs and SQLite files hold what other users should not read, and most are made by libraries that do
not set modes. So every process of ours sets its umask first: folders become 0700 and files 0600.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER_MODE = 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_files_private() -> None:
    """Close the files that this process and its children make from now on to all other users."""
    os.umask(OTHERS)


def make_private_folder(folder: Path) -> None:
    """Make a folder and its missing parents for this user alone; existing ones are left as they are.

    Raises:
        OSError: it cannot be made, or a file of that name exists.
    """
    for part in reversed((folder, *folder.parents)):
        if not part.is_dir():
            part.mkdir(FOLDER_MODE, exist_ok=True)
