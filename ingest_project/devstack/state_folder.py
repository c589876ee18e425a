"""The state folder of the embedded services: its lock, its sockets, and the file with the services' addresses.

The addresses override settings of this process, and its children inherit them through their environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
from pydantic import SecretStr

from ingest_project.core.errors import IngestError, PermanentError
from ingest_project.core.local_files import FOLDER_MODE, make_private_folder, owner_only
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import LoadedSettings, Origin
from ingest_project.core.yaml_models import FILE_ENDING

# A socket's path has at most 107 bytes on Linux and 103 on macOS, including the name of the socket.
MAX_SOCKET_PATH_BYTES = 103
LOCK, LOGS, SERVICES = "lock", "logs", "services.json"
LONGEST_SOCKET_FILE = ".s.PGSQL.5432.lock"
# Settings that children inherit: the addresses of the services that this process started.
INHERITED = (
    "kafka.bootstrap_servers",
    "kafka.generation",
    "warehouse.database_url",
    "dagster.postgres_url",
    "dagster.webserver_url",
    # The demo's web server has an internal address.
    "downloads.allowed_internal_hosts",
    # The demo expects the hourly statistics as soon as the events are stored.
    "user_activity.hourly_refresh_seconds",
)


class StateFolderInUseError(IngestError):
    """Another process runs the services of this folder."""

    def __init__(self, folder: Path, pid: str) -> None:
        super().__init__(
            f"The services of {folder} are run by another `ingest dev` or `make demo`"
            f"{f' (process {pid})' if pid else ''}. Use that one, stop it, or set INGEST_STATE_DIR to another folder."
        )


class StateFolderUnusableError(PermanentError):
    """The state folder, or something in it, cannot be read or written.

    Args:
        folder: folder as configured.
        reason: the problem; starts in lower case, ends without a full stop.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"The state folder {folder} cannot be used: {reason}. "
            "Correct that, or set INGEST_STATE_DIR to a folder that this user can write to."
        )


@contextmanager
def folder_failures(folder: Path) -> Iterator[None]:
    """Map operating-system errors in the state folder to one sentence.

    Raises:
        StateFolderUnusableError: a file in the folder cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        if not any(path.is_relative_to(folder) or folder.is_relative_to(path) for path in paths):
            raise
        raise StateFolderUnusableError(folder, _reason(paths[0], error)) from error


def prepare(folder: Path) -> None:
    """Create the folder for this user only if it is missing, and close an existing one of ours to other users.

    Raises:
        StateFolderUnusableError: the path is a file, belongs to another user, or cannot be written to.
    """
    with folder_failures(folder):
        make_private_folder(folder)
        status = folder.stat()
        user = os.geteuid()
        if user not in (0, status.st_uid):
            raise StateFolderUnusableError(
                folder, f"it belongs to {_name_of(status.st_uid)}, and this is {_name_of(user)}"
            )
        # Only change a folder that this system has used before, never a shared one such as /tmp.
        if status.st_uid == user and not status.st_mode & stat.S_ISVTX and (folder / LOCK).exists():
            folder.chmod(FOLDER_MODE)
        make_private_folder(folder / LOGS)


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{_file_in_path(path)} is a file"
    if isinstance(error, PermissionError):
        return f"{_name_of(os.geteuid())} may not use {path}{_owner_of(path)}"
    return f"{path}: {error.strerror or error}"


def _file_in_path(path: Path) -> Path:
    return next((one for one in (*reversed(path.parents), path) if one.exists() and not one.is_dir()), path)


def _owner_of(path: Path) -> str:
    with suppress(OSError):
        return f", which belongs to {_name_of(path.stat().st_uid)}"
    return ""


def _name_of(user: int) -> str:
    with suppress(KeyError):
        return f"user {pwd.getpwuid(user).pw_name}"
    return f"user id {user}"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the lock of a killed process is released.

    Raises:
        StateFolderInUseError: another process has locked it.
    """
    lock = filelock.FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StateFolderInUseError(folder, (folder / LOCK).read_text("ascii").strip()) from None
    try:
        (folder / LOCK).write_text(f"{os.getpid()}\n", "ascii")
        yield
    finally:
        lock.release()


