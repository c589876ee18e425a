"""One page for each item, found by any of its ids, in the browser's console and on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
import sqlalchemy as sa

from ingest_project.attachments.capability import Attachments
from ingest_project.core.items import key_of
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.capability import FileIngest
from ingest_project.file_ingest.tables import files
from ingest_project.operations import SystemResources
from ingest_project.operations.dashboard.items import ROWS_A_PAGE
from ingest_project.operations.items import describe, find, trace
from ingest_project.platform.actions import action_record, action_records, items_of_action
from ingest_project.platform.database import open_engine, reading
from ingest_project.platform.items import ItemRef, Position, QueueView
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project_tests.journeys.system import System, readings
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.operations.seeding import busy_hour, file_row, put

TRACE = "trace-of-items"


@pytest.fixture
def landed(system: System) -> System:
    """Files of a polling job: clean, with bad rows, refused whole, and one message that is none."""
    system.write("clean.csv", readings(120))
    system.write("100%_some_bad.csv", readings(60, bad=3))
    system.write("100Xsome_bad.csv", readings(7, device="other"))
    system.write("refused.csv", "no,such,columns\n1,2,3\n")
    system.send_job(system.folder, "*.csv", trace_id=TRACE)
    system.drive()
    return system


@pytest.fixture
def site(landed: System) -> Iterator[str]:
    """The console over the system."""
    with running(landed.settings) as address:
        yield address


def test_every_item_is_found_by_its_ids_and_has_a_page_with_its_rows_reasons_bytes_and_trace(
    landed: System, site: str
) -> None:
    require_page_of_a_file_by_every_id(landed, site)
    require_reasons_of_rejected_rows_and_refused_files(landed, site)
    require_lists_of_several_hits_and_of_none(site)
    require_files_of_a_polling_job_and_of_a_trace(landed, site)
    require_nothing_of_what_is_not_on_record_and_of_other_topics(landed, site)
    require_pages_for_keys_of_any_name(site)
    require_page_of_a_message_that_is_none_with_its_dead_letter(landed, site)


def require_page_of_a_file_by_every_id(landed: System, site: str) -> None:
    record = landed.files()["clean.csv"]
    kafka_position, digest = record.kafka_position, record.file_key.rpartition("~")[2]
    ids = (
        *(
            record.file_key,
            digest,
            "clean.csv",
            "clean",
            record.event.event_id,
            str(record.sha256),
            record.event.file_path,
        ),
        *(
            f"{kafka_position.topic}/{kafka_position.partition}/{kafka_position.offset}",
            f"{kafka_position.topic}:{kafka_position.partition}:{kafka_position.offset}",
        ),
        *(
            f"{kafka_position.topic} {kafka_position.partition} {kafka_position.offset}",
            str(kafka_position),
            f"  {record.file_key} ",
        ),
    )
    page = f"{site}/items/file/{quote(record.file_key, safe='~')}"
    for text in ids:
        answer = requests.get(f"{site}/search", params={"q": text}, timeout=20)
        assert answer.url == page, text
    shown = answer.text
    for part in (record.file_key, TRACE, "ingested", kafka_position.topic, "Reader profile", "arrived"):
        assert part in shown
    assert "/runs/" in shown
    assert "assets/validated_sensor_data?view=partitions&amp;partition=" in shown
    assert "100%_some_bad.csv" in shown, "the other files of the trace and of the batch are linked"
    assert shown.count("device-1") == ROWS_A_PAGE + 1, "and that of the metrics"
    last = requests.get(page, params={"rows": "accepted", "first": "100"}, timeout=20).text
    assert last.count("device-1") == 21
    download = requests.get(f"{site}/bytes/landed/file/{record.file_key}", timeout=20)
    assert download.content == readings(120).encode()
    assert download.headers["Content-Disposition"].startswith("attachment")
    assert download.headers["Content-Type"] == "application/octet-stream"
    assert download.headers["X-Content-Type-Options"] == "nosniff"
    message = requests.get(f"{site}/bytes/message/file/{record.file_key}", timeout=20)
    assert message.json()["file_name"] == "clean.csv"


def require_reasons_of_rejected_rows_and_refused_files(landed: System, site: str) -> None:
    known = landed.files()
    page = requests.get(f"{site}/items/file/{quote(known['100%_some_bad.csv'].file_key)}", timeout=20).text
    assert page.count("value_out_of_range") >= 3
    assert "99999" in page
    refused = known["refused.csv"]
    page = requests.get(f"{site}/items/file/{refused.file_key}", timeout=20).text
    assert "quarantined" in page
    assert str(refused.reason) in unescape(page)
    assert requests.get(f"{site}/bytes/quarantined/file/{refused.file_key}", timeout=20).text.startswith("no,such")


def require_lists_of_several_hits_and_of_none(site: str) -> None:
    listed = requests.get(f"{site}/search", params={"q": "100"}, timeout=20).text
    assert "100%_some_bad.csv" in listed
    assert "100Xsome_bad.csv" in listed
    one = requests.get(f"{site}/search", params={"q": "100%_some"}, timeout=20)
    assert "/items/file/" in one.url
    for text in ("%", "_", "\\", "<script>alert(1)</script>", "x" * 5_000, "a\x00b", "http://[", "😀"):
        answer = requests.get(f"{site}/search", params={"q": text}, timeout=20)
        assert answer.status_code == 200
        assert "Nothing is called" in answer.text
        assert "SHA-256" in answer.text
        assert "<script>alert" not in answer.text
    empty = requests.get(f"{site}/search", timeout=20)
    assert empty.status_code == 200


def require_files_of_a_polling_job_and_of_a_trace(landed: System, site: str) -> None:
    (job,) = (hit for hit in find(landed.services, TRACE).hits if hit.kind == "polling_job")
    for kind in ("polling_job", "job", "polling-job"):
        page = requests.get(f"{site}/items/{kind}/{job.key}", timeout=20).text
        assert len(set(re.findall(r'href="[./]*(items/file/[^"]+)"', page))) == 4
    assert {hit.kind for hit in find(landed.services, TRACE).hits} == {"file", "polling_job"}
    whole = trace(landed.services, TRACE)
    record = landed.files()["clean.csv"]
    assert set(trace(landed.services, record.file_key).moments) > set(whole.moments)
    assert whole.trace_id == TRACE


def require_page_of_a_message_that_is_none_with_its_dead_letter(landed: System, site: str) -> None:
    topic = landed.settings.topics.polling_queue
    traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = (("traceparent", traceparent), ("authorization", b"Bearer of-a-secret"))
    landed.services.writer.send_all(topic, [ProducerRecord(b"{ <b>broken", b"key-1", headers)])
    landed.drive()
    view = next(
        view
        for offset in range(10)
        for partition in range(8)
        if (view := describe(landed.services, ItemRef("message", f"{topic}/{partition}/{offset}")))
        and view.state == "dead letter"
    )
    page = requests.get(f"{site}/items/message/{view.ref.key}", timeout=20).text
    assert "{ &lt;b&gt;broken" in page
    assert "0af7651916cd43dd8448eb211c80319c" in page
    assert "of-a-secret" not in page
    assert f"{topic}.dlq" in page
    letter = view.facts["Dead letter"]
    assert isinstance(letter, ItemRef)
    assert view.ref.key in requests.get(f"{site}/items/message/{letter.key}", timeout=20).text
    assert requests.get(f"{site}/bytes/message/message/{letter.key}", timeout=20).content == b"{ <b>broken"
    # By the id of its trace, its key, and an id in the bytes that could not be read.
    for text in ("0af7651916cd43dd8448eb211c80319c", "key-1", "broken"):
        hits = find(landed.services, text).hits
        assert (letter, "dead letter") in [(hit.ref, hit.state) for hit in hits], text
    assert requests.get(f"{site}/search?q=key-1", timeout=20).url == f"{site}/items/message/{letter.key}"
    (moment,) = (one for one in trace(landed.services, "key-1").moments if one.what == "dead-lettered")
    assert moment.subject == f"message {view.ref.key}"
    for part in ("roken", "key", "-1"):
        assert letter not in [hit.ref for hit in find(landed.services, part).hits], part


def require_nothing_of_what_is_not_on_record_and_of_other_topics(landed: System, site: str) -> None:
    landed.send("a-topic-of-others", b"private")
    for path in (
        "items/file/nothing~here",
        "items/nonsense/x",
        "items/message/a-topic-of-others/0/0",
        "items/message/x",
        "items/file/a%00b",
        "items/%00/a",
        "audit/%00",
        "bytes/%00/file/%00",
        "bytes/landed/file/nothing",
        "bytes/landed/nonsense/x",
        f"items/message/{landed.settings.topics.polling_queue}/0/99999",
    ):
        answer = requests.get(f"{site}/{path}", timeout=20)
        assert answer.status_code == 404, path
        assert "private" not in answer.text
    for path in ("audit?action=%00&who=%00", "audit?before=%00", "dead-letters?topic=", "search?q=%00"):
        assert requests.get(f"{site}/{path}", timeout=20).status_code == 200, path


def test_positions_are_read_in_every_usual_notation() -> None:
    for text in ("a.b-c/1/42", "a.b-c:1:42", "a.b-c 1 42", "a.b-c[1]@42", " a.b-c / 1 / 42 "):
        assert Position.parse(text) == ("a.b-c", 1, 42), text
    for text in ("a/b/c", "a/1", "/data/1/2/3", "a/1/99999999999999999999", ""):
        assert Position.parse(text) is None, text


def require_pages_for_keys_of_any_name(site: str) -> None:
    for name in ("größe.csv", "a b&c=d?.csv"):
        assert requests.get(f"{site}/items/file/{quote(key_of(name, 1))}", timeout=20).status_code == 404


def test_with_the_broker_or_the_warehouse_away_a_page_says_so_at_once(
    settings_of: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> None:
    put(open_engine(sqlite_url), files, [file_row("a.csv~1", "ingested", datetime.now(UTC))])
    with running(settings_of(sqlite_url)) as address:
        _wait_for_first_poll(address)
        page = requests.get(f"{address}/items/file/a.csv~1", timeout=10)
        assert page.status_code == 200
        assert "ingested" in page.text
        assert "Kafka at (not configured) does not answer" in page.text
    with running(settings_of(f"sqlite:///{tmp_path}")) as address:
        _wait_for_first_poll(address)
        for path in ("search?q=a.csv", "items/file/a.csv~1", "bytes/landed/file/a.csv~1", "audit", f"audit/{'f' * 32}"):
            page = requests.get(f"{address}/{path}", timeout=10)
            assert page.status_code == 503, path
            assert "cannot be" in page.text or "does not answer" in page.text, page.text


def test_an_index_answers_every_query_of_a_page(settings_of: Callable[..., Settings], postgres_url: str) -> None:
    now, services = datetime.now(UTC), SystemResources(settings_of(postgres_url))
    engine, asked = services.engine, dict[str, object]()
    busy_hour(engine, now, pace=0.1)
    file_key, attachment_key = (_first_key(engine, queue) for queue in (FileIngest.queues[0], Attachments.queues[1]))

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, text: str, values: object, _x: object, _many: object) -> None:
        asked.setdefault(text, values)

    for text in (file_key, "plant_0", "a" * 32, "/data/a.csv", "https://files.example.com/x", "file-event-queue/0/7"):
        find(services, text)
        trace(services, text)
    for kind, key in (("file", file_key), ("attachment", attachment_key), ("polling_job", "job_1"), ("event", "none")):
        view = describe(services, ItemRef(kind, key), "away")
        for rows in view.rows.values() if view else ():
            rows.page(100, ROWS_A_PAGE)
    action_records(engine, limit=50)
    action_record(engine, "none")
    items_of_action(engine, "none", 500)
    sa.event.remove(engine, "before_cursor_execute", note)

    with engine.connect() as connection:
        # Of the few rows here the planner would read all: it may only where no index serves.
        connection.exec_driver_sql("SET enable_seqscan = off")
        plans = {
            text: "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {text}", values))  # type: ignore[arg-type]
            for text, values in asked.items()
            if text.startswith(("SELECT", "WITH"))
        }
    engine.dispose()
    assert len(plans) > 20
    assert {text: plan for text, plan in plans.items() if "Seq Scan" in plan} == {}


def _first_key(engine: sa.Engine, items: QueueView) -> str:
    with reading(engine) as connection:
        return str(connection.execute(sa.select(items.key).limit(1)).scalar_one())


def _wait_for_first_poll(address: str) -> None:
    requests.get(f"{address}/readyz", timeout=20)
