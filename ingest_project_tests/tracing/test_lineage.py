"""Every run reports what it read and wrote to a backend of OpenLineage."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.api import execute_run

from ingest_project.attachments.catalog import external_assets
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.dagster import lineage, lineage_events
from ingest_project.platform.dagster.catalog import topic_key
from ingest_project.platform.dagster.executor import lost_run_sensors, run_executor
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.file_ingest.datasets.system import BAD, GOOD, HEADER, DatasetSystem
from ingest_project_tests.journeys.system import POLLING, System, readings
from ingest_project_tests.services.http_server import HttpServer
from ingest_project_tests.services.openlineage import Backend, datasets, require_valid
from ingest_project_tests.streams.crm.messages import encoded as encoded_record
from ingest_project_tests.streams.crm.messages import opportunity
from ingest_project_tests.streams.crm.system import CrmSystem
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem
from ingest_project_tests.tracing.system import recorded

# Seconds, on a machine that has much else to do.
WAIT = 30
PARENT = "0195a1f0-0000-7000-8000-000000000001"


def warehouse(system: System) -> tuple[str, str]:
    """Namespace of the warehouse, and how names of tables begin."""
    url = sa.make_url(system.settings.warehouse.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        return "file", f"{os.path.realpath(str(url.database))}/"
    return f"postgres://{url.host}:{url.port}", f"{url.database}.public."


def topic(system: System, name: str) -> str:
    """Name of a topic's dataset."""
    return f"kafka://{system.settings.kafka.bootstrap_servers} {name}"


def test_a_polling_job_and_a_batch_of_files(system: System, backend: Backend) -> None:
    recorded(system)
    good, bad = system.write("good.csv", readings(4)), system.write("bad.csv", readings(3, device="d2", bad=1))
    system.send_job(system.folder, "*.csv")
    system.drive()
    lineage_events.flush(WAIT)
    polled, stored = backend.ended("polling_batch"), backend.ended("file_batch")
    topics = system.settings.topics
    assert polled["eventType"] == stored["eventType"] == "COMPLETE"
    assert datasets(polled, "inputs").keys() == {topic(system, topics.polling_queue), f"file {system.folder}"}
    assert datasets(polled, "outputs").keys() == {topic(system, topics.file_event_queue)}
    files = {f"file {path.resolve()}" for path in (good, bad)}
    queues = {topic(system, topics.file_event_queue), topic(system, topics.file_events)}
    inputs, outputs = datasets(stored, "inputs"), datasets(stored, "outputs")
    assert inputs.keys() == files | queues
    namespace, prefix = warehouse(system)
    rows = outputs[f"{namespace} {prefix}raw_sensor_data"]
    assert rows["outputFacets"]["outputStatistics"]["rowCount"] == 6
    assert {"name": "value", "type": "double precision"}.items() <= rows["facets"]["schema"]["fields"][3].items()
    landed = outputs[f"file {system.settings.landing_url}"]["outputFacets"]["outputStatistics"]
    assert (landed["fileCount"], landed["size"]) == (2, good.stat().st_size + bad.stat().st_size)
    assert outputs[f"{namespace} {prefix}quarantined_rows"]["outputFacets"]["outputStatistics"]["rowCount"] == 1
    checks = {
        name: {
            one["assertion"]: one["success"]
            for one in inputs[name]["inputFacets"]["dataQualityAssertions"]["assertions"]
        }
        for name in files
    }
    assert checks[f"file {good.resolve()}"]["contract_holds"] is True
    assert checks[f"file {bad.resolve()}"]["contract_holds"] is False
    assert backend.requests[0]["authorization"] == "Bearer a-secret-key"
    assert backend.requests[0]["path"] == "/api/v1/lineage"
    begun = next(one for one in backend.events if one["job"]["name"] == "file_batch")
    assert datasets(begun, "inputs").keys() == queues
    # A job of checks alone reads the tables that it judges.
    system.execute("file_checks", dg.RunRequest())
    lineage_events.flush(WAIT)
    judged = datasets(backend.ended("file_checks"), "inputs")[f"{namespace} {prefix}raw_sensor_data"]
    assert judged["inputFacets"]["dataQualityAssertions"]["assertions"]


