"""Where attachments go, whatever strangers call them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.attachments.storage.destinations import (
    DEFAULT_TEMPLATE,
    LONGEST_PART_BYTES,
    Destinations,
    distinct_file_names,
    safe_part,
)
from ingest_project.attachments.storage.store import require_plain
from ingest_project.contracts.attachments import attachment_hash
from ingest_project.core.errors import ForbiddenPathError, SettingsError

MOMENT = datetime(2026, 1, 15, 23, 30, tzinfo=timezone(timedelta(hours=-2)))


def path(destinations: Destinations, **changed: str) -> str:
    values = {"domain": "claims", "trace_id": "trace-1", "file_name": "a.pdf", **changed}
    return destinations.path(occurred_at=MOMENT, **values)


def own_part(url: str = "", trace_id: str = "trace-1") -> str:
    return f"attachment-{attachment_hash(trace_id, url)}"


def test_the_default_place_is_domain_day_in_utc_trace_attachment_and_name() -> None:
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
def test_a_template_that_makes_no_place_for_each_file_is_an_error(template: str) -> None:
    with pytest.raises(SettingsError):
        Destinations(template)


def test_a_domain_s_own_base_stands_in_place_of_its_name() -> None:
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
def test_a_file_in_place_of_a_folder_of_others_is_refused(destination: str) -> None:
    with pytest.raises(ForbiddenPathError, match="folders"):
        require_own(destination)


def test_a_file_in_place_of_a_day_is_refused_where_a_domain_has_a_store_of_its_own() -> None:
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
    assert require_plain(part) == part
    assert len(part.encode()) <= LONGEST_PART_BYTES


@given(st.text(max_size=400))
def test_no_text_leads_out_of_its_part(value: str) -> None:
    part = safe_part(value)
    assert require_plain(part) == part
    assert "/" not in part
    assert len(part.encode()) <= LONGEST_PART_BYTES


def test_a_good_name_stays_as_it_is_and_a_changed_one_keeps_its_ending() -> None:
    assert safe_part("Größe 日本 (1).pdf") == "Größe 日本 (1).pdf"
    assert safe_part("a/b.pdf").startswith("a_b~")
    assert safe_part("a/b.pdf").endswith(".pdf")
    assert safe_part("x" * 300 + ".jpeg").endswith(".jpeg")


def test_two_values_that_look_alike_afterwards_do_not_meet() -> None:
    values = ["a/b", "a\\b", "a_b", "a:b", " a_b", "a_b.", "x" * 300, "x" * 301]
    assert len({safe_part(value) for value in values}) == len(values)


def test_two_files_of_one_name_in_an_event_are_told_apart_by_their_address() -> None:
    named = [("a.pdf", "https://x/1"), ("b.pdf", "https://x/2"), ("A.pdf", "https://x/3")]
    first, second, third = distinct_file_names(named)
    assert second == "b.pdf"
    assert first != "a.pdf"
    assert first.endswith(".pdf")
    assert first.casefold() != third.casefold()
    assert distinct_file_names(named) == [first, second, third]


def test_the_same_values_always_give_the_same_place() -> None:
    moment = MOMENT.astimezone(UTC)
    destinations = Destinations()
    other = destinations.path(domain="claims", trace_id="trace-1", file_name="a.pdf", occurred_at=moment)
    assert other == path(destinations)
