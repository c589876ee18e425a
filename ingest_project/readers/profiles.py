"""Reader profiles: the layout of one kind of file.

A profile is a YAML file. The shipped ones are in shipped_profiles/; a user's own are named in INGEST_READER_PROFILES,
and replace a shipped one of the same name. A file is read by the profile that its event's metadata names as `format`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.logging import get_logger
from ingest_project.core.yaml_models import AsWritten, mistakes_in, nearest, yaml_content, yaml_files
from ingest_project.readers.profile_parts import (
    NumberLayout,
    Quantity,
    TimestampLayout,
    first_group,
)
from ingest_project.readers.reader_profile import (
    DEFAULT_NULLS,
    SENSOR_READINGS,
    ReaderProfile,
)

__all__ = [
    "DEFAULT_NULLS",
    "SENSOR_READINGS",
    "NumberLayout",
    "Profiles",
    "Quantity",
    "ReaderProfile",
    "TimestampLayout",
    "first_group",
    "load_profiles",
]

logger = get_logger(__name__)

SHIPPED_PROFILES = Path(__file__).parent / "shipped_profiles"
NAME_LINE = re.compile(r"""^\s*["']?name["']?\s*:\s*["']?([a-z0-9][a-z0-9_-]*)""", re.MULTILINE)


@dataclass(frozen=True)
class BrokenProfile:
    """A profile that cannot be used.

    Args:
        name: by which files name it; None where not even that is known.
        problem: which file, which line, and what is wrong.
    """

    name: str | None
    problem: str


class Profiles(Mapping[str, ReaderProfile]):
    """Usable reader profiles by name, and the broken ones.

    A broken one rejects only the files that name it; a shipped one of the same name does not replace it.
    """

    def __init__(
        self,
        usable: Mapping[str, ReaderProfile],
        broken: Sequence[BrokenProfile] = (),
        shipped: Mapping[str, ReaderProfile] | None = None,
    ) -> None:
        self.broken = tuple(broken)
        unusable = {profile.name for profile in broken}
        self._usable, self._shipped = usable, shipped or {}
        self._names = [name for name in {**dict.fromkeys(self._shipped), **usable} if name not in unusable]

    def __getitem__(self, name: str) -> ReaderProfile:
        if name not in self._names:
            raise KeyError(name)
        return self._usable[name] if name in self._usable else self._shipped[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def of_dataset(self, dataset: str) -> dict[str, ReaderProfile]:
        """Return the profiles for files of one dataset; all shipped ones are for sensor readings."""
        names = self._names if dataset == SENSOR_READINGS else self._usable
        return {name: self[name] for name in names if name in self._names and self[name].dataset == dataset}

    def named(self, name: str) -> ReaderProfile:
        """Return the profile of this name.

        Raises:
            FileRejectedError: `broken_profile` or `unknown_profile`; the file can be ingested again once the
            profile is fixed.
        """
        if name in self._names:
            return self[name]
        broken = [profile.problem for profile in self.broken if profile.name == name]
        if broken:
            raise FileRejectedError("broken_profile", f"The reader profile {name!r} cannot be used: {' '.join(broken)}")
        nameless = "".join(f" Not usable: {profile.problem}" for profile in self.broken if profile.name is None)
        known = f"{nearest(name, self)}. Known: {', '.join(self)}."
        raise FileRejectedError("unknown_profile", f"No reader profile {name!r}{known}{nameless}")


class _Shipped(Mapping[str, ReaderProfile]):
    """The shipped profiles, each in the file of its name; read when first used, as most processes need one of them."""

    def __init__(self) -> None:
        self._paths = {path.stem: path for path in yaml_files([SHIPPED_PROFILES])}

    def __getitem__(self, name: str) -> ReaderProfile:
        return _read_shipped(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@cache
def _read_shipped(path: Path) -> ReaderProfile:
    return read_profile(path)


def load_profiles(paths: Sequence[Path] = ()) -> Profiles:
    """Load the shipped profiles and a user's own, by name; list a broken one of a user as broken, and log it.

    Args:
        paths: YAML files with one profile each, or folders of such files.
    """
    own: dict[str, ReaderProfile] = {}
    paths_by_name: dict[str, Path] = {}
    broken: list[BrokenProfile] = []
    for path in yaml_files(paths):
        try:
            profile = read_profile(path)
        except SettingsError as error:
            broken.append(BrokenProfile(_name_in(path), str(error)))
            continue
        if profile.name in own:
            problem = (
                f"{path}: a reader profile named {profile.name!r} already exists in {paths_by_name[profile.name]}."
            )
            broken.append(BrokenProfile(profile.name, problem))
        own[profile.name], paths_by_name[profile.name] = profile, path
    for each in broken:
        logger.warning("reader_profile_broken", profile=each.name, problem=each.problem)
    return Profiles(own, broken, _Shipped())


def read_profile(path: Path) -> ReaderProfile:
    """Read the profile in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a profile; names the file, the line and what is wrong.
    """
    content = yaml_content(path, "reader profile", AsWritten)
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, like the profiles in {SHIPPED_PROFILES}.")
    try:
        return ReaderProfile.model_validate(content)
    except ValidationError as error:
        raise SettingsError(mistakes_in(path, "a reader profile", error)) from None


def _name_in(path: Path) -> str | None:
    """Find the name in a file that is no valid profile, perhaps not even YAML."""
    try:
        match = NAME_LINE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match else None
