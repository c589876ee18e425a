"""Every input of the shared data ends as its manifest says: no crash, no loss, the right table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ingest_project.core.settings import load_settings
from ingest_project.platform.database import reading
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.crm.records import opportunities, unidentified_messages
from ingest_project.streams.resources import StreamResources
from ingest_project_tests.streams.crm.messages import encoded, opportunity
from ingest_project_tests.streams.crm.system import store_messages

DATA = Path(__file__).parents[3] / ".." / "shared" / "data" / "json"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[StreamResources]:
    opened = StreamResources(load_settings({"DATABASE_URL": database_url}, tmp_path).settings)
    yield opened
    opened.engine.dispose()


def entries(*kinds: str) -> list[dict[str, Any]]:
    if not (DATA / "manifest.jsonl").exists():
        pytest.skip("the shared JSON data is not next to this repository")
    lines = (DATA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if not kinds or entry["kind"] in kinds]


def received(*payloads: bytes) -> list[ConsumerRecord]:
    return [
        ConsumerRecord("sales_events", 0, offset, None, None, payload, ()) for offset, payload in enumerate(payloads)
    ]


def stored(services: StreamResources, table: sa.Table) -> dict[int, dict[str, Any]]:
    with reading(services.engine) as connection:
        return {row["kafka_offset"]: dict(row) for row in connection.execute(sa.select(table)).mappings()}


def test_no_bare_input_is_a_record_and_each_is_kept_to_the_byte(services: StreamResources) -> None:
    payloads = [(DATA / entry["file"]).read_bytes() for entry in entries()]
    lines = [line for payload in payloads for line in payload.splitlines()]
    inputs = received(*payloads, *dict.fromkeys(lines))
    assert store_messages(services, inputs)["unidentified"] == len(inputs)
    kept = stored(services, unidentified_messages)
    assert {offset: row["payload"] for offset, row in kept.items()} == {one.offset: one.value for one in inputs}


def test_a_json_text_inside_a_message_is_taken_or_refused_as_the_manifest_says(services: StreamResources) -> None:
    cases = entries("json_syntax", "json_file")
    cases = [case for case in cases if not case["file"].endswith(".ndjson")]
    payloads = []
    for number, case in enumerate(cases):
        text = (DATA / case["file"]).read_bytes().removeprefix(BYTE_ORDER_MARK)
        payloads.append(encoded(opportunity(f"opp_{number}", custom="<custom>")).replace(b'"<custom>"', text))
    store_messages(services, received(*payloads))
    records, refused = stored(services, opportunities), stored(services, unidentified_messages)
    assert len(records) + len(refused) == len(cases)
    for number, case in enumerate(cases):
        if case["expect"] == "accept":
            assert number in records, (case["file"], refused[number]["reason"])
        elif case["expect"] == "reject":
            assert number in refused, case["file"]


def test_every_naughty_string_comes_back_as_it_was_sent(services: StreamResources) -> None:
    (entry,) = entries("naughty_strings")
    lines = (DATA / entry["file"]).read_text(encoding="utf-8").split("\n")
    naughty = [line for line in lines if line and not line.startswith("#")]
    payloads = [json.dumps(opportunity(f"opp_{number}", name=text)).encode() for number, text in enumerate(naughty)]
    store_messages(services, received(*payloads))
    assert {offset: row["name"] for offset, row in stored(services, opportunities).items()} == dict(enumerate(naughty))
