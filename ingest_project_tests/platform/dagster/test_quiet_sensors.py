"""Sensors that rest: when they may, and what wakes them."""

from __future__ import annotations

from threading import Event, Thread

import pytest
from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus

from ingest_project.platform.dagster import quiet_sensors
from ingest_project.platform.dagster.quiet_sensors import QuietSensors


class Clock:
    """The monotonic clock of the module."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(quiet_sensors, "time", clock)
    return clock


def tick(quiet: QuietSensors, clock: Clock, *, had_work: bool = False) -> None:
    clock.now += 1
    quiet.ticked("reader", clock.now - 0.5, lambda: had_work)


def resting(clock: Clock) -> QuietSensors:
    quiet = QuietSensors({"reader": ["a", "b"], "other": ["c"]})
    clock.now += quiet_sensors.LINGER_SECONDS
    for topic in quiet.to_watch(clock.now):
        quiet.watched(topic)
    tick(quiet, clock)
    assert quiet.rests("reader")
    quiet.sensor_due.clear()
    return quiet


def test_a_sensor_rests_only_after_a_tick_that_began_with_all_its_topics_watched(clock: Clock) -> None:
    quiet = QuietSensors({"reader": ["a", "b"]})
    assert quiet.to_watch(clock.now) == set(), "it may have something to do soon"
    clock.now += quiet_sensors.LINGER_SECONDS
    assert quiet.to_watch(clock.now) == {"a", "b"}
    quiet.watched("a")
    tick(quiet, clock)
    assert not quiet.rests("reader")
    began = clock.now
    quiet.watched("b")
    quiet.ticked("reader", began - 0.1, lambda: False)
    assert not quiet.rests("reader"), "what arrived after that tick had read and before b was watched is unknown"
    tick(quiet, clock)
    assert quiet.rests("reader")


def test_a_message_wakes_its_reader_alone_and_its_topic_is_watched_again_later(clock: Clock) -> None:
    quiet = resting(clock)
    quiet.arrived("a")
    assert not quiet.rests("reader")
    assert quiet.sensor_due.is_set()
    assert quiet.to_watch(clock.now) == set()
    clock.now += quiet_sensors.LINGER_SECONDS
    assert quiet.to_watch(clock.now) == {"a"}


def test_a_message_is_news_until_the_next_tick_of_its_reader_begins(clock: Clock) -> None:
    quiet = resting(clock)
    quiet.wake(["reader"])
    assert not quiet.has_news("reader")
    quiet.arrived("a")
    assert quiet.has_news("reader")
    assert not quiet.has_news("other")
    quiet.began("reader")
    assert not quiet.has_news("reader")
    quiet.began("a person's own")
    assert not quiet.has_news("a person's own")


def test_a_sensor_with_unfinished_runs_goes_on_ticking(clock: Clock) -> None:
    quiet = resting(clock)
    quiet.wake(["reader"])
    for _ in range(10):
        tick(quiet, clock, had_work=True)
    quiet.ticked("reader", clock.now, lambda: False)
    assert not quiet.rests("reader")
    clock.now += quiet_sensors.LINGER_SECONDS
    tick(quiet, clock)
    assert quiet.rests("reader")


def test_no_sensor_rests_while_topics_cannot_be_watched_or_that_is_not_known(clock: Clock) -> None:
    quiet = resting(clock)
    quiet.unwatched()
    assert not quiet.rests("reader")
    assert not quiet.rests("a person's own")
    quiet.ticked("a person's own", clock.now, lambda: False)


def test_a_sensor_that_reads_no_topic_rests_until_it_is_woken(clock: Clock) -> None:
    quiet = QuietSensors({"counter": []})
    clock.now += quiet_sensors.LINGER_SECONDS
    quiet.ticked("counter", clock.now, lambda: False)
    assert quiet.rests("counter")
    quiet.wake(["counter"])
    assert not quiet.rests("counter")


def test_a_sensor_that_is_switched_on_ends_the_wait_between_two_rounds(
    dagster_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet_sensors, "WAIT_SECONDS", 0.1)
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ingest"), "__repository__"), "s"
    )
    sensor = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.STOPPED)
    dagster_instance.add_instigator_state(sensor)
    alarm = quiet_sensors._Alarm(Event())
    alarm.instance = dagster_instance
    alarm.wait(30.0)
    alarm.longest_seconds = 30.0
    waiting = Thread(target=alarm.wait, args=(0.0,), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive(), "nothing was switched"
    dagster_instance.update_instigator_state(sensor.with_status(InstigatorStatus.RUNNING))
    waiting.join(10.0)
    assert not waiting.is_alive()
