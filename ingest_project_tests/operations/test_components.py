"""Components of every kind fit in one Dagster project of a user's own."""

from __future__ import annotations

import dagster as dg
from dagster.components.core.component_tree import ComponentTree

from ingest_project.operations.components import FileDataset, TopicStream
from ingest_project.readers.datasets import DatasetDeclaration
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project_tests.file_ingest.datasets.system import WEATHER
from ingest_project_tests.streams.declared.system import DELTA, KEYED


def test_datasets_and_streams_share_one_object_of_resources_in_another_project() -> None:
    context = ComponentTree.for_test().load_context
    definitions = dg.Definitions.merge(
        FileDataset(DatasetDeclaration.model_validate({"name": "weather", **WEATHER})).build_defs(context),
        TopicStream(StreamDeclaration.model_validate({"name": "clicks", "topic": "clicks", **DELTA})).build_defs(
            context
        ),
        TopicStream(StreamDeclaration.model_validate({"name": "orders", "topic": "orders", **KEYED})).build_defs(
            context
        ),
        dg.Definitions(assets=[dg.AssetSpec("own", deps=["weather", "clicks"])]),
    )
    dg.Definitions.validate_loadable(definitions)
    jobs = {job.name for job in definitions.get_repository_def().get_all_jobs()}
    assert {"weather_batch", "clicks_batch", "orders_batch"} <= jobs
