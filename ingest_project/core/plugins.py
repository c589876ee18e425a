"""Map names to parts of one kind: the shipped ones, and those of other packages, found by entry point.

Readers, sources, stores, decoders and alert channels each have one such mapping. A part is imported at its first use. A
package cannot replace a shipped part or another package's part; a part that cannot be used is left out, logged and
listed by `ingest config`, and everything else continues to work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from ingest_project.core.errors import PermanentError
from ingest_project.core.items import grouped
from ingest_project.core.logging import get_logger

logger = get_logger(__name__)

READERS = "ingest_project.readers"
SOURCES = "ingest_project.sources"
STORES = "ingest_project.stores"
DECODERS = "ingest_project.decoders"
ALERT_CHANNELS = "ingest_project.alert_channels"
CALLABLE = "__call__"

Part = TypeVar("Part")


@dataclass(frozen=True)
class InstalledPlugin:
    """A part from another package.

    Args:
        group: group of its entry point.
        name: name of its entry point.
        package: name and version of the distribution.
        problem: why it cannot be used; empty if it can.
    """

    group: str
    name: str
    package: str
    problem: str = ""


class Plugins(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name.

    Args:
        group: group of the entry points.
        shipped: `module:attribute` of each shipped part, by name.
        requires: attribute that every part must have, such as `read`.
    """

    def __init__(self, group: str, shipped: Mapping[str, str], requires: str = CALLABLE) -> None:
        self.group = group
        self._shipped = {name: EntryPoint(name, address, group) for name, address in shipped.items()}
        self._requires = requires
        self._loaded: dict[str, Part] = {}

    def __getitem__(self, name: str) -> Part:
        if name in self._shipped:
            # Cached, because every file looks up its reader.
            if name not in self._loaded:
                self._loaded[name] = self._shipped[name].load()
            return self._loaded[name]
        if name not in installed(self.group) or self._problem(name):
            raise KeyError(name)
        found: Part = _loaded(*installed(self.group)[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._shipped, *installed(self.group)}))

    def __len__(self) -> int:
        return len({*self._shipped, *installed(self.group)})

    def named(self, name: str, noun: str) -> Part:
        """Return the part with this name.

        Args:
            name: name of the part; untrusted.
            noun: noun for the kind of part in messages, e.g. `source_type`.

        Raises:
            PermanentError: the part does not exist (names the known ones), or cannot be used (names the reason).
        """
        if name in self._shipped:
            return self[name]
        if name not in installed(self.group):
            raise PermanentError(f"Unknown {noun} {name[:100]!r}. Known are: {', '.join(self)}.")
        if problem := self._problem(name):
            raise PermanentError(f"The {noun} {name!r} is a plug-in that cannot be used: {problem}")
        return self[name]

    def plugins(self) -> list[InstalledPlugin]:
        """Load the parts of other packages; return each with its problem, if any."""
        return [
            InstalledPlugin(self.group, name, ", ".join(_package(point) for point in points), self._problem(name))
            for name, points in installed(self.group).items()
        ]

    def problem_of(self, name: str) -> str:
        """Return why the plug-in with this name cannot be used; empty for a usable one, and for any other name."""
        return self._problem(name) if name in installed(self.group) and name not in self._shipped else ""

    def _problem(self, name: str) -> str:
        points = installed(self.group)[name]
        if name in self._shipped:
            problem = f"A shipped part is called {name!r}. Rename the entry point."
        elif len(points) > 1:
            problem = f"Several packages bring a part called {name!r}. Uninstall all but one."
        else:
            problem = _load_problem(points[0], self._requires)
        return problem


@cache
def installed(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of other packages in a group, by name, without importing them."""
    found = grouped((point.name, point) for point in entry_points(group=group))
    return {name: tuple(points) for name, points in sorted(found.items())}


@cache
def _loaded(point: EntryPoint) -> Any:  # noqa: ANN401 - of whatever kind the group has
    return point.load()


@cache
def _load_problem(point: EntryPoint, requires: str) -> str:
    """Return why a part cannot be used, once per process; empty if it can."""
    try:
        part = _loaded(point)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - another package may raise anything while it is imported
        problem = f"{point.value} cannot be imported: {type(error).__name__}: {str(error)[:300]}"
    else:
        is_plain = requires == CALLABLE or not isinstance(part, type)
        usable = hasattr(part, requires) and is_plain
        problem = "" if usable else f"{point.value} is no object with {requires!r}."
    if problem:
        logger.warning("plugin_broken", group=point.group, name=point.name, problem=problem)
    return problem


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
