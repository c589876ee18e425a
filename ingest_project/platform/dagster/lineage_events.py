"""Send OpenLineage events to a backend: the inputs, outputs and result of each run.

Events wait in memory for a thread that sends them. An unavailable or slow backend neither delays nor fails a run: what
is not sent when the process ends, after a bounded wait, is lost and logged. Loads OpenLineage's client.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from multiprocessing.util import Finalize
from typing import Any
from urllib.parse import unquote, urlsplit

import dagster as dg
import sqlalchemy as sa
from openlineage.client import OpenLineageClient, event_v2, facet_v2, set_producer
from openlineage.client.facet_v2 import data_quality_assertions_dataset as quality
from openlineage.client.facet_v2 import nominal_time_run, parent_run
from openlineage.client.naming import dataset as naming
from openlineage.client.transport.http import HttpConfig, HttpTransport

from ingest_project.core.items import end_of, parse_hour_key
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings, current_settings
from ingest_project.platform.dagster.catalog import DeltaTable, SqlTable, StoredTable
from ingest_project.platform.dagster.lineage import Catalog, Checked, Columns, Dataset, RunLineage, inputs_of
from ingest_project.platform.http import redacted_url
from ingest_project.platform.object_store.store import location_of
from ingest_project.platform.runtime import Runtime

logger = get_logger(__name__)

PRODUCER = "https://pypi.org/project/ingest-project"
DEFAULT_NAMESPACE = "ingest_project"
PARENT_RUN_TAG = "dagster/parent_run_id"
PARTITION_TAG = "dagster/partition"
SCHEDULED_TAG = ".dagster/scheduled_execution_time"
MAX_WAITING_EVENTS = 1_000
MAX_REASON = 2_000
POSTGRES_PORT = 5432
# Prefix of the jobs that Dagster creates for a selection of assets.
OF_A_SELECTION = "__"
MAX_ASSETS_NAMED = 3
REQUEST_SECONDS = 5.0
# Seconds that a process waits at its end for its last events to be sent.
FLUSH_SECONDS = 3.0


class RunReporter:
    """Sends the events of one run.

    Args:
        run: the Dagster run.
        description: description of its job.
    """

    def __init__(self, run: dg.DagsterRun, description: str | None = None) -> None:
        self._run, self._job_name, self._description = run, job_name(run), description

    def begin(self, inputs: Iterable[Dataset]) -> None:
        """Report the beginning of the run and its known inputs."""
        self._send("START", lambda: ([_input(one) for one in dict.fromkeys(inputs)], []))

    def end(self, found: RunLineage, catalog: Catalog, error: str | None = None, *, aborted: bool = False) -> None:
        """Report the end of the run.

        Args:
            found: data that the run read and wrote, up to a failure.
            catalog: datasets of the assets.
            error: reason of its failure.
            aborted: True if the run was stopped.
        """
        state = "ABORT" if aborted else "FAIL" if error is not None else "COMPLETE"
        self._send(state, lambda: _datasets(found, catalog), error)

    def lost(self, error: str, *, aborted: bool = False) -> None:
        """Report the end of a run that did not report it itself."""
        self._send("ABORT" if aborted else "FAIL", lambda: ([], []), error)

    def _send(self, state: str, datasets: Callable[[], tuple[list[Any], list[Any]]], error: str | None = None) -> None:
        """Build and queue an event. An error is logged, and the run continues."""
        try:
            sender = _sender()
            inputs, outputs = datasets()
            sender.send(self._event(state, inputs, outputs, error))
        except Exception:
            logger.exception("lineage_not_described", run_id=self._run.run_id)

    def _event(self, state: str, inputs: list[Any], outputs: list[Any], error: str | None) -> event_v2.RunEvent:
        facets: dict[str, Any] = {"jobType": facet_v2.job_type_job.JobTypeJobFacet("BATCH", "DAGSTER", "JOB")}
        if self._description:
            facets["documentation"] = facet_v2.documentation_job.DocumentationJobFacet(self._description)
        return event_v2.RunEvent(
            eventType=event_v2.RunState[state],
            eventTime=_iso(datetime.now(UTC)),
            run=event_v2.Run(self._run.run_id, self._run_facets(error)),
            job=event_v2.Job(_namespace(), self._job_name, facets),
            inputs=inputs,
            outputs=outputs,
            producer=PRODUCER,
        )

    def _run_facets(self, error: str | None) -> dict[str, Any]:
        engine = facet_v2.processing_engine_run.ProcessingEngineRunFacet(dg.__version__, "Dagster")
        facets: dict[str, Any] = {"processing_engine": engine}
        if nominal := _nominal_times(self._run.tags):
            facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(*map(_iso, nominal))
        if parent := _parent(self._run.tags, self._job_name):
            namespace, name, run_id = parent
            facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name))
        if error is not None:
            facets["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(error[:MAX_REASON], "Python")
        return facets


def job_name(run: dg.DagsterRun) -> str:
    """Return the name of a run's job, or of its assets if a person selected them."""
    if not run.job_name.startswith(OF_A_SELECTION):
        return run.job_name
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    return "+".join(assets[:MAX_ASSETS_NAMED]) or run.job_name


