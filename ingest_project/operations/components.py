"""`ingest_project.FileDataset`, `TopicStream` and `Maintenance`: the Dagster components for users' declarations.

This project's own code location loads all declarations of its settings together, and Dagster's `dg` uses these classes
to scaffold, check and list them. In another Dagster project, a component contains everything that one dataset or stream
needs. All components share one resources object: Dagster does not merge different ones under the same name.
"""

from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import dagster as dg
from pydantic import BaseModel

from ingest_project.core.settings import current_settings
from ingest_project.file_ingest.checks import checks_of_dataset
from ingest_project.file_ingest.definitions import HOURLY_MAINTENANCE, assets_of_dataset, batch_job, dataset_maintenance
from ingest_project.file_ingest.sensors import file_events_sensor
from ingest_project.operations import SystemResources
from ingest_project.operations.definitions import retention
from ingest_project.readers.datasets import Declarations
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.declared import definitions_of_stream, topics_of

Declaration = TypeVar("Declaration", bound=BaseModel)

DATASET = """\
type: ingest_project.FileDataset

attributes:
  description: Rows of {name} files.

  # Endings of the files that are accepted.
  file_types: [csv]

  # Options of a reader profile, or the name of one. A column is found by its name, whatever its case and spacing.
  # reader:
  #   delimiter: ";"
  #   numbers: {{decimal: ","}}
  #   timestamps: {{formats: ["%d.%m.%Y %H:%M"], zone: Europe/Berlin}}
  #   columns: {{"Column of the file": name}}

  # Types: text, integer, number, decimal(12,2), boolean, date, timestamp, json.
  # Rules: required, min, max, pattern, allowed; also unit and description.
  columns:
    - {{name: id, type: text, required: true}}
    - {{name: at, type: timestamp, required: true}}
    - {{name: value, type: number}}

  # key: {{columns: [id, at], unique: file}}

  # A table of the warehouse, named like the dataset by default; or a Delta table.
  # target: {{delta: {name}, partition_by: []}}

  # Summaries of each file: min, max, mean, count, standard deviation.
  measures: {{columns: [value], group_by: [id]}}

  # Undeclared columns: rescue (as JSON next to the row), evolve (new columns) or freeze (refuse the file).
  drift: rescue

  # Files belong to this dataset by their path, by their polling job, or by `dataset` in the metadata of their event.
  paths: ["*/{name}/*"]
"""

STREAM = """\
type: ingest_project.TopicStream

attributes:
  topic: {name}

  # json, avro, protobuf, json_schema (these three with INGEST_SCHEMA_REGISTRY_URL) or text.
  decoder: json

  # Types: text, integer, number, decimal(12,2), boolean, date, timestamp, json; struct, with its `fields`.
  # Rules: required, min, max, pattern, allowed; `path` where the field is not called like the column.
  columns:
    - {{name: id, type: text, required: true}}
    - {{name: at, type: timestamp, required: true}}
    # - {{name: city, type: text, path: $.customer.address.city}}

  # The column with the time of the event; Kafka's time of the message by default.
  event_time: at

  # A Delta table by default; with a key, a table of the warehouse.
  # sink: {{key: [id], version: at, tombstones: delete}}

  # Fields that are not declared: rescue (as JSON next to the row), evolve (new columns) or freeze (refuse the message).
  drift: rescue
"""


class _Scaffolder(dg.Scaffolder):
    """Writes a working declaration with comments."""

    text: ClassVar[str]

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write `defs.yaml`."""
        name = request.target_path.name
        (request.target_path / "defs.yaml").write_text(self.text.format(name=name), encoding="utf-8")


class MaintenanceScaffolder(_Scaffolder):
    """Writes a component without options."""

    text = "type: ingest_project.Maintenance\n"


class FileDatasetScaffolder(_Scaffolder):
    """Writes a dataset."""

    text = DATASET


class TopicStreamScaffolder(_Scaffolder):
    """Writes a stream."""

    text = STREAM


class _Declared(dg.Component, Generic[Declaration]):
    """A component with a declaration as its attributes."""

    model: ClassVar[type[BaseModel]]

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the model of the attributes."""
        return cls.model

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Return the component that a folder declares, named after the folder unless the declaration has a name.

        Raises:
            ValidationError: the attributes contradict each other.
        """
        given = attributes.model_dump(exclude_unset=True) if attributes else {}
        return cls(cast("Declaration", cls.model.model_validate({"name": context.path.name, **given})))


@dg.scaffold_with(FileDatasetScaffolder)
class FileDataset(_Declared[DatasetDeclaration]):
    """A dataset: a kind of file, the contract of its rows, and their target."""

    model = DatasetDeclaration

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of one dataset for a separate Dagster project."""
        name, job = self.declaration.name, batch_job(self.declaration.name)
        services = _services()
        services.datasets = Declarations([*services.datasets.declared, self.declaration], services.datasets.broken)
        return dg.Definitions(
            assets=[assets_of_dataset(self.declaration)],
            asset_checks=checks_of_dataset(name),
            jobs=[job],
            sensors=[
                file_events_sensor(
                    f"{name}_file_event_queue_sensor", lambda topics: topics.file_event_queue, {name: job}
                ),
                file_events_sensor(f"{name}_file_events_sensor", lambda topics: topics.file_events, {name: job}),
            ],
            resources={"services": services},
        )


@dg.scaffold_with(TopicStreamScaffolder)
class TopicStream(_Declared[StreamDeclaration]):
    """The messages of a topic as rows of a table, each offset exactly once."""

    model = StreamDeclaration

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of one stream for a separate Dagster project."""
        topics = topics_of(self.declaration, current_settings())
        return dg.Definitions.merge(
            definitions_of_stream(self.declaration), dg.Definitions(assets=topics, resources={"services": _services()})
        )


@dg.scaffold_with(MaintenanceScaffolder)
class Maintenance(dg.Component):
    """The nightly purge of expired records, and the hourly maintenance of datasets in Delta. Use once per project."""

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Return the component, which has no options."""
        return cls()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the jobs and their schedules."""
        datasets = dg.Definitions(jobs=[dataset_maintenance], schedules=[HOURLY_MAINTENANCE])
        return dg.Definitions.merge(retention, datasets, dg.Definitions(resources={"services": _services()}))


@cache
def _services() -> SystemResources:
    """Return the resources of this process, which all components share."""
    return SystemResources(current_settings())
