"""Attachments in an object store: its name, the owner of that name, and its metadata.

One template serves all domains, and some have their own base. Values come from untrusted senders. Each becomes one
safe part of a path; a value that had to be changed carries a short hash of the original. Every path has a part named
after its attachment, by 128 bits of hash, so that no two attachments share a name, however they are called. A path that
a task brings along has no such part; it must not use another attachment's, nor a name where the folders of others are
made.

The attachment's key is in the metadata of its file, and only its owner replaces a file.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from ingest_project.contracts.attachments import attachment_hash
from ingest_project.core.errors import ForbiddenPathError, PermanentError, SettingsError
from ingest_project.core.local_files import LocalFile
from ingest_project.platform.azure import is_address
from ingest_project.platform.object_store.store import (
    SHA256,
    ObjectStore,
    StoredObject,
    kept_metadata,
    require_safe_name,
)

DEFAULT_TEMPLATE = "{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{attachment}/{file_name}"
PLACEHOLDERS = ("domain", "event_type", "yyyy", "MM", "dd", "HH", "trace_id", "attachment", "url_hash", "file_name")
_DIGITS = {"yyyy": r"\d{4}", "MM": r"\d{2}", "dd": r"\d{2}", "HH": r"\d{2}"}
# Identifies one attachment: the value of {attachment}.
_OWN_PART = re.compile(r"attachment-([0-9a-f]{32})", re.IGNORECASE)
_ENDING = re.compile(r"\.\w{1,16}$")
MAX_PART_BYTES = 160
HASH_LENGTH = 8
LONGEST_ENDING = 16
# Characters that file systems or Fabric's tools refuse in a name, or that cause trouble in shells and logs.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# The metadata that names the owner of a file: the key of its attachment.
OWNER = "attachment_key"


class PathTakenError(PermanentError):
    """A file of another owner has the name that an attachment should be stored under.

    Args:
        destination: the name.
        reason: which file has it.
    """

    def __init__(self, destination: str, reason: str) -> None:
        self.destination = destination
        super().__init__(f"Refused to replace {destination[:200]!r}: {reason}")


class StoredAttachment(NamedTuple):
    """A file in the store.

    Args:
        path: its location, for people and results: a file's path or its address.
        sha256: SHA-256 of its content, in hex.
    """

    path: str
    size_bytes: int
    sha256: str


class Destinations:
    """The names of attachments.

    Args:
        template: path with placeholders in braces, see PLACEHOLDERS; the setting `attachments.destination_template`.
        base_paths: a store's address, or a folder of the default store, per domain, from ONELAKE_*_PATH. It replaces
            a `{domain}/` that starts the template.

    Raises:
        SettingsError: an unknown placeholder, or no file name in the template.
    """

    def __init__(self, template: str = DEFAULT_TEMPLATE, base_paths: Mapping[str, str] | None = None) -> None:
        self._template = _with_attachment(_checked_template(template))
        self._bases = {domain_name(domain): base for domain, base in (base_paths or {}).items() if base}

    def store_url(self, domain: str, default_url: str) -> str:
        """Return the address of the store that keeps a domain's files.

        Args:
            domain: as in the event.
            default_url: address of the domains without a base path.
        """
        base = self._bases.get(domain_name(domain))
        if base is None:
            return default_url
        if is_address(base) or base.startswith(("/", "file:")):
            return base
        return f"{default_url.rstrip('/')}/{base.strip('/')}"

    def path(  # noqa: PLR0913 - one argument per placeholder
        self,
        *,
        domain: str,
        trace_id: str,
        file_name: str,
        occurred_at: datetime,
        attachment_url: str = "",
        event_type: str = "",
    ) -> str:
        """Return the path of one attachment, relative to its domain's store: the same for the same values, and unique.

        Args:
            domain: business domain.
            trace_id: trace id of the event.
            file_name: name of the attachment, as it was declared or found.
            occurred_at: aware; its day in UTC counts.
            attachment_url: for `{attachment}` and `{url_hash}`.
            event_type: for `{event_type}`.
        """
        moment = occurred_at.astimezone(UTC)
        values = {
            "domain": safe_part(domain),
            "event_type": safe_part(event_type),
            "trace_id": safe_part(trace_id),
            "file_name": safe_part(file_name),
            "attachment": f"attachment-{attachment_hash(trace_id, attachment_url)}",
            "url_hash": short_hash(attachment_url),
            "yyyy": f"{moment:%Y}".zfill(4),
            "MM": f"{moment:%m}",
            "dd": f"{moment:%d}",
            "HH": f"{moment:%H}",
        }
        return self._template_of(domain).format_map(values)

    def require_own(self, destination: str, *, domain: str, trace_id: str, attachment_url: str) -> None:
        """Refuse a task's path that belongs to another attachment or blocks the paths of others.

        Args:
            destination: relative to the domain's store.
            domain: domain of the task.
            trace_id: trace id of the task.
            attachment_url: address of the task.

        Raises:
            ForbiddenPathError: it is no plain relative path, it has the part of another attachment, or a file of that
                name would be where the template makes folders.
        """
        plain = require_portable(destination)
        owners = {owner.lower() for owner in _OWN_PART.findall(unicodedata.normalize("NFKC", plain))}
        if owners - {attachment_hash(trace_id, attachment_url)}:
            raise ForbiddenPathError(destination[:200], "a part of it belongs to another attachment.")
        parts = plain.split("/")
        folders = self._template_of(domain).split("/")[:-1]
        has_ending = len(parts) == 1 and _ENDING.search(plain)
        if len(parts) <= len(folders) and not has_ending and all(map(_may_be, folders, parts)):
            raise ForbiddenPathError(
                destination[:200], "other attachments have folders there; put it into one of its own."
            )

    def _template_of(self, domain: str) -> str:
        has_base = domain_name(domain) in self._bases
        return self._template.removeprefix("{domain}/") if has_base else self._template


def safe_part(value: str) -> str:
    """Return one part of a path for any text: no separators, not hidden, not `..`, at most MAX_PART_BYTES in UTF-8.

    Its ending stays (`.pdf`), so that programs still know what it is.
    """
    plain = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", value)).strip().strip(".").strip() or "unnamed"
    if plain == value and len(plain.encode()) <= MAX_PART_BYTES:
        return plain
    stem, dot, ending = plain.rpartition(".")
    if not dot or not stem or len(ending.encode()) > LONGEST_ENDING:
        stem, dot, ending = plain, "", ""
    mark = f"~{short_hash(value)}{dot}{ending}"
    longest_stem = MAX_PART_BYTES - len(mark.encode())
    return stem.encode()[:longest_stem].decode("utf-8", "ignore").rstrip(". ") + mark


def distinct_file_names(names_and_urls: Sequence[tuple[str, str]]) -> list[str]:
    """Return the file names of one event's attachments; those that occur twice get a hash of their address."""
    folded = Counter(name.casefold() for name, _ in names_and_urls)
    return [name if folded[name.casefold()] == 1 else _with_hash(name, url) for name, url in names_and_urls]


