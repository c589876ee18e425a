"""Files that a pattern does not reach because they lie in folders: what a look that found nothing can say of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    UnreadableListingError,
)
from ingest_project.sources.connection_pool import Account, ConnectionPool
from ingest_project.sources.limits import ListingBudget, SourceLimits
from ingest_project.sources.protocol import Skipped, Source, SourceFile
from ingest_project.sources.selection import ANY_DEPTH, Pattern, refusal
from ingest_project.sources.server_connection import Entry, Kind, NameCoding, ServerConnection, is_askable, joined

MOST_ENTRIES = 1_000
MOST_SECONDS = 20.0


def files_further_down(source: Source, pattern: str) -> dict[str, int]:
    """How many files the pattern would take if it reached all folders: reason to number; empty where there are none.

    It looks for a while and no longer, and what goes wrong meanwhile is no failure of the look that found nothing.
    """
    parts = pattern.split("/")
    if ANY_DEPTH in parts:
        return {}
    deeper = "/".join([*parts[:-1], ANY_DEPTH, parts[-1] or "*"])
    found, until = 0, time.monotonic() + MOST_SECONDS
    try:
        for number, entry in enumerate(source.list_files(deeper), 1):
            found += isinstance(entry, SourceFile)
            if number >= MOST_ENTRIES or time.monotonic() > until:
                break
    except IngestError:
        pass
    return {f"In a folder that the pattern {pattern!r} does not reach; {deeper!r} takes it.": found} if found else {}


MAX_DEPTH = 32
MAX_FOLDERS = 100_000
PRINTED_LENGTH = 200
CLOSED_FOLDER = "A folder that its server does not let us into."
GONE_FOLDER = "A folder that was removed meanwhile."
NOT_A_FILE: Mapping[Kind, str] = {
    "folder": "A symbolic link to a folder; links are not followed.",
    "link": "A symbolic link; its server does not tell where it leads.",
    "other": "It is not a regular file.",
}


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to look into; `relative` is empty for the first one, and ends with a slash for all others."""

    raw: bytes
    relative: str
    depth: int = 0
    identity: str | None = None
    parent: _Folder | None = None

    def contains_itself(self, identity: str | None) -> bool:
        folder: _Folder | None = self if identity is not None else None
        while folder is not None and folder.identity != identity:
            folder = folder.parent
        return folder is not None


@dataclass(frozen=True)
class Walk:
    """One look at a folder of a server, and what is below it.

    Args:
        account: where.
        pool: whose connections are used, one at a time.
        names: how the server writes names.
        pattern: what is asked for.
        limits: what it may take.
    """

    account: Account[ServerConnection]
    pool: ConnectionPool
    names: NameCoding
    pattern: Pattern
    limits: SourceLimits

    def below(self, root: bytes) -> Iterator[SourceFile | Skipped]:
        """What the pattern asks for, folder by folder.

        Raises:
            SourceNotFoundError: there is no such folder. And what else a source raises; nothing that failed is left
        out.
        """
        waiting = [_Folder(root, "")]
        looked_into = 0
        budget = ListingBudget(self.limits, self.account.location)
        while waiting:
            looked_into += 1
            if looked_into > MAX_FOLDERS:
                raise PermanentError(
                    f"{self.account.location} has more than {MAX_FOLDERS} folders below {self.names.path(root)}. "
                    "Name a folder further down."
                )
            budget.seconds_left()
            yield from self._looked_into(waiting.pop(), waiting.append, budget)

    def _looked_into(
        self, folder: _Folder, add: Callable[[_Folder], None], budget: ListingBudget
    ) -> Iterator[SourceFile | Skipped]:
        try:
            lease, entries = self.pool.begin(self.account, lambda connection: connection.entries(folder.raw))
        except (SourceNotFoundError, SourceAccessDeniedError) as error:
            if folder.parent is None:
                raise
            # One that was removed meanwhile is none of anybody's business.
            forbidden = isinstance(error, SourceAccessDeniedError)
            yield Skipped(self.names.path(folder.raw), CLOSED_FOLDER if forbidden else GONE_FOLDER, visible=forbidden)
            return
        kinds: Counter[bool] = Counter()
        # Closed in this order: a listing that is left early still has something to say to its server.
        with lease, closing(entries):
            for entry in budget.counted(entries):
                kinds[entry.kind != "unknown"] += 1
                yield from self._looked_at(entry, folder, lease.connection, add)
        if kinds[False] and not kinds[True]:
            if folder.parent is None:
                location = f"{self.account.location}{self.names.path(folder.raw)}"
                raise UnreadableListingError(location, f"none of the {kinds[False]} lines of its listing is understood")
            yield Skipped(self.names.path(folder.raw), "A folder whose listing is not understood.")

    def _looked_at(
        self, entry: Entry, folder: _Folder, connection: ServerConnection, add: Callable[[_Folder], None]
    ) -> Iterator[SourceFile | Skipped]:
        name = self.names.name(entry.name)
        relative = folder.relative + name
        if entry.kind == "unknown":
            yield Skipped(_printable(name), "A line of the listing that is not understood, or has an impossible value.")
        elif not is_askable(entry.name):
            if name not in ("", ".", ".."):
                yield Skipped(_printable(relative), "Its name has characters that cannot be asked for.")
        elif entry.kind == "folder":
            yield from self._found_folder(entry, folder, name, add)
        elif self.pattern.matches(relative):
            yield self._found(entry, folder, connection)

    def _found_folder(
        self, entry: Entry, parent: _Folder, name: str, add: Callable[[_Folder], None]
    ) -> Iterator[Skipped]:
        raw = joined(parent.raw, entry.name)
        if not self.pattern.may_match_below(parent.relative + name):
            return
        if name.startswith("."):
            yield Skipped(self.names.path(raw), "A hidden folder.", visible=False)
        elif parent.contains_itself(entry.identity):
            yield Skipped(self.names.path(raw), "A folder that leads back to one above it.")
        elif parent.depth >= MAX_DEPTH:
            yield Skipped(self.names.path(raw), f"A folder more than {MAX_DEPTH} levels down.")
        else:
            add(_Folder(raw, f"{parent.relative}{name}/", parent.depth + 1, entry.identity, parent))

    def _found(self, entry: Entry, folder: _Folder, connection: ServerConnection) -> SourceFile | Skipped:
        raw = joined(folder.raw, entry.name)
        path, name = self.names.path(raw), self.names.name(entry.name)
        if (skipped := refusal(path, name)) is not None:
            return skipped
        if entry.kind == "other":
            return Skipped(path, NOT_A_FILE["other"])
        try:
            found = entry if entry.exact and entry.kind == "file" else connection.described(raw)
        except SourceNotFoundError:
            return Skipped(path, "It was removed while the folder was read, or is a link that leads nowhere.")
        except (SourceAccessDeniedError, ForbiddenPathError) as error:
            return Skipped(path, f"No access: {error.reason.rstrip('.')}.")
        except PermanentError:
            return Skipped(path, "Its server does not describe it.")
        return source_file(path, name, found) if found.kind == "file" else Skipped(path, NOT_A_FILE[found.kind])


def source_file(path: str, name: str, entry: Entry) -> SourceFile:
    """A file as its server describes it."""
    return SourceFile(path=path, name=name, size_bytes=entry.size_bytes, modified_at=entry.modified_at)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:PRINTED_LENGTH])