@contextmanager
def announced(folder: Path, addresses: Mapping[str, object]) -> Iterator[None]:
    """Publish the services' addresses to other commands on this machine (`services.json`) until the block ends."""
    announce(folder, addresses)
    try:
        yield
    finally:
        (folder / SERVICES).unlink(missing_ok=True)


def announce(folder: Path, addresses: Mapping[str, object]) -> None:
    """Write `services.json`; replace an earlier one atomically."""
    fresh = folder / f".{SERVICES}.{os.getpid()}"
    # The file contains the database's password.
    with open(fresh, "w", encoding="utf-8", opener=owner_only) as file:
        json.dump({"pid": os.getpid(), "settings": dict(addresses)}, file, indent=1)
    fresh.replace(folder / SERVICES)


def socket_folder(folder: Path, name: str, owner: int | None = None) -> Path:
    """Create a folder for sockets that only its owner may enter, with a sufficiently short path.

    Args:
        folder: state folder, in which it is created if the path is short enough.
        name: name of the socket folder in the state folder.
        owner: user id of the owner; this process's own by default.

    Raises:
        PermanentError: another user owns a folder of that name.
    """
    return _private(_socket_folder(folder, name), owner)


def remove_socket_folder(folder: Path, name: str) -> None:
    """Remove a socket folder with its content, if it exists."""
    shutil.rmtree(_socket_folder(folder, name), ignore_errors=True)


def _socket_folder(folder: Path, name: str) -> Path:
    inside = folder / name
    if len(os.fsencode(inside / LONGEST_SOCKET_FILE)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"ingest-{os.getuid()}-{digest}-{name}"


def _private(folder: Path, owner: int | None) -> Path:
    try:
        folder.mkdir(mode=0o700)
        if owner is not None and owner != os.getuid():
            os.chown(folder, owner, -1)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != (os.getuid() if owner is None else owner):
            raise PermanentError(f"{folder} belongs to another user. Remove it, or set INGEST_STATE_DIR.") from None
        folder.chmod(0o700)
    return folder


def is_chosen(loaded: LoadedSettings, path: str) -> bool:
    """Return True if a person set the setting in any source."""
    return loaded.origins.get(path, Origin.DEFAULT) not in (Origin.DEFAULT, Origin.EMBEDDED)


def with_addresses(loaded: LoadedSettings, addresses: Mapping[str, Any]) -> LoadedSettings:
    """Override settings with the addresses of the services that `ingest dev` started.

    Args:
        loaded: settings as loaded.
        addresses: addresses by the path of the setting, e.g. `kafka.bootstrap_servers`.
    """
    settings = loaded.settings
    for path, value in addresses.items():
        section_name, _, name = path.partition(".")
        section = getattr(settings, section_name)
        changed = type(section).model_validate({**dict(section), name: value})
        settings = settings.model_copy(update={section_name: changed})
    return LoadedSettings(settings, {**loaded.origins, **dict.fromkeys(addresses, Origin.EMBEDDED)})


def child_environment(loaded: LoadedSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that gives a child process the same settings, regardless of their origin.

    A file in the current folder cannot replace a module of the child.
    """
    # Dagster drops the first folder of the path, which is the current one without PYTHONSAFEPATH.
    path = os.pathsep.join([os.devnull, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))])
    state_dir = str(loaded.settings.state_dir.absolute())
    inherited = {"PYTHONSAFEPATH": "1", "PYTHONPATH": path, "INGEST_STATE_DIR": state_dir}
    for setting in loaded.each():
        if setting.path in INHERITED and (text := _plain(setting.value)):
            inherited[setting.env_names[0]] = text
    # Remove the variable that names a secret's file: it would set the same setting twice.
    files = {f"{name}{FILE_ENDING.upper()}" for name in inherited}
    return {**{name: value for name, value in environ.items() if name not in files}, **inherited}


def _plain(value: object) -> str:
    if isinstance(value, SecretReference):
        return value.reference
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