def catalog_of(
    specs: Iterable[dg.AssetSpec], stored: Mapping[dg.AssetKey, StoredTable], services: Callable[[], Runtime]
) -> Catalog:
    """Return the datasets behind assets: their tables, or the data at their addresses.

    Args:
        specs: specs of all assets, with columns and addresses in their metadata.
        stored: tables of assets.
        services: resources of this process.
    """
    by_key = {spec.key: spec for spec in specs}

    def dataset_of(asset: dg.AssetKey) -> Dataset | None:
        metadata = by_key[asset].metadata if asset in by_key else {}
        schema = metadata.get("dagster/column_schema")
        columns = tuple((one.name, one.type) for one in schema.columns) if isinstance(schema, dg.TableSchema) else ()
        table = stored.get(asset)
        if isinstance(table, SqlTable):
            return of_table(table.table, services().settings.warehouse.database_url.get_secret_value(), columns)
        if table is not None:
            store = table.store() if isinstance(table, DeltaTable) else table.store(services())
            return of_address(store.url, columns)
        address = metadata.get("dagster/uri")
        return of_address(str(address), columns) if address else None

    return Catalog(dataset_of, lambda asset: [dep.asset_key for dep in by_key[asset].deps] if asset in by_key else [])


def of_table(table: sa.Table, database_url: str, columns: Columns = ()) -> Dataset:
    """Return the dataset of a table of the warehouse."""
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return Dataset("file", f"{os.path.realpath(url.database or '')}/{table.name}", columns)
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    host, port = url.host or query.get("host", ""), str(url.port or query.get("port") or POSTGRES_PORT)
    # A host that is a path is the socket of a server on this machine.
    host = host if host and not host.startswith("/") else "localhost"
    schema = table.schema or query.get("options", "").partition("search_path=")[2].split(",")[0] or "public"
    return _named(naming.Postgres(host, port, url.database or url.username or "", schema, table.name), columns)


def of_address(address: str, columns: Columns = ()) -> Dataset | None:
    """Return the dataset at an address: a topic, a file, a folder, an object or a listing; None for anything else.

    Args:
        address: `kafka://server,…/topic`, `local:/path`, a path, or a URL; user and query are left out.
        columns: columns of the dataset.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "local" or "://" not in address or scheme == "file":
        path = rest if scheme == "local" else str(location_of(address))
        return _named(naming.LocalFileSystem(path), columns) if path.startswith("/") else None
    parts = urlsplit(redacted_url(address).removesuffix("?…"))
    if scheme == "kafka":
        host, _, port = parts.netloc.split(",")[0].rpartition(":")
        return _named(naming.Kafka(host or port, port if host else "9092", parts.path.strip("/")), columns)
    path = unquote(parts.path).strip("/")
    if scheme.startswith("s3+"):
        # The address of a server other than Amazon's precedes the bucket.
        bucket, _, key = path.partition("/")
        return _named(naming.S3(bucket, key or "/"), columns)
    # For an Azure account, the part before the @ is the container, not a user.
    container = urlsplit(address).username if scheme == "abfss" else None
    return Dataset(f"{scheme}://{f'{container}@' if container else ''}{parts.netloc}", path or "/", columns)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Wait until the events of this process are sent, for a bounded time."""
    if _sender.cache_info().currsize:
        _sender().flush(seconds)


def _named(name: naming.DatasetNaming, columns: Columns) -> Dataset:
    return Dataset(name.get_namespace(), name.get_name(), columns)


def _datasets(found: RunLineage, catalog: Catalog) -> tuple[list[Any], list[Any]]:
    """Return the inputs and outputs of a run; checks of a partition belong to the source it was read from."""
    outputs: dict[Dataset, Any] = {}
    inputs: dict[Dataset, list[Any]] = {one: [] for one in inputs_of(list(found.written), catalog)}
    sources = {partition: of_address(address) for partition, address in found.sources.items()}
    for source in sources.values():
        if source is not None:
            inputs.setdefault(source, [])
    for asset, written in found.written.items():
        if (dataset := catalog.dataset_of(asset)) is not None:
            # In an object store each partition is a file; a table is measured in rows.
            files = written.partitions if written.size_bytes is not None else None
            statistics = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                written.rows, written.size_bytes, files
            )
            outputs[dataset] = event_v2.OutputDataset(
                dataset.namespace, dataset.name, facets=_facets(dataset), outputFacets={"outputStatistics": statistics}
            )
    for (asset, partition), results in found.checks.items():
        checked_dataset = sources.get(partition) or catalog.dataset_of(asset)
        if checked_dataset is None:
            continue
        assertions = [_assertion(result) for result in results]
        if checked_dataset in outputs:
            outputs[checked_dataset].facets["dataQualityAssertions"] = _assertions(assertions)
        else:
            inputs.setdefault(checked_dataset, []).extend(assertions)
    return [_input(dataset, assertions) for dataset, assertions in inputs.items()], list(outputs.values())


