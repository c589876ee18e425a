"""The first half of a tick over a topic that is read in offset ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import load_settings
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.migrate import migrate
from ingest_project.platform.kafka.offset_ranges import Backlog
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.range_record import OffsetRange
from ingest_project.streams.ticks import plan, plan_backlog
from ingest_project_tests.journeys.system import close

TOPIC = "stream"


@pytest.fixture
def services(embedded_broker: EmbeddedBroker, tmp_path: Path) -> Iterator[SystemResources]:
    """A topic of one partition and a ledger."""
    embedded_broker.create_topic(TOPIC, 1)
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap_servers,
        "KAFKA_REQUEST_TIMEOUT_SECONDS": "3",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
    }
    services = SystemResources(load_settings(environ, tmp_path).settings)
    migrate(services.engine)
    yield services
    close(services)


def tick(services: SystemResources, saved: Positions | None) -> Positions:
    positions = plan_backlog(services, TOPIC, saved, size=10, most=100, wait_seconds=0)
    assert positions is not None
    return positions


def test_ticks_outlive_a_broker_that_is_away_and_plan_on_when_it_is_back(
    services: SystemResources, embedded_broker: EmbeddedBroker
) -> None:
    services.writer.send_all(TOPIC, [ProducerRecord(b"before")])
    saved = tick(services, None)
    saved = tick(services, saved)
    embedded_broker.go_down()
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError):
            tick(services, saved)
    embedded_broker.come_up()
    services.writer.send_all(TOPIC, [ProducerRecord(b"after")])
    assert tick(services, saved).next_offsets == {0: 2}
    assert {str(record.offsets) for record in services.stream_ranges.list(TOPIC)} == {
        "stream[0] 0 to 0",
        "stream[0] 1 to 1",
    }


def test_the_ledger_goes_before_a_cursor_that_a_crash_has_left_behind() -> None:
    backlog = Backlog("life", starts={0: 0, 1: 5}, log_starts={0: 0, 1: 5}, ends={0: 25, 1: 5}, notices=[])
    planned = plan(TOPIC, "life", backlog, {0: 10}, size=10, most=100)
    assert [(one.first, one.end) for one in planned.ranges] == [(10, 20), (20, 25)]
    assert planned.next_offsets == {0: 25, 1: 5}


def test_what_retention_removed_before_it_was_planned_is_lost_and_named() -> None:
    backlog = Backlog("life", starts={0: 30}, log_starts={0: 30}, ends={0: 40}, notices=[])
    planned = plan(TOPIC, "life", backlog, {0: 10}, size=100, most=100)
    assert planned.lost == [OffsetRange(TOPIC, "life", 0, 10, 30)]
    assert [(one.first, one.end) for one in planned.ranges] == [(30, 40)]


def test_a_tick_far_behind_plans_a_bounded_number_of_ranges_of_every_partition() -> None:
    ends = dict.fromkeys(range(3), 1_000_000)
    backlog = Backlog("life", dict.fromkeys(ends, 0), dict.fromkeys(ends, 0), ends, [])
    planned = plan(TOPIC, "life", backlog, {}, size=10, most=7)
    assert len(planned.ranges) == 9
    assert planned.next_offsets == dict.fromkeys(ends, 30)