def domain_name(text: str) -> str:
    """Return a domain as ONELAKE_*_PATH spells it, in lower case: `auto-claims` and `AUTO_CLAIMS` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def short_hash(text: str) -> str:
    """Return a few hex digits that identify a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_LENGTH]


def put_attachment(
    store: ObjectStore, file: LocalFile, destination: str, metadata: Mapping[str, str]
) -> StoredAttachment:
    """Store a downloaded file, replacing the same attachment's earlier one. The second time changes nothing.

    Args:
        store: store of its domain.
        file: the downloaded file.
        destination: its name in the store.
        metadata: kept with it. Addresses (names that end with `url`) lose what may be secret: user, password, query and
            fragment. `attachment_key` is the owner, see `require_owner`.

    Raises:
        ForbiddenPathError: the destination is no plain relative path, leads out of the store, or is not portable.
        PathTakenError: a file of that name belongs to another owner.
        SourceNotFoundError, SourceChangedError: the local file is missing or not as announced; nothing is stored.
        PermanentError: the store refuses.
        StoreUnavailableError: the store cannot be written at this moment.
    """
    public = {name: _without_secrets(value) if name.endswith("url") else value for name, value in metadata.items()}
    kept = kept_metadata(public) | {SHA256: file.sha256}

    def may_replace(present: StoredObject) -> bool:
        require_owner(destination, present.metadata, kept)
        return present.size_bytes != file.size_bytes or present.metadata != kept

    stored = store.put(require_portable(destination), file, metadata=kept, may_replace=may_replace)
    return StoredAttachment(stored.location, file.size_bytes, file.sha256)


