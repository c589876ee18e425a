"""Where in the store an attachment goes: one template for all domains, and a base of its own for some.

Values come from strangers. Each becomes one safe part of a path; a value that had to be changed carries a short hash of
what it was. Every path has a part named after its attachment, by 128 bits of hash, so that no two attachments meet at
one place, whatever they are called. A path that a task brings along has none; it must not use another attachment's, nor
be where the folders of others are made. The stores see to it that it is nobody else's file: see `attachment_names`.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ingest_project.attachments.storage.store import require_portable
from ingest_project.contracts.attachments import attachment_hash
from ingest_project.core.errors import ForbiddenPathError, SettingsError
from ingest_project.platform.azure.address import is_address

DEFAULT_TEMPLATE = "{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{attachment}/{file_name}"
PLACEHOLDERS = ("domain", "event_type", "yyyy", "MM", "dd", "HH", "trace_id", "attachment", "url_hash", "file_name")
_DIGITS = {"yyyy": r"\d{4}", "MM": r"\d{2}", "dd": r"\d{2}", "HH": r"\d{2}"}
# Stands for one attachment: the value of {attachment}.
_OWN_PART = re.compile(r"attachment-([0-9a-f]{32})", re.IGNORECASE)
_ENDING = re.compile(r"\.\w{1,16}$")
LONGEST_PART_BYTES = 160
HASH_LENGTH = 8
LONGEST_ENDING = 16
# What file systems and Fabric's own tools do not take in a name, and what a shell or log would trip over.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Destinations:
    """The places of attachments.

    Args:
        template: path with placeholders in braces, see PLACEHOLDERS; the setting `attachments.destination_template`.
        base_paths: a store's address, or a folder of the default store, per domain, from ONELAKE_*_PATH. It stands
            in place of a `{domain}/` that starts the template.

    Raises:
        SettingsError: an unknown placeholder, or no file name in the template.
    """

    def __init__(self, template: str = DEFAULT_TEMPLATE, base_paths: Mapping[str, str] | None = None) -> None:
        self._template = _with_attachment(_checked(template))
        self._bases = {domain_name(domain): base for domain, base in (base_paths or {}).items() if base}

    def store_url(self, domain: str, default_url: str) -> str:
        """Address of the store that keeps a domain's files.

        Args:
            domain: as in the event.
            default_url: of the domains without a base path.
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
        """Path of one attachment, relative to its domain's store; the same for the same values, and no other one's.

        Args:
            domain: business domain.
            trace_id: of the event.
            file_name: of the attachment, as it was declared or found.
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
        """Refuse a path that a task brought along and that is another attachment's, or in the way of others.

        Args:
            destination: relative to the domain's store.
            domain: of the task.
            trace_id: of the task.
            attachment_url: of the task.

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


def _may_be(folder: str, part: str) -> bool:
    """Whether a folder of the template may have this name."""
    pieces = [
        re.escape(text) + ("" if name is None else _DIGITS.get(name, ".+"))
        for text, name, _, _ in string.Formatter().parse(folder)
    ]
    return re.fullmatch("".join(pieces), part, re.IGNORECASE) is not None


def _with_attachment(template: str) -> str:
    """The template with a part for each attachment: as its last folder, where it names none."""
    if "{attachment}" in template:
        return template
    folders, slash, name = template.rpartition("/")
    return f"{folders}{slash}{{attachment}}/{name}"


def safe_part(value: str) -> str:
    """One part of a path made of any text: no separators, not hidden, not `..`, at most LONGEST_PART_BYTES in UTF-8.

    Its ending stays (`.pdf`), so that programs still know what it is.
    """
    plain = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", value)).strip().strip(".").strip() or "unnamed"
    if plain == value and len(plain.encode()) <= LONGEST_PART_BYTES:
        return plain
    stem, dot, ending = plain.rpartition(".")
    if not dot or not stem or len(ending.encode()) > LONGEST_ENDING:
        stem, dot, ending = plain, "", ""
    mark = f"~{short_hash(value)}{dot}{ending}"
    room = LONGEST_PART_BYTES - len(mark.encode())
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(". ") + mark


def distinct_file_names(names_and_urls: Sequence[tuple[str, str]]) -> list[str]:
    """The file names of one event's attachments, those that occur twice told apart by a hash of their address."""
    folded = Counter(name.casefold() for name, _ in names_and_urls)
    return [name if folded[name.casefold()] == 1 else _marked(name, url) for name, url in names_and_urls]


def domain_name(text: str) -> str:
    """A domain as ONELAKE_*_PATH spells it, in lower case: `auto-claims` and `AUTO_CLAIMS` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def short_hash(text: str) -> str:
    """A few hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_LENGTH]


def _marked(name: str, url: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}~{short_hash(url)}.{ending}" if dot and stem else f"{name}~{short_hash(url)}"


def _checked(template: str) -> str:
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
