"""Files of this system are for its own user alone.

Rows, attachments, logs and SQLite files hold what others should not read, and most are made by libraries that know no
modes. So every process of ours sets its umask first: folders become 0700 and files 0600, whoever makes them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER_MODE = 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_files_private() -> None:
    """Close what this process and its children make from now on to all other users."""
    os.umask(OTHERS)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, for this user alone; one that is there is left as it is.

    Raises:
        OSError: it cannot be made, or a file of that name is there.
    """
    for place in reversed((folder, *folder.parents)):
        if not place.is_dir():
            place.mkdir(FOLDER_MODE, exist_ok=True)
