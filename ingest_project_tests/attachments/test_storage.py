"""Names of attachments in the store, from untrusted values."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.attachments.storage import (
    DEFAULT_TEMPLATE,
    MAX_PART_BYTES,
    Destinations,
    PathTakenError,
    StoredAttachment,
    distinct_file_names,
    put_attachment,
    safe_part,
    stored_attachment,
)
from ingest_project.contracts.attachments import attachment_hash
from ingest_project.core.errors import ForbiddenPathError, SettingsError
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.store import ObjectStore, require_safe_name
from ingest_project.testing.stores import CHUNK_BYTES, CONTENTS, NAME, digest, local_file, read

MOMENT = datetime(2026, 1, 15, 23, 30, tzinfo=timezone(timedelta(hours=-2)))


def path(destinations: Destinations, **changed: str) -> str:
    values = {"domain": "claims", "trace_id": "trace-1", "file_name": "a.pdf", **changed}
    return destinations.path(occurred_at=MOMENT, **values)


def own_part(url: str = "", trace_id: str = "trace-1") -> str:
    return f"attachment-{attachment_hash(trace_id, url)}"


def test_the_default_path_is_domain_day_in_utc_trace_attachment_and_name() -> None:
    assert path(Destinations()) == f"claims/2026/01/16/trace-1/{own_part()}/a.pdf"
    assert re.fullmatch(r"attachment-[0-9a-f]{32}", own_part())


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, "{domain}/{file_name}", "{file_name}"])
def test_two_addresses_of_one_trace_and_name_never_meet_whatever_the_template(template: str) -> None:
    urls = ["https://a.example/report.pdf", "https://b.example/report.pdf", "https://a.example/report.pdf?v=2"]
    paths = {path(Destinations(template), attachment_url=url).casefold() for url in urls}
    assert len(paths) == len(urls)
    assert {one.rpartition("/")[2] for one in paths} == {"a.pdf"}


def test_every_placeholder_is_filled() -> None:
    destinations = Destinations("{event_type}/{domain}-{HH}/{attachment}-{url_hash}-{file_name}")
    filled = path(destinations, event_type="claim.received", attachment_url="https://files.example/a.pdf")
    assert re.fullmatch(r"claim\.received/claims-01/attachment-[0-9a-f]{32}-[0-9a-f]{8}-a\.pdf", filled)


@pytest.mark.parametrize(
    "template", ["{domain}/{file_nam}", "{domain.x}/{file_name}", "{file_name!r}", "{file_name:>9}"]
)
def test_an_unknown_placeholder_is_an_error_that_lists_the_known_ones(template: str) -> None:
    with pytest.raises(SettingsError, match=r"\{domain\}.*\{file_name\}"):
        Destinations(template)


@pytest.mark.parametrize(
    "template",
    ["{domain}/x", "/{file_name}", "../{file_name}", "{domain}//{file_name}", "{file_name", "a\\{file_name}"],
)
def test_a_template_without_a_path_for_each_file_is_an_error(template: str) -> None:
    with pytest.raises(SettingsError):
        Destinations(template)


def test_a_domain_s_own_base_replaces_its_name() -> None:
    address = "https://onelake.dfs.fabric.microsoft.com/w/l.Lakehouse/Files/claims"
    destinations = Destinations(base_paths={"AUTO_CLAIMS": address, "photos": "pictures/in", "empty": ""})
    assert destinations.store_url("auto-claims", "/data/store") == address
    assert destinations.store_url("photos", "/data/store/") == "/data/store/pictures/in"
    assert destinations.store_url("other", "/data/store") == "/data/store"
    assert destinations.store_url("empty", "/data/store") == "/data/store"
    assert path(destinations, domain="auto-claims") == f"2026/01/16/trace-1/{own_part()}/a.pdf"
    assert path(destinations, domain="other") == f"other/2026/01/16/trace-1/{own_part()}/a.pdf"


def require_own(destination: str, domain: str = "claims", **base_paths: str) -> None:
    url = "https://files.example/a.pdf"
    destinations = Destinations(base_paths=base_paths)
    destinations.require_own(destination, domain=domain, trace_id="trace-1", attachment_url=url)


@pytest.mark.parametrize(
    "destination",
    [
        f"claims/2026/01/16/trace-1/{own_part()}/a.pdf",
        f"claims/2026/01/16/trace-1/{own_part().upper()}/a.pdf",
        f"x/{own_part()}",
        f"x/{own_part().replace('a', chr(0xFF41))}/a.pdf",
        f"in/a-{own_part()}.pdf",
    ],
)
def test_a_path_that_is_another_attachment_s_is_refused(destination: str) -> None:
    with pytest.raises(ForbiddenPathError, match="another attachment"):
        require_own(destination)


@pytest.mark.parametrize("destination", ["claims", "x/2026", "x/2026/01", "X/2026/01/16", "x/2026/01/16/trace-7"])
def test_a_file_with_the_name_of_a_folder_of_others_is_refused(destination: str) -> None:
    with pytest.raises(ForbiddenPathError, match="folders"):
        require_own(destination)


def test_a_file_with_the_name_of_a_day_is_refused_where_a_domain_has_a_store_of_its_own() -> None:
    with pytest.raises(ForbiddenPathError, match="folders"):
        require_own("2026/01", claims="/data/claims")
    require_own("in/01", claims="/data/claims")


@pytest.mark.parametrize(
    "destination",
    [
        "../a.pdf",
        "in/../a.pdf",
        "/in/a.pdf",
        "in//a.pdf",
        "in/./a.pdf",
        "in\\a.pdf",
        "in/.a.pdf.json",
        "in/a.pdf.",
        "in/a.pdf ",
        " in/a.pdf",
        "in./a.pdf",
        "in/a\x00.pdf",
        "in/u\u0308.pdf",
    ],
)
def test_a_path_that_leads_out_or_that_stores_take_for_another_is_refused(destination: str) -> None:
    with pytest.raises(ForbiddenPathError):
        require_own(destination)


@pytest.mark.parametrize("destination", ["in/a.pdf", "a.pdf", "claims/a.pdf", "claims/2026/a.pdf", "über/ü.pdf"])
def test_a_path_of_the_sender_s_own_is_taken_as_it_is(destination: str) -> None:
    require_own(destination)
    require_own(f"claims/2026/01/16/trace-1/{own_part('https://files.example/a.pdf')}/a.pdf")


HOSTILE = [
    "../../x",
    "..",
    ".",
    "",
    " ",
    "/etc/passwd",
    "a\\b",
    "a\x00b",
    ".hidden",
    "con:|?*<>",
    "\u202egnp.exe",
    "\ud800",
]
LONG = ["x" * 300, "😀" * 300, "a" * 300 + ".pdf"]


@pytest.mark.parametrize("value", HOSTILE + LONG)
def test_any_text_becomes_one_safe_part(value: str) -> None:
    part = safe_part(value)
    assert require_safe_name(part) == part
    assert len(part.encode()) <= MAX_PART_BYTES


@given(st.text(max_size=400))
def test_no_text_escapes_its_path_part(value: str) -> None:
    part = safe_part(value)
    assert require_safe_name(part) == part
    assert "/" not in part
    assert len(part.encode()) <= MAX_PART_BYTES


def test_a_good_name_stays_as_it_is_and_a_changed_one_keeps_its_ending() -> None:
    assert safe_part("Größe 日本 (1).pdf") == "Größe 日本 (1).pdf"
    assert safe_part("a/b.pdf").startswith("a_b~")
    assert safe_part("a/b.pdf").endswith(".pdf")
    assert safe_part("x" * 300 + ".jpeg").endswith(".jpeg")


def test_values_that_are_equal_after_cleaning_keep_separate_paths() -> None:
    values = ["a/b", "a\\b", "a_b", "a:b", " a_b", "a_b.", "x" * 300, "x" * 301]
    assert len({safe_part(value) for value in values}) == len(values)


def test_two_files_of_one_name_in_an_event_are_distinguished_by_their_address() -> None:
    named = [("a.pdf", "https://x/1"), ("b.pdf", "https://x/2"), ("A.pdf", "https://x/3")]
    first, second, third = distinct_file_names(named)
    assert second == "b.pdf"
    assert first != "a.pdf"
    assert first.endswith(".pdf")
    assert first.casefold() != third.casefold()
    assert distinct_file_names(named) == [first, second, third]


def test_the_same_values_always_give_the_same_path() -> None:
    moment = MOMENT.astimezone(UTC)
    destinations = Destinations()
    other = destinations.path(domain="claims", trace_id="trace-1", file_name="a.pdf", occurred_at=moment)
    assert other == path(destinations)


def put(store: ObjectStore, folder: Path, content: bytes, destination: str = NAME, **metadata: str) -> StoredAttachment:
    """Store some bytes as an attachment of theirs."""
    return put_attachment(store, local_file(folder, content), destination, metadata or {"trace_id": "trace-1"})


def metadata_of(store: ObjectStore) -> dict[str, str]:
    found = store.stat(NAME)
    assert found
    return dict(found.metadata)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_an_attachment_is_described_by_its_length_and_digest_the_second_time_too(
    store: ObjectStore, tmp_path: Path, content: bytes
) -> None:
    stored = put(store, tmp_path, content)
    assert stored == (store.location(NAME), len(content), digest(content))
    assert stored_attachment(store, NAME) == stored == put(store, tmp_path, content)
    assert read(store) == content


def test_metadata_of_any_text_is_kept_and_signed_addresses_lose_their_secret(
    store: ObjectStore, tmp_path: Path
) -> None:
    signed = "https://user:secret@files.example/ä/a.pdf?sig=c2VjcmV0#page=2"
    put(store, tmp_path, b"x", source_url=signed, note="100 % größer, 日本\n", content_type="application/pdf")
    assert metadata_of(store) == {
        "source_url": "https://files.example/ä/a.pdf",
        "note": "100 % größer, 日本",
        "content_type": "application/pdf",
        "sha256": digest(b"x"),
    }


@pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])
def test_metadata_of_any_length_keeps_no_attachment_out_of_a_store(
    store: ObjectStore, tmp_path: Path, content: bytes
) -> None:
    long = {"trace_id": "\U0001f4ce" * 200, "event_type": "ж" * 1_024, "source_url": "https://h/" + "x" * 8_000}
    for _ in range(2):
        stored = put(store, tmp_path, content, attachment_key="a.pdf~one", **long)
    assert stored_attachment(store, NAME) == stored
    assert metadata_of(store)["attachment_key"] == "a.pdf~one"


@pytest.mark.parametrize("content", [CONTENTS["small"], CONTENTS["large"]], ids=["small", "large"])
def test_a_file_of_another_attachment_is_never_replaced(store: ObjectStore, tmp_path: Path, content: bytes) -> None:
    put(store, tmp_path, content, attachment_key="a.pdf~one", trace_id="t", source_url="http://h/a.pdf")
    for other in ({"attachment_key": "a.pdf~two"}, {"note": "nobody's"}):
        for replacement in (CONTENTS["small"], CONTENTS["large"], b"else"):
            with pytest.raises(PathTakenError, match=r"a\.pdf~one"):
                put(store, tmp_path, replacement, trace_id="t", source_url="http://h/a.pdf", **other)
    assert read(store) == content
    assert metadata_of(store)["attachment_key"] == "a.pdf~one"
    put(store, tmp_path, b"its own new content", attachment_key="a.pdf~one")
    assert read(store) == b"its own new content"


def test_a_file_of_another_program_is_not_replaced(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path, b"of another program", note="nobody's")
    with pytest.raises(PathTakenError, match="no attachment's"):
        put(store, tmp_path, b"else", attachment_key=f"a.pdf~{'0' * 32}")
    assert read(store) == b"of another program"


def test_one_of_several_simultaneous_attachments_gets_the_name(store: ObjectStore, tmp_path: Path) -> None:
    contents = {f"a.pdf~{number}": bytes([number]) * (number * CHUNK_BYTES) for number in range(1, 7)}
    refused: list[str] = []

    def try_to_put(key: str) -> None:
        try:
            put(store, tmp_path, contents[key], attachment_key=key)
        except PathTakenError:
            refused.append(key)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(try_to_put, contents))
    (winner,) = contents.keys() - set(refused)
    assert metadata_of(store)["attachment_key"] == winner
    assert read(store) == contents[winner]


def test_a_file_that_others_put_is_read_to_know_its_digest(store: ObjectStore) -> None:
    store.put(NAME, CONTENTS["large"])
    stored = stored_attachment(store, NAME)
    assert stored == (store.location(NAME), len(CONTENTS["large"]), digest(CONTENTS["large"]))
    assert stored_attachment(store, "none") is None


@pytest.mark.parametrize("destination", ["a /b", " a", "a.", "a. /b", "e\u0301.pdf"])
def test_a_name_that_some_stores_would_change_is_refused(tmp_path: Path, destination: str) -> None:
    with pytest.raises(ForbiddenPathError):
        put(open_store(str(tmp_path / "store")), tmp_path, b"x", destination)
