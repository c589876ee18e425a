"""`ingest_project.TopicStream`: the Dagster component of a declared stream.

This project's own code location loads the declarations of its settings itself, and Dagster's `dg` scaffolds, checks and
lists them by this class. In another Dagster project the component brings all that a stream needs, resources included.
"""

from functools import cache
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from ingest_project.core.settings import current_settings
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.declared import definitions_of_stream, topics_of
from ingest_project.streams.resources import DeclaredStreamResources

SCAFFOLDED = """\
type: ingest_project.TopicStream

attributes:
  topic: {name}

  # json, avro, protobuf, json_schema (these three with INGEST_SCHEMA_REGISTRY_URL) or text.
  decoder: json

  # Types: text, integer, number, decimal(12,2), boolean, date, timestamp, json.
  # Rules: required, min, max, pattern, allowed; `path` where the field is not called like the column.
  columns:
    - {{name: id, type: text, required: true}}
    - {{name: at, type: timestamp, required: true}}
    # - {{name: city, type: text, path: $.customer.address.city}}

  # The column that says when it happened; Kafka's time of the message by default.
  event_time: at

  # A Delta table by default; with a key, a table of the warehouse.
  # sink: {{key: [id], version: at, tombstones: delete}}

  # Fields that are not declared: rescue (as JSON next to the row), evolve (new columns) or freeze (refuse the message).
  drift: rescue
"""


class TopicStreamScaffolder(dg.Scaffolder):
    """Writes a declaration that works, with comments."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write `defs.yaml`."""
        name = request.target_path.name
        (request.target_path / "defs.yaml").write_text(SCAFFOLDED.format(name=name), encoding="utf-8")


@dg.scaffold_with(TopicStreamScaffolder)
class TopicStream(dg.Component):
    """The messages of a topic as rows of a table, each offset exactly once."""

    def __init__(self, declaration: StreamDeclaration) -> None:
        self.declaration = declaration

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the shape of the attributes."""
        return StreamDeclaration

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Return the stream that a folder declares.

        Raises:
            ValidationError: the attributes contradict each other.
        """
        given = attributes.model_dump(exclude_unset=True) if attributes else {}
        return cls(StreamDeclaration.model_validate({"name": context.path.name, **given}))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return what the stream needs in a Dagster project of its own."""
        del context
        topics = topics_of(self.declaration, current_settings())
        return dg.Definitions.merge(
            definitions_of_stream(self.declaration),
            dg.Definitions(assets=topics, resources={"services": _services()}),
        )


@cache
def _services() -> DeclaredStreamResources:
    """Return the resources of this process, which all streams share."""
    return DeclaredStreamResources(current_settings())
