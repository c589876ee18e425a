"""`ingest_project.TopicStream`: a stream as a Dagster component, with a `defs.yaml`."""

import dagster as dg
from pydantic import BaseModel

from ingest_project.core.settings import current_settings
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.declared import definitions_of_stream, topics_of


class TopicStream(dg.Component):
    """The messages of a topic as rows of a table, each offset exactly once.

    Args:
        declaration: of the stream.
    """

    def __init__(self, declaration: StreamDeclaration) -> None:
        self.declaration = declaration

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the model of the attributes."""
        return StreamDeclaration

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "TopicStream":
        """Return the stream of a `defs.yaml`; its folder names it."""
        given = attributes.model_dump(exclude_unset=True) if attributes else {}
        return cls(StreamDeclaration.model_validate({"name": context.path.name, **given}))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return asset, checks, jobs, schedules and sensor of the stream, and its topics."""
        del context
        topics = topics_of(self.declaration, current_settings())
        return dg.Definitions.merge(definitions_of_stream(self.declaration), dg.Definitions(assets=topics))
