"""Redriven dead letters: the original message is on its topic exactly once, and cannot loop for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from ingest_project.attachments.tables import AttachmentState
from ingest_project.core.errors import BrokerUnavailableError, UnreadableMessageError
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.redrive import REDRIVE
from ingest_project.platform.actions import ActionRefusedError, ActionRequest, Performed, action_records, perform
from ingest_project.platform.kafka.consumer import ConsumerRecord, Headers
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import MessageOutbox
from ingest_project.platform.work_queue.consume import Queue, consume, dead_letter_message
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.journeys.system import changed, close
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.services.http_server import HttpServer, content_of
from ingest_project_tests.services.kafka import FaultyBroker
from ingest_project_tests.streams.declared.system import DELTA, declare, declared_environment

BINARY = b"\x00\xff\x1b not JSON"
HEADERS: Headers = (("trace-id", b"t-1"), ("twice", b"1"), ("twice", b"\xff2"), ("empty", None))
OWN = {"redrive.count", "redrive.first-letter", "message-id"}
ROUTES = {
    "polling-queue": "polling-queue.dlq",
    "file-event-queue": "file-event-queue.dlq",
    "file_events": "file-event-queue.dlq",
    "events.raw": "events.raw.dlq",
    "downloads.pending": "downloads.dlq",
    "downloads.retry.40m": "downloads.dlq",
    "user-activity-events": "user-activity-events.dlq",
    "orders": "orders.dlq",
}


@pytest.fixture
def services(embedded_broker: FaultyBroker, sqlite_url: str, tmp_path: Path) -> Iterator[SystemResources]:
    """A system with one declared stream, on a broker and a database of this test alone."""
    declare(tmp_path, {"topic": "orders", **DELTA})
    environ = declared_environment(embedded_broker.bootstrap_servers, sqlite_url, tmp_path)
    topics = {name: value for name, value in environ.items() if not name.startswith("KAFKA_TOPIC_")}
    services = SystemResources(load_settings(topics, tmp_path).settings)
    yield services
    close(services)


def message(topic: str, offset: int = 0, value: bytes | None = BINARY, headers: Headers = HEADERS) -> ConsumerRecord:
    return ConsumerRecord(topic, 2, offset, 1_700_000_000_000, b"key", value, headers)


def put(services: SystemResources, *messages: ConsumerRecord, reason: str = "not JSON") -> None:
    """Messages of one topic have become dead letters."""
    refused = [(one, UnreadableMessageError(reason)) for one in messages]
    dead_letter_message(services, ROUTES[messages[0].topic], refused, "g1")


def redrive(
    services: SystemResources, topic: str, more: Mapping[str, str] | None = None, *, limit: int = 100, dry: bool = False
) -> Performed:
    request = ActionRequest(
        parameters={"topic": topic} | dict(more or {}), limit=limit, reason="fixed", who="test", dry_run=dry
    )
    return perform(services, REDRIVE, request)


def on_topic(services: SystemResources, topic: str) -> list[ConsumerRecord]:
    read = services.reader.read(topic, None, max_messages=100_000, max_bytes=10**9, wait_seconds=0)
    return sorted(read.messages, key=lambda one: (one.value or b"", one.partition, one.offset))


def without_own(headers: Headers) -> Headers:
    return tuple(header for header in headers if header[0] not in OWN)


def test_the_original_bytes_key_and_headers_go_to_the_topic_they_came_from(services: SystemResources) -> None:
    for number, (topic, dead) in enumerate(ROUTES.items()):
        put(services, message(topic, number), message(topic, number + 100, None))
        done = redrive(services, dead if number % 2 else topic)
        assert (len(done.done), done.failed) == (2, {}), topic
        tombstone, binary = on_topic(services, topic)
        assert (tombstone.value, binary.value, binary.key) == (None, BINARY, b"key")
        for redriven in (tombstone, binary):
            assert without_own(redriven.headers) == HEADERS
            assert redriven.header("redrive.count") == b"1"
            assert (redriven.header("redrive.first-letter") or b"").startswith(f"{dead}/".encode())
        assert redrive(services, dead).total == 0, "each of them once"
        assert len(on_topic(services, topic)) == 2


def test_a_message_goes_back_to_its_partition_where_there_is_one(
    services: SystemResources, embedded_broker: FaultyBroker
) -> None:
    for topic, partitions, expected in (("polling-queue", 4, 2), ("events.raw", 1, 0)):
        embedded_broker.create_topic(topic, partitions)
        put(services, *(message(topic, number) for number in range(4)))
        redrive(services, topic)
        assert {one.partition for one in on_topic(services, topic)} == {expected}


def test_a_producers_own_message_id_stays_and_ours_does_not(services: SystemResources) -> None:
    own: Headers = (("message-id", b"of-the-producer"), *HEADERS)
    put(services, message("events.raw", headers=own))
    redrive(services, "events.raw")
    (redriven,) = on_topic(services, "events.raw")
    ids = [value for name, value in redriven.headers if name == "message-id"]
    assert ids[0] == b"of-the-producer"
    assert (ids[1] or b"").startswith(b"redrive:events.raw.dlq:")
    assert len(ids) == 2


@pytest.mark.parametrize(
    "header",
    [
        ("dlq.original-topic", b"sales_events"),
        ("dlq.original-topic", b"user-activity-events"),
        ("dlq.original-topic", b"somebody-elses"),
        ("dlq.original-topic", b"events.raw.dlq"),
        ("dlq.original-topic", b"\xff"),
        ("dlq.original-topic", None),
        ("other", b"events.raw"),
    ],
)
def test_a_forged_header_publishes_to_no_other_topic(
    services: SystemResources, header: tuple[str, bytes | None]
) -> None:
    services.writer.send_all("events.raw.dlq", [ProducerRecord(b"forged", b"k", (header,))])
    for dry in (True, False):
        done = redrive(services, "events.raw.dlq", dry=dry)
        assert (done.keys, done.done, len(done.failed)) == ((), (), 1)
    topics = {header[1].decode("utf-8", "replace")} if header[1] else set()
    assert not any(services.reader.end_offsets(topic) for topic in topics - {"events.raw.dlq", "events.raw"})
    assert len(on_topic(services, "events.raw.dlq")) == 1


def test_a_message_that_fails_each_time_is_refused_after_so_many_times(services: SystemResources) -> None:
    services.writer.send_all("polling-queue", [ProducerRecord(BINARY, b"key", HEADERS)])
    positions: Positions | None = None

    def refuse(_value: bytes | None) -> object:
        raise UnreadableMessageError("not a job")

    queue = Queue("polling-queue", "polling-queue.dlq", refuse, 100, 0.0)
    most = services.settings.retries.max_redrives
    for count in range(most):
        positions = consume(services, queue, positions, lambda _: None)
        assert redrive(services, "polling-queue", dry=True).total == 1, "only the newest letter is left"
        assert len(redrive(services, "polling-queue").done) == 1, count
    consume(services, queue, positions, lambda _: None)
    letters = sorted(on_topic(services, "polling-queue.dlq"), key=lambda one: one.header("redrive.count") or b"")
    assert [one.header("redrive.count") for one in letters] == [None, b"1", b"2", b"3"]
    assert {one.header("redrive.first-letter") for one in letters[1:]} == {
        f"polling-queue.dlq/{letters[0].partition}/{letters[0].offset}".encode()
    }
    assert [without_own(one.headers)[: len(HEADERS)] for one in letters] == [HEADERS] * 4
    ended = redrive(services, "polling-queue")
    assert (ended.done, len(ended.failed)) == ((), 1)
    assert "INGEST_MAX_REDRIVES" in next(iter(ended.failed.values()))
    assert len(on_topic(services, "polling-queue")) == 1 + most


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["record_intent", "mark_sent"])
def test_killed_between_publication_and_record_each_letter_is_published_once(
    services: SystemResources, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(services, *(message("events.raw", number, f"{number}".encode()) for number in range(5)))
    with monkeypatch.context() as patched:

        def die(*_: object) -> None:
            raise Killed

        patched.setattr(MessageOutbox, step, die)
        with pytest.raises(Killed):
            redrive(services, "events.raw")
    assert len(on_topic(services, "events.raw")) == (5 if step == "mark_sent" else 0)
    later = SystemResources(services.settings)
    # What the first one had published is found before the second one selects, and counts as its work.
    assert len(redrive(later, "events.raw").done) == (0 if step == "mark_sent" else 5)
    killed = action_records(later.engine)[-1]
    assert (killed.outcome, killed.done) == ("interrupted", 5 if step == "mark_sent" else 0)
    assert [one.value for one in on_topic(later, "events.raw")] == [b"0", b"1", b"2", b"3", b"4"]
    assert redrive(later, "events.raw").total == 0
    close(later)


def test_a_dead_letter_is_redriven_twice_only_on_request(services: SystemResources) -> None:
    put(services, message("events.raw"), message("events.raw", 1, b"other"))
    redrive(services, "events.raw", limit=1)
    seen = redrive(services, "events.raw", dry=True)
    assert (seen.total, len(seen.notes)) == (1, 1)
    assert len(redrive(services, "events.raw", {"again": "yes"}).done) == 2
    assert len(on_topic(services, "events.raw")) == 3
    assert len(redrive(services, "events.raw", {"again": "yes"}).done) == 2
    assert redrive(services, "events.raw").total == 0
    assert len(on_topic(services, "events.raw")) == 5


def test_letters_are_chosen_by_what_their_headers_say(services: SystemResources) -> None:
    put(services, message("events.raw", 0, headers=()), reason="not JSON at all")
    put(services, message("events.raw", 1), reason="field domain is missing")
    put(services, message("events.raw", 2, b'{"trace_id": "t-2"', headers=()), reason="field domain is missing")
    (place,) = redrive(services, "events.raw", {"text": "NOT json"}, dry=True).keys
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    _, partition, offset = place.rsplit("/", 2)
    for more, number in (
        ({"text": "Domain"}, 2),
        ({"trace_id": "t-1"}, 1),
        ({"trace_id": "t-2"}, 1),
        ({"error_class": "UnreadableMessageError"}, 3),
        ({"error_class": "Unreadable"}, 0),
        ({"since": hour_ago}, 3),
        ({"until": hour_ago}, 0),
        ({"key": f"{place}\nevents.raw.dlq/0/99"}, 1),
        ({"key": "events.raw/2/1\nevents.raw/2/2"}, 2),
        ({"key": place, "topic": ""}, 1),
        ({"partition": partition, "first_offset": offset, "last_offset": offset}, 1),
        ({"partition": "99"}, 0),
    ):
        assert redrive(services, "events.raw", more, dry=True).total == number, more
    limited = redrive(services, "events.raw", dry=True, limit=2)
    assert (len(limited.keys), limited.remaining) == (2, 1)
    assert on_topic(services, "events.raw") == [], "a dry run changes nothing"
    for wrong in (
        {"partition": "x"},
        {"first_offset": "1"},
        {"key": "a/b"},
        {"key": "events.raw.dlq/0/1\npolling-queue.dlq/0/1", "topic": ""},
    ):
        with pytest.raises(ActionRefusedError):
            redrive(services, "events.raw", wrong)
    with pytest.raises(ActionRefusedError, match="ingest crm unidentified retry"):
        redrive(services, "sales_events")
    with pytest.raises(ActionRefusedError, match=r"events\.raw\.dlq"):
        redrive(services, "nothing")


def test_a_letter_that_retention_removes_meanwhile_fails_alone(
    services: SystemResources, embedded_broker: FaultyBroker
) -> None:
    put(services, message("events.raw", 0), message("events.raw", 1, b"other"))
    first, second = redrive(services, "events.raw", dry=True).keys
    _, partition, offset = first.rsplit("/", 2)
    embedded_broker.delete_records("events.raw.dlq", int(partition), int(offset) + 1)
    done = REDRIVE.apply(services, ActionRequest(parameters={"topic": "events.raw"}), (first, second))
    assert (done.done, list(done.failed)) == ((second,), [first])


def test_a_broker_that_goes_away_fails_the_letters_and_the_next_call_redrives_them(
    services: SystemResources, embedded_broker: FaultyBroker
) -> None:
    put(services, message("events.raw"))
    keys: Sequence[str] = redrive(services, "events.raw", dry=True).keys
    impatient = SystemResources(changed(services.settings, "kafka", request_timeout_seconds=0.5))
    embedded_broker.go_down()
    with pytest.raises(BrokerUnavailableError):
        REDRIVE.apply(impatient, ActionRequest(parameters={"topic": "events.raw"}), keys)
    embedded_broker.come_up()
    close(impatient)
    assert len(redrive(services, "events.raw").done) == 1


def test_a_dead_attachment_is_replayed_and_its_task_is_not_published(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/published/late.pdf"))
    system.drive_attachments()
    topic = system.settings.topics.downloads_dlq
    assert redrive(system.services, topic, dry=True).total == 1
    http_server.publish("/published/late.pdf", content_of("late.pdf", 5_000))
    assert len(redrive(system.services, topic).done) == 1
    before = len(system.on_topic(system.settings.topics.downloads_pending))
    assert redrive(system.services, topic).total == 0
    system.drive_attachments()
    assert system.services.attachments.counts_by_state()[AttachmentState.STORED] == 1
    assert len(system.on_topic(system.settings.topics.downloads_pending)) == before == 1


def test_the_page_of_dead_letters_lists_topics_and_the_newest_letters_with_the_way_to_redrive_them(
    services: SystemResources, embedded_broker: FaultyBroker
) -> None:
    put(services, message("polling-queue"), reason="<b>not JSON</b>")
    put(services, *(message("events.raw", number) for number in range(60)))
    redrive(services, "polling-queue")
    services.writer.send_all("orders.dlq", [ProducerRecord(b"forged", b"k", (("dlq.original-topic", b"<i>"),))])
    with running(services.settings) as site:
        page = requests.get(f"{site}/dead-letters", timeout=20).text
        assert all(topic in page for topic in ROUTES.values())
        assert "The 50 newest" in page
        assert "events.raw.dlq/" in page
        one = requests.get(f"{site}/dead-letters?topic=polling-queue.dlq", timeout=20).text
        assert "&lt;b&gt;not JSON" in one
        assert '<span class="state done">redriven</span>' in one
        assert "actions/redrive-dead-letters?topic=polling-queue.dlq" in one
        forged = requests.get(f"{site}/dead-letters?topic=orders.dlq", timeout=20).text
        assert "its header names &#39;&lt;i&gt;&#39;" in forged
        assert requests.get(f"{site}/dead-letters?topic=<script>", timeout=20).status_code == 404
        embedded_broker.go_down()
        away = requests.get(f"{site}/dead-letters", timeout=60)
        assert (away.status_code, embedded_broker.bootstrap_servers in away.text) == (503, True)
