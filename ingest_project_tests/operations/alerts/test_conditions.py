"""Each condition is found in a snapshot by the thresholds of its rules, and has an owner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, DagsterInstance

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.settings.alerts import CONDITIONS, QuietHours
from ingest_project.file_ingest.tables import files
from ingest_project.file_ingest.warehouse.baselines import Judgement, SourceReport, Usual, Verdict
from ingest_project.operations import SystemResources
from ingest_project.operations.alerts.conditions import Assessment, assess, gauges, history_seconds, require_known_names
from ingest_project.operations.alerts.facts import DagsterFailures, FileFacts, FileFactsPoll, Refusals
from ingest_project.operations.alerts.incidents import History
from ingest_project.operations.snapshot import DagsterState, Sample, SystemSnapshot, WarehouseState
from ingest_project.operations.topics import BrokerState, DeadLetters, StalledTopic, TopicLag
from ingest_project.platform.capability import WorkState
from ingest_project.platform.dagster.records import FailedChecks, FailedRun, FailingTicks, RunsInFlight, SensorOnRecord
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.database import writing
from ingest_project.platform.runtime import Disk
from ingest_project_tests.operations.seeding import file_row

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FRESH = Sample(BrokerState(()), NOW)
SERVICES = {"kafka": {"bootstrap_servers": "broker:9092"}, "warehouse": {"database_url": "postgresql://h/d"}}


def settings_of(**alerts: object) -> Settings:
    return Settings.model_validate({**SERVICES, "alerts": alerts})


def dagster(*, beat: timedelta = timedelta(), **more: Any) -> Sample[DagsterState]:  # noqa: ANN401 - fields
    state = DagsterState(heartbeats={"SENSOR": NOW - beat}, runs=RunsInFlight(0, 0), **more)
    return Sample(state, NOW)


def snapshot(settings: Settings | None = None, **parts: Any) -> SystemSnapshot:  # noqa: ANN401 - samples
    whole = {
        "broker": FRESH,
        "warehouse": Sample(WarehouseState(work={}), NOW),
        "dagster": dagster(),
        "disk": Sample(Disk(Path("/data"), 2, 1), NOW),
        "failures": Sample(DagsterFailures(), NOW),
        "file_facts": Sample(FileFacts(), NOW),
        "sources": Sample((), NOW),
    }
    return SystemSnapshot(settings=settings or settings_of(), at=NOW, **{**whole, **parts})


def found(one: SystemSnapshot, steps: Mapping[str, Any] | None = None, known: tuple[str, ...] = ()) -> Assessment:
    return assess(one, History(steps or {}), known)


def names(one: SystemSnapshot, steps: Mapping[str, Any] | None = None, known: tuple[str, ...] = ()) -> list[str]:
    return sorted(finding.name for finding in found(one, steps, known).findings)


def test_a_healthy_system_has_no_findings_and_every_condition_is_assessed() -> None:
    assert found(snapshot()) == Assessment((), frozenset(CONDITIONS))


def test_parts_that_are_away_are_found_and_what_they_hide_is_not_assessed() -> None:
    away: Sample[Any] = Sample(problem="timed out")
    result = found(snapshot(broker=away, warehouse=away, dagster=away, failures=away, file_facts=away, sources=away))
    assert [(one.name, one.policy.severity) for one in result.findings] == [
        ("part_away/broker", "critical"),
        ("part_away/warehouse", "critical"),
        ("part_away/dagster_storage", "critical"),
    ]
    assert "timed out" in result.findings[0].summary
    assert result.conditions == {"part_away", "disk", "freshness"}
    # A service that nobody has set is not away.
    assert names(snapshot(Settings(), broker=away, warehouse=away)) == []


def test_a_silent_daemon_a_full_disk_failing_ticks_and_runs_are_found() -> None:
    ticks = {"files": FailingTicks(3, "no route"), "jobs": FailingTicks(2, "x"), "alerts_sensor": FailingTicks(9, "x")}
    failures = DagsterFailures(
        runs=(FailedRun("batch", "r1", NOW - MINUTE), FailedRun("old", "r2", NOW - timedelta(days=8))),
        schedules={"nightly": FailingTicks(5, "boom", "schedule")},
    )
    one = snapshot(
        dagster=dagster(beat=timedelta(seconds=91), failing=ticks),
        disk=Sample(Disk(Path("/data"), 1, 2), NOW),
        failures=Sample(failures, NOW),
    )
    assert names(one) == ["daemon_silent", "disk", "job/batch", "schedule/nightly", "sensor/files"]
    quiet = settings_of(rules=[{"condition": "daemon_silent", "threshold": "5m"}, {"name": "batch", "enabled": False}])
    assert names(snapshot(quiet, dagster=one.dagster, failures=one.failures)) == ["schedule/nightly", "sensor/files"]


def test_a_stalled_topic_is_found_unless_a_person_stopped_its_sensor_and_stays_found_after_a_restart() -> None:
    broker = BrokerState((), (StalledTopic("t", "s", (0,), 5, 121), StalledTopic("u", "s", (0,), 5, 3)))
    assert names(snapshot(broker=Sample(broker, NOW))) == ["topic_stalled/t"]
    assert names(snapshot(broker=Sample(broker, NOW)), known=("topic_stalled/u",)) == [
        "topic_stalled/t",
        "topic_stalled/u",
    ]
    stopped = dagster(sensors={"s": SensorOnRecord("s", None, NOW, stopped=True)})
    assert names(snapshot(broker=Sample(broker, NOW), dagster=stopped)) == []


def test_a_lag_is_found_when_it_is_large_or_has_grown_all_the_time() -> None:
    broker = Sample(BrokerState((TopicLag(topic="t", sensor="s", waiting=5_000),)), NOW)
    grown = {
        "lag/t": [(NOW - minutes * MINUTE, value) for minutes, value in ((20, 0), (15, 1_000), (10, 2_000), (5, 3_000))]
    }
    assert names(snapshot(broker=broker), grown) == ["lag_growth/t"]
    assert names(snapshot(broker=broker), {"lag/t": grown["lag/t"][2:]}) == [], "nothing is known of its beginning"
    wavering = {"lag/t": [(NOW - minutes * MINUTE, value) for minutes, value in ((20, 0), (10, 6_000), (5, 3_000))]}
    assert names(snapshot(broker=broker), wavering) == []
    rules = [{"condition": "lag", "topic": "t*", "threshold": 5_000}, {"condition": "lag_growth", "window": "1h"}]
    settings = settings_of(rules=rules)
    assert names(snapshot(settings, broker=broker), grown) == ["lag/t"]
    assert history_seconds(settings) == 3_600
    unknown = Sample(BrokerState((TopicLag(topic="hub", sensor="s", problem="away"),)), NOW)
    assert not {"lag", "lag_growth"} & found(snapshot(broker=unknown)).conditions


def test_new_dead_letters_are_found_and_old_ones_are_not() -> None:
    broker = Sample(BrokerState((), (), (DeadLetters("t.dlq", 7, 7), DeadLetters("u.dlq", 7, 7))), NOW)
    steps = {"dead/t.dlq": [(NOW - timedelta(days=1), 5.0)], "dead/u.dlq": [(NOW - timedelta(days=1), 7.0)]}
    (one,) = found(snapshot(broker=broker), steps).findings
    assert (one.name, one.value) == ("dead_letters/t.dlq", 2)
    assert one.summary == "2 new dead letters on t.dlq in 15 min."
    assert "`ingest dlq list t.dlq`" in CONDITIONS[one.condition].remedy_for(one.name)
    assert names(snapshot(broker=broker), {"dead/t.dlq": [(NOW, 7.0)], "dead/u.dlq": [(NOW, 7.0)]}) == []
    # Created again: everything in it is new.
    assert names(snapshot(broker=broker), {**steps, "dead/u.dlq": [(NOW - timedelta(days=1), 900.0)]}) == [
        "dead_letters/t.dlq",
        "dead_letters/u.dlq",
    ]


def test_a_share_in_quarantine_is_judged_by_dataset_and_source_and_goes_to_the_owner() -> None:
    refusals = {
        1_800.0: {
            ("orders", ""): Refusals(
                files=10, refused_files=1, rows=900, quarantined_rows=500, examples=(("a~1", "bad"),)
            ),
            ("orders", "sftp"): Refusals(files=10, refused_files=1),
            ("other", ""): Refusals(files=10, rows=900, quarantined_rows=3),
        }
    }
    file_facts = Sample(FileFacts(refusals=refusals, owners={("dataset", "orders"): ("team:data",)}), NOW)
    owners = {"data": ["json://h"], "partners": ["json://h"]}
    rules = [
        {"condition": "quarantine", "source": "s*", "threshold": "10%", "owner": "partners", "severity": "critical"}
    ]
    settings = settings_of(owners=owners, rules=rules).model_copy(
        update={"monitor": Settings().monitor.model_copy(update={"url": "https://ops/"})}
    )
    by_name = {one.name: one for one in found(snapshot(settings, file_facts=file_facts)).findings}
    assert {name: (one.owner, one.policy.severity) for name, one in by_name.items()} == {
        "quarantine/orders": ("data", "warning"),
        "quarantine/orders/sftp": ("partners", "critical"),
    }
    assert by_name["quarantine/orders"].examples == ("a~1: bad https://ops/items/file/a~1",)
    assert by_name["quarantine/orders"].value == pytest.approx(5 / 9)
    assert "1 of 10 files, 500 of 900 rows" in by_name["quarantine/orders"].summary


def test_a_source_whose_last_file_is_not_usual_is_found_once_and_by_its_rules() -> None:
    def report(source: str, *values: float, at: datetime = NOW) -> SourceReport:
        usual = Usual(100.0, 90.0, 110.0, 30)
        judgements = tuple(Judgement(f"m{n}", value, usual) for n, value in enumerate(values))
        return SourceReport("orders", source, "a.csv~1", at, Verdict("orders", source, judgements, 30, 10))

    reports = (
        report("sftp://a", 5.0, 100.0),
        report("sftp://b", 5.0, 500.0),
        report("x" * 300, 5.0),
        report("y", 99.0),
        report("gone", 5.0, at=NOW - timedelta(days=2)),
    )
    checks = {3_600.0: (FailedChecks("orders", "within_baseline", 2, ("a",), "r"),)}
    one = snapshot(sources=Sample(reports, NOW), failures=Sample(DagsterFailures(checks=checks), NOW))
    by_name = {finding.name: finding for finding in found(one).findings}
    assert {name[:25] for name in by_name} == {
        "baseline/orders/sftp://a",
        "baseline/orders/sftp://b",
        f"baseline/orders/{'x' * 9}",
    }
    assert max(map(len, by_name)) <= 200
    finding = by_name["baseline/orders/sftp://b"]
    assert (finding.value, finding.policy.severity) == (2, "warning")
    assert "m1 500: usual are" in finding.summary
    assert finding.link.endswith("partition=a.csv~1")
    rules = [
        {"condition": "baseline", "source": "sftp*", "threshold": 2},
        {"dataset": "orders", "source": "x*", "enabled": False},
    ]
    assert names(snapshot(settings_of(rules=rules), sources=one.sources)) == ["baseline/orders/sftp://b"]
    away: Sample[Any] = Sample(problem="away")
    assert "baseline" not in found(snapshot(sources=away)).conditions


def test_failed_checks_and_broken_declarations_are_found() -> None:
    checks = {3_600.0: (FailedChecks("orders", "in_range", 2, ("a", "b"), "r"), FailedChecks("t", "fresh", 1, (), "r"))}
    warehouse = WarehouseState(work={"file_ingest": WorkState(problems=("defs.yaml, line 3: no", "x"))})
    one = snapshot(failures=Sample(DagsterFailures(checks=checks), NOW), warehouse=Sample(warehouse, NOW))
    assert {finding.name: finding.summary for finding in found(one).findings} == {
        "failed_check/orders/in_range": "The check in_range of orders failed for 2 partitions.",
        "failed_check/t/fresh": "The check fresh of t failed.",
        "declaration/file_ingest": "2 problems of file ingest: defs.yaml, line 3: no",
    }


def test_a_dataset_source_or_topic_without_arrivals_is_found() -> None:
    rules = [
        {"condition": "freshness", "dataset": "orders", "threshold": "2h"},
        {"condition": "freshness", "source": "sftp*", "threshold": "30m"},
        {"condition": "freshness", "dataset": "never", "threshold": "1h"},
        {"condition": "freshness", "topic": "clicks", "threshold": "10m"},
    ]
    settings = settings_of(rules=rules)
    arrivals = {
        ("orders", ""): NOW - 119 * MINUTE,
        ("orders", "sftp1"): NOW - 125 * MINUTE,
        ("x", "sftp2"): NOW - MINUTE,
    }
    topics = BrokerState((TopicLag(topic="clicks", sensor="s", waiting=0, next_offsets={0: 3, 1: 4}),))
    one = snapshot(settings, file_facts=Sample(FileFacts(arrivals=arrivals), NOW), broker=Sample(topics, NOW))
    assert gauges(one)["end/clicks"] == 7
    steps = {"end/clicks": [(NOW - 11 * MINUTE, 7.0)], "expected/never/": [(NOW - 61 * MINUTE, 0.0)]}
    assert names(one, steps) == ["freshness/clicks", "freshness/never", "freshness/sftp1"]
    later = snapshot(settings, file_facts=Sample(FileFacts(arrivals={("orders", ""): NOW - 121 * MINUTE}), NOW))
    (finding,) = found(later).findings
    assert finding.summary == "Nothing of the dataset orders has arrived for 2 h 1 min."


def test_the_share_and_the_arrivals_are_read_from_the_files(database_url: str, tmp_path: Path) -> None:
    rules = [
        {"condition": "freshness", "source": "sftp", "threshold": "1h"},
        {"condition": "quarantine", "window": "10m"},
    ]
    settings = Settings.model_validate(
        {"warehouse": {"database_url": database_url}, "state_dir": tmp_path, "alerts": {"rules": rules}}
    ).model_copy(update={"declarations": tmp_path / "none"})
    services, now = SystemResources(settings), datetime.now(UTC)
    rows = [
        file_row("a", "ingested", now, rows_accepted=60, rows_quarantined=40, job_id="sftp"),
        file_row("b", "quarantined", now, job_id="sftp", reason="no header"),
        file_row("c", "ingested", now, job_id="of a stranger"),
        file_row("d", "failed", now - 20 * MINUTE, job_id="sftp"),
    ]
    with writing(services.engine) as connection:
        for row in rows:
            connection.execute(files.insert().values(row))
    poll = FileFactsPoll(services)
    file_facts = poll()
    readings = "sensor_readings"
    assert file_facts.refusals[600.0][readings, "sftp"] == Refusals(
        files=2,
        refused_files=1,
        rows=100,
        quarantined_rows=40,
        examples=file_facts.refusals[600.0][readings, "sftp"].examples,
    )
    assert sorted(file_facts.refusals[600.0][readings, "sftp"].examples) == [
        ("a", "40 rows in quarantine"),
        ("b", "no header"),
    ]
    assert file_facts.refusals[600.0][readings, ""].share == 0
    assert file_facts.refusals[1_800.0][readings, "sftp"].files == 3
    with writing(services.engine) as connection:
        connection.execute(files.insert().values(file_row("e", "pending", now + MINUTE, job_id="sftp")))
    assert poll().arrivals[readings, "sftp"] == now + MINUTE
    services.engine.dispose()
    # Without the name of any source.
    services = SystemResources(settings.model_copy(update={"alerts": settings_of(rules=rules[1:]).alerts}))
    assert FileFactsPoll(services)().refusals[600.0][readings, ""].refused_files == 1
    services.engine.dispose()


def test_the_last_result_of_each_check_counts(any_instance: DagsterInstance) -> None:
    def report(check: str, *, passed: bool, partition: str | None = None) -> None:
        any_instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey("orders"),
                check_name=check,
                passed=passed,
                metadata={},
                severity=AssetCheckSeverity.ERROR,
                partition=partition,
            )
        )

    report("fresh", passed=False)
    report("fixed", passed=False)
    report("fixed", passed=True)
    for key in "abcd":
        report("in_range", passed=key == "a", partition=key)
    url = any_instance.event_log_storage.__dict__.get("postgres_url", "")
    settings = Settings.model_validate({"dagster": {"postgres_url": url, "home": any_instance.root_directory}})
    for records in (DagsterRecords(settings, any_instance), DagsterRecords(settings)):
        result = records.failed_checks(datetime.now(UTC) - MINUTE)
        assert [(one.check, one.failed, one.partitions) for one in result] == [
            ("fresh", 1, ()),
            ("in_range", 3, ("d", "c", "b")),
        ]
        (old,) = records.failed_checks(datetime.now(UTC) + MINUTE)
        assert old.check == "fresh"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INGEST_ALERT_RULES": '[{"condition": "quarantin"}]'}, "no condition 'quarantin', did you mean quarantine"),
        ({"INGEST_ALERT_RULES": '[{"condition": "lag", "treshold": 1}]'}, "treshold is unknown .* mean threshold"),
        ({"INGEST_ALERT_RULES": '[{"severity": "critcal"}]'}, "critcal is no severity, did you mean critical"),
        ({"INGEST_ALERT_RULES": '[{"owner": "dat"}]', "INGEST_ALERT_OWNERS": '{"data": "json://h"}'}, "mean data"),
        ({"INGEST_ALERT_RULES": '[{"condition": "quarantine", "threshold": 20}]'}, "is a share, at most 1 or 100%"),
        ({"INGEST_ALERT_RULES": '[{"condition": "disk", "threshold": 20}]'}, "disk has no threshold"),
        ({"INGEST_ALERT_RULES": '[{"condition": "lag", "window": "soon"}]'}, "'soon' is no duration"),
        (
            {"INGEST_ALERT_RULES": '[{"condition": "lag", "dataset": "a"}]'},
            "not told apart by dataset, but by topic and",
        ),
        ({"INGEST_ALERT_RULES": '["lag"]'}, "a rule has names and values"),
        ({"INGEST_ALERT_QUIET_HOURS": "22:00-06:00 Europe/Osl"}, "'Europe/Osl', did you mean Europe/Oslo"),
        ({"INGEST_ALERT_QUIET_HOURS": '{"critical": "22:00-06:00"}'}, "critical alerts are always sent"),
        ({"INGEST_ALERT_QUIET_HOURS": '{"warnin": "22:00-06:00"}'}, "did you mean warning"),
        ({"INGEST_ALERT_URLS": "hooks.slack.com/canary"}, "address 1 is no URL of Apprise"),
        ({"INGEST_ALERT_OWNERS": '{"data": []}'}, "the owner 'data' has no address"),
    ],
)
def test_a_mistake_in_the_settings_is_named_with_the_nearest_name(
    variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(variables, tmp_path)
    assert next(iter(variables)) in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "guess"),
    [
        ({"condition": "quarantine", "dataset": "sensor_reading"}, "sensor_readings"),
        ({"condition": "lag", "topic": "file-event-queu"}, "file-event-queue"),
        ({"condition": "dead_letters", "topic": "file-event-queue.dql"}, "file-event-queue.dlq"),
        ({"dataset": "declared_next_week"}, ""),
        ({"topic": "file-*"}, ""),
    ],
)
def test_a_rule_with_a_misspelt_name_is_refused_before_the_monitor_starts(
    rule: dict[str, str], guess: str, tmp_path: Path
) -> None:
    settings = load_settings({"INGEST_ALERT_RULES": json.dumps([rule])}, tmp_path).settings
    refused = pytest.raises(SettingsError, match=f"did you mean {guess}") if guess else nullcontext()
    with refused:
        require_known_names(SystemResources(settings))


def test_rules_and_owners_come_from_the_yaml_file_as_well(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "alerts:\n"
        "  urls: [slack://a/b/c]\n"
        "  owners: {data: [mailto://x@h]}\n"
        "  quiet_hours: {warning: 22:00-06:00 Europe/Oslo}\n"
        "  rules:\n"
        "    - {condition: quarantine, dataset: orders, threshold: 5%, window: 1h}\n"
        "    - {dataset: orders, owner: data}\n"
    )
    alerts = load_settings({}, tmp_path).settings.alerts
    policy = alerts.policy("quarantine", {"dataset": "orders", "source": "sftp"})
    assert (policy.threshold, policy.window_seconds, policy.owner, policy.severity) == (0.05, 3_600, "data", "warning")
    assert alerts.policy("quarantine", {"dataset": "other"}).threshold == 0.2
    assert alerts.policy("freshness", {"dataset": "orders"}).owner == "data"
    assert "slack" not in repr(alerts.urls)


def test_quiet_hours_that_a_clock_change_cuts_or_repeats_are_those_on_the_wall() -> None:
    cut, twice = (QuietHours.model_validate(f"{hours} Europe/Oslo") for hours in ("02:30-03:30", "02:15-02:45"))
    spring, autumn = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)
    assert cut.end_of(spring + timedelta(minutes=75)) == spring + timedelta(minutes=90)
    for minutes, end in ((10, None), (20, 45), (50, None), (80, 105), (106, None)):
        expected = autumn + timedelta(minutes=end) if end else None
        assert twice.end_of(autumn + timedelta(minutes=minutes)) == expected, minutes


def test_quiet_hours_follow_the_clock_of_their_zone() -> None:
    night = QuietHours.model_validate("22:00-06:00 Europe/Oslo")
    summer, winter = datetime(2026, 7, 1, 20, 0, tzinfo=UTC), datetime(2026, 1, 1, 21, 0, tzinfo=UTC)
    assert night.end_of(summer) == datetime(2026, 7, 2, 4, 0, tzinfo=UTC)
    assert night.end_of(winter) == datetime(2026, 1, 2, 5, 0, tzinfo=UTC)
    assert night.end_of(summer - timedelta(seconds=1)) is None
    assert night.end_of(datetime(2026, 7, 2, 4, 0, tzinfo=UTC)) is None
    # The night in which the clock is set forward.
    assert night.end_of(datetime(2026, 3, 28, 22, 0, tzinfo=UTC)) == datetime(2026, 3, 29, 4, 0, tzinfo=UTC)
    noon = QuietHours.model_validate("12:00-13:00")
    assert noon.end_of(NOW) == datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
