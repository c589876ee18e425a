"""`ingest dlq messages` lists messages that could not be read at all, on every dead-letter topic."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import OFFSETS_AT_A_TIME
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.journeys.system import close
from ingest_project_tests.services.kafka import Server

EVIL = b"\x1b[2J\xff not JSON \xe2\x80\xae"
TASK = b'{"trace_id": "t-1", "domain": "claims", "attachment_url": "https://files.example/a.pdf"}'


@pytest.fixture
def aside(
    ingest: Ingest, kafka_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch, topics: dict[str, str]
) -> Iterator[SystemResources]:
    """What puts messages aside, on topics of this test alone."""
    del ingest
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_server.bootstrap_servers)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    for name, topic in topics.items():
        monkeypatch.setenv(f"KAFKA_TOPIC_{name}", topic)
    monkeypatch.setenv("KAFKA_TOPIC_EVENTS_RAW", topics["EVENTS_RAW_DLQ"].removesuffix(".dlq"))
    services = SystemResources(load_settings().settings)
    yield services
    close(services)


@pytest.fixture
def topics(request: pytest.FixtureRequest) -> dict[str, str]:
    names = ("POLLING_QUEUE", "FILE_EVENT_QUEUE", "EVENTS_RAW", "DOWNLOADS", "USER_ACTIVITY_EVENTS")
    return {f"{name}_DLQ": f"{request.node.name.lower()[:80]}.{name.lower()}.dlq" for name in names}


def put(services: SystemResources, topic: str, value: bytes | None, offset: int, reason: str = "not JSON") -> None:
    """A message that could not be read has been put aside."""
    message = ConsumerRecord(topic.removesuffix(".dlq"), 3, offset, 1_700_000_000_000, b"k", value, ())
    dead_letter_message(services, topic, [(message, UnreadableMessageError(reason))], "g1")


def test_dead_letters_of_all_topics_are_listed_newest_first_with_origin_and_reason(
    ingest: Ingest, aside: SystemResources, topics: dict[str, str]
) -> None:
    for number, topic in enumerate(topics.values()):
        put(aside, topic, EVIL, number)
    aside.writer.send_all(topics["DOWNLOADS_DLQ"], [ProducerRecord(TASK)])
    shown = ingest("dlq", "messages", "--json").json
    assert shown["more"] is False
    assert [one["original_location"] for one in shown["messages"]] == [
        f"{topic.removesuffix('.dlq')}/3/{number}" for number, topic in reversed(list(enumerate(topics.values())))
    ], "the task is an attachment's"
    first = shown["messages"][0]
    assert (first["error_class"], first["size_bytes"]) == ("UnreadableMessageError", len(EVIL))
    assert "not JSON" in first["reason"]

    text = ingest("dlq", "messages", "--topic", topics["EVENTS_RAW_DLQ"])
    assert text.exit_code == 0
    assert topics["EVENTS_RAW_DLQ"] in text.out
    assert topics["DOWNLOADS_DLQ"] not in text.out
    assert "\\x1b[2J\\xff not JSON \\u202e" in text.out
    assert not {"\x1b", "\u202e"} & set(text.out)


def test_the_newest_of_very_many_dead_letters_are_listed(
    ingest: Ingest, aside: SystemResources, topics: dict[str, str]
) -> None:
    topic = topics["DOWNLOADS_DLQ"]
    put(aside, topic, b"old", 1)
    put(aside, topic, b"new", 2)
    aside.writer.send_all(topic, [ProducerRecord(TASK, b"k")] * (4 * OFFSETS_AT_A_TIME))
    listed = ingest("dlq", "messages", "--limit", "1", "--json").json
    assert [one["begins"] for one in listed["messages"]] == ["new"]
    assert listed["more"] is True
    assert "--limit" in ingest("dlq", "messages", "--limit", "1").err


def test_a_dead_letter_is_shown_safely_and_exported_byte_for_byte(
    ingest: Ingest, aside: SystemResources, topics: dict[str, str]
) -> None:
    text = "\x1b[2J[é" + "x" * 5_000
    put(aside, topics["EVENTS_RAW_DLQ"], text.encode(), 7)
    (listed,) = ingest("dlq", "messages", "--json").json["messages"]
    assert listed["value"] is None
    page = ingest("dlq", "show", listed["place"])
    assert "\\x1b[2J[éxxx" in page.out
    assert "\x1b" not in page.out
    assert "--raw" in page.err
    assert ingest("dlq", "show", listed["place"], "--raw").out == text
    assert base64.b64decode(ingest("dlq", "show", listed["place"], "--json").json["value"]) == text.encode()


def test_missing_dead_letters_and_unknown_positions_are_reported(ingest: Ingest, aside: SystemResources) -> None:
    topic = aside.settings.topics.events_raw_dlq
    none = ingest("dlq", "messages")
    assert (none.exit_code, none.out, none.err) == (0, "", "No such messages.\n")
    assert ingest("dlq", "show", f"{topic}/0/0").exit_code == 1
    put(aside, topic, None, 1)
    (letter,) = ingest("dlq", "messages", "--json").json["messages"]
    assert "no bytes" in ingest("dlq", "show", letter["place"]).out
    gone = ingest("dlq", "show", letter["place"].rpartition("/")[0] + "/99")
    assert (gone.exit_code, gone.out) == (1, "")
    assert ingest("dlq", "show", "events.raw.dlq").exit_code == 1


def test_an_unreachable_broker_exits_with_1_instead_of_an_empty_list(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "0.5")
    away = ingest("dlq", "messages")
    assert away.exit_code == 1
    assert "127.0.0.1:1" in away.err


def test_the_letters_of_one_topic_are_listed_shown_and_redriven_with_a_record(
    ingest: Ingest, aside: SystemResources, topics: dict[str, str]
) -> None:
    dead, origin = topics["EVENTS_RAW_DLQ"], aside.settings.topics.events_raw
    put(aside, dead, EVIL, 8)
    message = ConsumerRecord("elsewhere", 3, 9, 1_700_000_000_000, b"k", b"forged", ())
    dead_letter_message(aside, dead, [(message, UnreadableMessageError("not JSON"))], "g1")
    counts = {one["topic"]: (one["kept"], one["of"]) for one in ingest("dlq", "topics", "--json").json["topics"]}
    assert counts[dead] == (2, [origin])
    listed = {one["begins"]: one for one in ingest("dlq", "list", dead, "--json").json["messages"]}
    good, forged = listed["\x1b[2J\\xff not JSON \u202e"], listed["forged"]
    assert (good["redriven"], good["refusal"], good["redrives"]) == (False, None, 0)
    assert "no dead letters on this topic" in forged["refusal"]
    assert ingest("dlq", "list", dead, "--error-class", "Other", "--json").json["messages"] == []
    assert ingest("dlq", "list", dead, "--since", "1h", "--limit", "1", "--json").json["more"] is True
    page = ingest("dlq", "show", good["place"])
    assert f"ingest dlq redrive {good['place']}" in page.out
    assert ingest("dlq", "show", good["place"], "--json").json["begins"] == good["begins"]

    assert ingest("dlq", "redrive", good["place"]).exit_code == 2, "without a reason"
    seen = ingest("dlq", "redrive", dead, "--dry-run", "--json").json
    assert (seen["keys"], list(seen["failed"])) == ([good["place"]], [forged["place"]])
    assert aside.reader.end_offsets(origin) in ({}, dict.fromkeys(range(4), 0))
    done = ingest("dlq", "redrive", good["place"], "--reason", "fixed", "--json").json
    assert done["done"] == [good["place"]]
    assert sum(aside.reader.end_offsets(origin).values()) == 1
    assert ingest("dlq", "show", good["place"], "--json").json["redriven"] is True
    (record,) = ingest("audit", "--json").json["records"]
    assert (record["action"], record["reason"], record["done"]) == ("redrive-dead-letters", "fixed", 1)
    by_action = ingest("action", "run", "redrive-dead-letters", "--topic", origin, "--again", "yes", "--reason", "x")
    assert by_action.exit_code == 1, "the forged one fails"
    assert sum(aside.reader.end_offsets(origin).values()) == 2
    wrong = ingest("dlq", "list", "nothing")
    assert (wrong.exit_code, dead in wrong.err) == (1, True)