def stored_attachment(store: ObjectStore, destination: str) -> StoredAttachment | None:
    """Return the file of a name, with its digest; None without one. A file without a recorded digest is read."""
    found = store.stat(destination)
    if found is None:
        return None
    sha256 = found.metadata.get(SHA256)
    if sha256 is None:
        with store.local_path(destination) as path, path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredAttachment(found.location, found.size_bytes, sha256)


def require_portable(destination: str) -> str:
    """Return the destination without slashes at its end, if it names the same file in every kind of store.

    Raises:
        ForbiddenPathError: as `require_safe_name`; or some stores would use another name for it.
    """
    plain = require_safe_name(destination)
    if any(part != part.rstrip(". ") or part != part.lstrip() for part in plain.split("/")):
        raise ForbiddenPathError(destination[:200], "a part of it starts or ends with a space, or ends with a dot.")
    if plain != unicodedata.normalize("NFC", plain):
        raise ForbiddenPathError(destination[:200], "it is not in Unicode's composed form (NFC).")
    return plain


def require_owner(destination: str, present: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to replace a file of another owner.

    Args:
        destination: its name.
        present: metadata of the present file; empty where it has none.
        wanted: metadata of the file that is to be stored there.

    Raises:
        PathTakenError: the file is another attachment's, or none's while this one has an owner.
    """
    owner = wanted.get(OWNER)
    if present.get(OWNER) == owner:
        return
    if OWNER in present or owner is None:
        raise PathTakenError(destination, f"the attachment {present.get(OWNER)} has its file under that name.")
    raise PathTakenError(destination, "a file that is no attachment's has that name. Move it, or use another name.")


def _without_secrets(url: str) -> str:
    """Return an address without user, password, query and fragment: a signed one is a secret while it works."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _with_hash(name: str, url: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}~{short_hash(url)}.{ending}" if dot and stem else f"{name}~{short_hash(url)}"


def _checked_template(template: str) -> str:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(
            f"The destination template {template!r} is malformed: {error}. Known are: {known}."
        ) from None
    for _, name, spec, conversion in fields:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise SettingsError(f"The destination template has an unknown placeholder {{{name}}}. Known are: {known}.")
    names = {name for _, name, _, _ in fields}
    if not names & {"file_name", "url_hash", "attachment"}:
        raise SettingsError(f"The destination template {template!r} gives all files one name. Known are: {known}.")
    literal = "".join(text for text, *_ in fields)
    if template.startswith("/") or ".." in literal or "//" in template or "\\" in literal:
        raise SettingsError(f"The destination template {template!r} must be a plain relative path.")
    return template


def _may_be(folder: str, part: str) -> bool:
    """Test whether a folder of the template may have this name."""
    pieces = [
        re.escape(text) + ("" if name is None else _DIGITS.get(name, ".+"))
        for text, name, _, _ in string.Formatter().parse(folder)
    ]
    return re.fullmatch("".join(pieces), part, re.IGNORECASE) is not None


def _with_attachment(template: str) -> str:
    """Return the template with a part for each attachment: as its last folder, where it names none."""
    if "{attachment}" in template:
        return template
    folders, slash, name = template.rpartition("/")
    return f"{folders}{slash}{{attachment}}/{name}"