def test_attachments(attachment_system: AttachmentSystem, http_server: HttpServer, backend: Backend) -> None:
    system = recorded(attachment_system)
    system.send_event(http_server.url("/files/a.pdf"), http_server.url("/files/b.pdf?secret=1"))
    system.drive_attachments()
    lineage_events.flush(WAIT)
    done = backend.ended("attachment_events_batch")
    outputs = datasets(done, "outputs")
    assert topic(system, system.settings.topics.events_raw) in datasets(done, "inputs")
    stored = outputs[f"file {system.settings.attachments_url}"]["outputFacets"]["outputStatistics"]
    assert (stored["fileCount"], stored["size"]) == (2, 200_000)
    results = outputs[f"file {system.settings.attachment_results_url}"]
    assert (
        results["facets"]["schema"]["fields"][0] | {"ordinal_position": 1} == results["facets"]["schema"]["fields"][0]
    )
    assert "secret=1" not in str(backend.events)


def test_user_activity(activity: ActivitySystem, backend: Backend) -> None:
    recorded(activity)
    activity.put(event("one"), event("two"), event("three"))
    activity.drive()
    lineage_events.flush(WAIT)
    stored = [one for one in backend.events if one["job"]["name"] == "user_activity_batch"][-1]
    counted = [one for one in backend.events if one["job"]["name"] == "user_activity_hourly_batch"][-1]
    for one in (stored, counted):
        require_valid(one)
    assert topic(activity, activity.topic) in datasets(stored, "inputs")
    table = f"file {activity.settings.user_activity_url}"
    assert datasets(stored, "outputs")[table]["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert table in datasets(counted, "inputs")
    namespace, prefix = warehouse(activity)
    assert f"{namespace} {prefix}user_activity_hourly" in datasets(counted, "outputs")


def test_crm(crm: CrmSystem, backend: Backend) -> None:
    recorded(crm)
    crm.put(encoded_record(opportunity()))
    crm.drive()
    lineage_events.flush(WAIT)
    done = backend.ended("crm_batch")
    namespace, prefix = warehouse(crm)
    assert datasets(done, "inputs").keys() == {topic(crm, crm.topic)}
    rows = datasets(done, "outputs")[f"{namespace} {prefix}opportunities"]
    assert rows["outputFacets"]["outputStatistics"]["rowCount"] == 1


def test_a_declared_dataset(weather: DatasetSystem, backend: Backend) -> None:
    system = recorded(weather)
    path = system.write("weather/a.csv", HEADER + GOOD + BAD)
    system.send_files(path)
    system.run_due()
    lineage_events.flush(WAIT)
    done = backend.ended("weather_batch")
    namespace, prefix = warehouse(system)
    rows = datasets(done, "outputs")[f"{namespace} {prefix}weather"]
    assert rows["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert "station" in {one["name"] for one in rows["facets"]["schema"]["fields"]}
    assert f"file {path.resolve()}" in datasets(done, "inputs")


def test_a_run_that_fails(system: System, backend: Backend) -> None:
    recorded(system)
    system.send_job(system.folder / "missing")
    (request,) = system.requests(POLLING)
    run = system.execute("polling_batch", request)
    lineage_events.flush(WAIT)
    done = backend.ended("polling_batch")
    assert done["eventType"] == "FAIL"
    assert "missing" in done["run"]["facets"]["errorMessage"]["message"]
    found = system.instance.get_run_by_id(run.run_id)
    assert found is not None
    assert lineage.REPORTED_TAG in found.tags


@pytest.mark.parametrize("fault", ["refusing", "slow"])
def test_an_unreachable_backend_neither_fails_nor_delays_a_run(
    system: System, lineage_to: Callable[[str], None], fault: str
) -> None:
    with Backend() as server:
        server.status, server.delay_seconds = (500 if fault == "refusing" else 201), (5.0 if fault == "slow" else 0.0)
        lineage_to(server.url)
        recorded(system)
        system.send_files(system.write("f.csv", readings(2)))
        system.drive()
        assert system.states() == {"f.csv": "ingested"}
        began = time.monotonic()
        lineage_events.flush(0.5)
        assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("address", "namespace", "name"),
    [
        ("local:/data/in/a b.csv", "file", "/data/in/a b.csv"),
        ("/data/landing", "file", "/data/landing"),
        ("file:///data/landing", "file", "/data/landing"),
        ("s3://bucket/in/a%20b.csv", "s3://bucket", "in/a b.csv"),
        ("s3+http://minio:9000/bucket/in/a.csv", "s3://bucket", "in/a.csv"),
        ("sftp://user:pw@host:2222/in/a.csv", "sftp://host:2222", "in/a.csv"),
        ("https://host/list/a.csv?sig=secret", "https://host", "list/a.csv"),
        ("abfss://box@acc.dfs.core.windows.net/a/b", "abfss://box@acc.dfs.core.windows.net", "a/b"),
        ("kafka://one:9092,two:9092/topic", "kafka://one:9092", "topic"),
    ],
)
def test_names_of_datasets_follow_the_specification(address: str, namespace: str, name: str) -> None:
    found = lineage_events.of_address(address)
    assert found is not None
    assert (found.namespace, found.name) == (namespace, name)


def test_a_run_that_was_killed_is_reported_by_a_sensor(instance: DagsterInstance, backend: Backend) -> None:
    @dg.job
    def any_job() -> None:
        """Nothing."""

    tags = {"dagster/parent_run_id": PARENT, ".dagster/scheduled_execution_time": "2026-01-15T10:00:00+00:00"}
    run = instance.create_run_for_job(any_job, tags=tags)
    reported = instance.create_run_for_job(any_job, tags={lineage.REPORTED_TAG: "true"})
    failed, canceled = lost_run_sensors()
    definitions = dg.Definitions(jobs=[any_job], sensors=[failed, canceled]).get_repository_def()
    for sensor in (failed, canceled):
        # The first tick of such a sensor notes where it begins.
        cursor = _evaluated(instance, definitions, sensor, None)
        instance.report_run_failed(run if sensor is failed else reported, "Its process ended.")
        _evaluated(instance, definitions, sensor, cursor)
    lineage_events.flush(WAIT)
    (event,) = backend.events
    require_valid(event)
    assert (event["eventType"], event["run"]["runId"]) == ("FAIL", run.run_id)
    facets = event["run"]["facets"]
    assert "Its process ended." in facets["errorMessage"]["message"]
    assert facets["parent"]["run"]["runId"] == PARENT
    assert facets["nominalTime"]["nominalStartTime"] == "2026-01-15T10:00:00.000Z"


def _evaluated(
    instance: DagsterInstance, repository: dg.RepositoryDefinition, sensor: dg.SensorDefinition, cursor: str | None
) -> str | None:
    with dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=repository) as context:
        return sensor.evaluate_tick(context).cursor