def _input(dataset: Dataset, assertions: Sequence[Any] = ()) -> event_v2.InputDataset:
    own: dict[str, Any] = {"dataQualityAssertions": _assertions(assertions)} if assertions else {}
    return event_v2.InputDataset(dataset.namespace, dataset.name, facets=_facets(dataset), inputFacets=own)


def _assertions(assertions: Sequence[Any]) -> Any:  # noqa: ANN401 - the client's own class
    return quality.DataQualityAssertionsDatasetFacet(list(assertions))


def _assertion(result: Checked) -> Any:  # noqa: ANN401 - as above
    severity = "error" if result.severity is dg.AssetCheckSeverity.ERROR else "warn"
    description = (result.description or "")[:MAX_REASON] or None
    return quality.Assertion(result.check, success=result.passed, severity=severity, description=description)


def _facets(dataset: Dataset) -> dict[str, Any]:
    source = facet_v2.datasource_dataset.DatasourceDatasetFacet(dataset.namespace, dataset.namespace)
    facets: dict[str, Any] = {"dataSource": source}
    if dataset.columns:
        schema = facet_v2.schema_dataset
        fields = [
            schema.SchemaDatasetFacetFields(name, kind, ordinal_position=number)
            for number, (name, kind) in enumerate(dataset.columns, start=1)
        ]
        facets["schema"] = schema.SchemaDatasetFacet(fields)
    return facets


def _nominal_times(tags: Mapping[str, str]) -> tuple[datetime, ...]:
    """Return the nominal time of a run: the hour of its partition, or its scheduled time."""
    try:
        hour = parse_hour_key(tags[PARTITION_TAG])
    except (KeyError, ValueError):
        scheduled = tags.get(SCHEDULED_TAG)
        return (datetime.fromisoformat(scheduled),) if scheduled else ()
    return hour, end_of(hour)


def _parent(tags: Mapping[str, str], job_name: str) -> tuple[str, str, str] | None:
    """Return namespace, job and id of the run that this run retries, or that OPENLINEAGE_PARENT_ID names."""
    if run_id := tags.get(PARENT_RUN_TAG):
        return _namespace(), job_name, run_id
    named = os.environ.get("OPENLINEAGE_PARENT_ID", "").rsplit("/", 2)
    return (named[0], named[1], named[2]) if len(named) == 3 else None  # noqa: PLR2004 - the three of them


def _namespace() -> str:
    return current_settings().lineage.namespace or os.environ.get("OPENLINEAGE_NAMESPACE") or DEFAULT_NAMESPACE


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Sender:
    """Sends events in order from its own thread; the queue is bounded."""

    def __init__(self, settings: Settings) -> None:
        self._client = _client(settings)
        self._waiting: queue.Queue[event_v2.RunEvent] = queue.Queue(MAX_WAITING_EVENTS)
        self._done = threading.Condition()
        self._unsent = 0
        self._lost = Counter[str]()
        threading.Thread(target=self._work, name="lineage", daemon=True).start()

    def send(self, event: event_v2.RunEvent) -> None:
        """Queue an event; drop it if the queue is full."""
        with self._done:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                self._note_loss("The backend does not take events as fast as runs end.")
            else:
                self._unsent += 1

    def flush(self, seconds: float) -> None:
        """Wait until everything is sent or given up."""
        with self._done:
            if not self._done.wait_for(lambda: not self._unsent, seconds):
                logger.warning("lineage_not_sent", events=self._unsent, reason="The process ends.")

    def _work(self) -> None:
        while True:
            event = self._waiting.get()
            try:
                self._client.emit(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next event may be accepted
                # The error's message may quote the address, which may contain a key.
                failure = type(error).__name__
            else:
                failure = ""
            with self._done:
                self._unsent -= 1
                if failure:
                    self._note_loss(failure)
                elif self._lost:
                    logger.info("lineage_sent_again", lost=self._lost.total())
                    self._lost.clear()
                self._done.notify_all()

    def _note_loss(self, reason: str) -> None:
        if not self._lost[reason]:
            logger.warning("lineage_not_sent", reason=reason)
        self._lost[reason] += 1


@cache
def _sender() -> _Sender:
    sender = _Sender(current_settings())
    # Run workers are children of multiprocessing, which end without running Python's atexit handlers.
    Finalize(None, flush, exitpriority=10)
    return sender


def _client(settings: Settings) -> OpenLineageClient:
    set_producer(PRODUCER)
    if not settings.lineage.url:
        return OpenLineageClient()
    key = settings.lineage.api_key
    auth = {"auth": {"type": "api_key", "apiKey": key.get_secret_value()}} if key else {}
    config = {"url": settings.lineage.url, "timeout": REQUEST_SECONDS, **auth}
    return OpenLineageClient(transport=HttpTransport(HttpConfig.from_dict(config)))
