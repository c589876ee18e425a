"""Components of every kind fit in one Dagster project of a user's own."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTree
from pydantic import BaseModel, ValidationError

from ingest_project.operations.components import FileDataset, Maintenance, TopicStream
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project_tests.file_ingest.datasets.system import WEATHER
from ingest_project_tests.streams.declared.system import DELTA, KEYED


@pytest.mark.parametrize(
    ("model", "attributes", "said"),
    [
        (DatasetDeclaration, {**WEATHER, "drfit": "rescue"}, "drfit\n  Value error, is unknown, did you mean drift?"),
        (DatasetDeclaration, {**WEATHER, "drift": "resuce"}, "'freeze', did you mean rescue?"),
        (DatasetDeclaration, {"columns": [{"nmae": "a"}]}, "nmae\n  Value error, is unknown, did you mean name?"),
        (DatasetDeclaration, {**WEATHER, "reader": {"numbers": {"decimel": ","}}}, "unknown, did you mean decimal?"),
        (StreamDeclaration, {"topic": "t", "sink": {"key": ["a"], "verson": "b"}}, "unknown, did you mean version?"),
        (StreamDeclaration, {"topic": "t", "sink": {"partition_by": "days"}}, "'hour', did you mean day?"),
    ],
)  # fmt: skip
def test_a_component_model_proposes_the_nearest_name_or_value(
    model: type[BaseModel], attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(attributes)
    # Dagster adds the file and the line so.
    again = ValidationError.from_exception_data("again", caught.value.errors())  # type: ignore[arg-type]
    assert said in str(again)


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
        Maintenance.load(None, context).build_defs(context),
        dg.Definitions(assets=[dg.AssetSpec("own", deps=["weather", "clicks"])]),
    )
    dg.Definitions.validate_loadable(definitions)
    jobs = {job.name for job in definitions.get_repository_def().get_all_jobs()}
    assert {"weather_batch", "clicks_batch", "orders_batch", "retention", "dataset_maintenance"} <= jobs
    schedules = {schedule.name for schedule in definitions.get_repository_def().schedule_defs}
    assert {
        "retention_every_night",
        "dataset_maintenance_every_hour",
        "clicks_maintenance_every_ten_minutes",
    } <= schedules