def test_openlineages_own_variables_hold(monkeypatch: pytest.MonkeyPatch, lineage_to: Callable[[str], None]) -> None:
    # The client itself adds variables.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with Backend() as server:
        os.environ |= {"OPENLINEAGE_URL": server.url, "OPENLINEAGE_NAMESPACE": "ours"}
        lineage_to("")
        assert lineage.is_on()
        lineage_events.RunReporter(dg.DagsterRun(job_name="any_job", run_id=PARENT)).begin([])
        lineage_events.flush(WAIT)
        (event,) = server.events
        assert event["job"] == event["job"] | {"namespace": "ours", "name": "any_job"}
        os.environ["OPENLINEAGE_DISABLED"] = "true"
        assert not lineage.is_on()


def test_a_run_that_is_stopped_is_aborted(instance: DagsterInstance, backend: Backend) -> None:
    @dg.op
    def stopped() -> None:
        raise DagsterExecutionInterruptedError

    @dg.job(executor_def=run_executor(lambda: lineage_events.catalog_of([], {}, lambda: SystemResources(Settings()))))
    def any_job() -> None:
        stopped()

    run = instance.create_run_for_job(any_job)
    with contextlib.suppress(DagsterExecutionInterruptedError):
        execute_run(InMemoryJob(any_job), run, instance)
    lineage_events.flush(WAIT)
    assert backend.ended("any_job")["eventType"] == "ABORT"


def test_an_event_hub_is_a_topic_of_its_namespace() -> None:
    address = (
        "Endpoint=sb://ours.servicebus.windows.net/;SharedAccessKeyName=reader;SharedAccessKey=c2VjcmV0;EntityPath=hub"
    )
    environ = {"EVENT_SOURCE": "eventhub", "INGEST_EVENT_HUBS_CONNECTION_STRING": address}
    settings = load_settings(environ).settings
    (events,) = [spec for spec in external_assets(settings) if spec.key == topic_key("events_raw")]
    found = lineage_events.catalog_of([events], {}, lambda: SystemResources(settings)).dataset_of(events.key)
    assert found == lineage.Dataset("kafka://ours.servicebus.windows.net:9093", "hub")
