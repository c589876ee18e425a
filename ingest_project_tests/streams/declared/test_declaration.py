"""A mistake in a declaration is reported with its line and the nearest name, and disables only that stream."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from ingest_project.core.settings import Settings
from ingest_project.streams.declaration import load_streams

GOOD = """
topic: orders
event_time: at
columns:
  - {name: id, type: text, required: true}
  - {name: at, type: timestamp, required: true}
"""


def declare(folder: Path, name: str, attributes: str) -> None:
    (folder / name).mkdir(parents=True)
    text = f"type: ingest_project.TopicStream\nattributes:\n{indent(dedent(attributes).strip(), '  ')}\n"
    (folder / name / "defs.yaml").write_text(text)


def test_a_folder_of_declarations_is_loaded_by_name(tmp_path: Path) -> None:
    declare(tmp_path, "orders", GOOD)
    declare(tmp_path, "by_key", GOOD + "sink: {key: [id], version: at}\ndead_letter_topic: bad-orders")
    found = load_streams(Settings(declarations=tmp_path))
    assert found.broken == ()
    by_key, orders = found.usable
    assert (orders.name, orders.dlq, orders.time_column) == ("orders", "orders.dlq", "at")
    assert (by_key.name, by_key.dlq) == ("by_key", "bad-orders")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "topic:",
            "topics:",
            (
                "line 3: this is not a stream:\n"
                "  line 2: topic: Field required\n"
                "  line 3: topics is unknown, did you mean topic?"
            ),
        ),
        ("type: text", "type: txt", "'txt' is no type"),
        ("name: id", "name: kafka_id", "a column of the engine's own"),
        ("name: id", "name: trace_id", "a column of the engine's own"),
        ("name: id", "name: at", "the column at is declared twice"),
        ("event_time: at", "event_time: id", "event_time: id must be a column of type timestamp"),
        ("topic: orders", "topic: orders\ndecoder: yaml", "there is no decoder 'yaml'"),
        ("topic: orders", "topic: orders\ndecoder: jsn", "did you mean json?"),
        ("topic: orders", "topic: orders\ndrift: evolv", "did you mean evolve?"),
        ("topic: orders", "topic: orders\ndead_letter_topic: orders", "dead letters would be read again"),
        ("topic: orders", "topic: orders\nsink: {key: [idd]}", "sink.key: there is no column idd"),
        ("required: true}\n  - {name: at", "}\n  - {name: at", None),
        ("type: text", "type: text, path: a.b", "'a.b' is no path; write it like $.customer.id"),
        ("type: text", "type: text, path: $.at", "two columns have the same path"),
        ("type: text", "type: text, path: $.at.b", "the path of id leads into the field of at"),
        ("type: text", "type: text, epoch: seconds", "epoch is for timestamps"),
        ("topic: orders", "topic: orders\nsink: {key: [id], table: files}", "the table 'files' belongs to the system"),
        ("topic: orders", "topic: orders\nsink: {partition_by: month}", "sink.delta.partition_by"),
        ("topic: orders", "topic: orders\nname: user_activity_events", "is a name of the system's own"),
        ("topic: orders", "topic: orders\nname: orders_dlq", "is a name of the system's own"),
        ("type: text", "type: struct", "a struct needs fields"),
        ("type: text", "type: text, fields: [{name: a, type: text}]", "fields are for the type struct"),
        ("type: text", "type: record", "did you mean struct?"),
        ("type: text", "type: struct, fields: [{name: a, type: txt}]", "did you mean text?"),
        ("type: text", "type: struct, fields: [{name: a, type: text, pat: b}]", "did you mean path?"),
        (
            "type: text",
            "type: struct, fields: [{name: a, type: text}, {name: b, type: text, path: $.a}]",
            "column id: two columns have the same path",
        ),
        ("type: text", "type: struct, path: $.at, fields: [{name: a, type: text}]", "two columns have the same path"),
        ("type: text", "type: struct, fields: [{name: a, type: text}], max: 1", "min and max do not apply to struct"),
        (
            "type: text",
            "type: struct, fields: [{name: a, type: text}], allowed: [a]",
            "allowed does not apply to struct",
        ),
    ],
)
def test_a_mistake_is_named_and_the_other_stream_loads(tmp_path: Path, old: str, new: str, reason: str | None) -> None:
    assert old in GOOD
    declare(tmp_path, "bad", GOOD.replace(old, new, 1))
    declare(tmp_path, "good", GOOD.replace("topic: orders", "topic: others"))
    found = load_streams(Settings(declarations=tmp_path))
    assert "good" in [one.name for one in found.usable]
    if reason is not None:
        (broken,) = found.broken
        assert broken.name == "bad"
        assert reason in broken.problem
        assert str(tmp_path / "bad" / "defs.yaml") in broken.problem


def test_a_table_of_the_warehouse_has_no_structs_and_the_way_out_is_named(tmp_path: Path) -> None:
    struct = "\n  - {name: who, type: struct, fields: [{name: first, type: text}]}"
    declare(tmp_path, "a", GOOD.rstrip() + struct + "\nsink: {key: [id]}")
    assert "like $.who.first, or the type json" in load_streams(Settings(declarations=tmp_path)).broken[0].problem


def test_two_streams_never_store_in_one_table(tmp_path: Path) -> None:
    declare(tmp_path, "a", GOOD + "sink: {key: [id], table: shared}")
    declare(tmp_path, "b", GOOD + "sink: {key: [id], table: shared}")
    found = load_streams(Settings(declarations=tmp_path))
    assert [one.name for one in found.usable] == ["a"]
    assert "the stream a stores in shared" in found.broken[0].problem


def test_two_readers_of_a_topic_never_share_its_dead_letters(tmp_path: Path) -> None:
    declare(tmp_path, "a", GOOD)
    declare(tmp_path, "b", GOOD)
    declare(tmp_path, "c", GOOD + "dead_letter_topic: orders.c")
    declare(tmp_path, "d", GOOD.replace("topic: orders", "topic: user-activity-events"))
    found = load_streams(Settings(declarations=tmp_path))
    assert [one.name for one in found.usable] == ["a", "c"]
    of_b, of_d = (one.problem for one in found.broken)
    assert "the stream a reads orders as well, and its dead letters go to orders.dlq too" in of_b
    assert "a capability of the system reads user-activity-events as well" in of_d


def test_two_streams_never_pass_a_message_to_and_fro(tmp_path: Path) -> None:
    declare(tmp_path, "a", GOOD + "dead_letter_topic: orders.odd")
    declare(tmp_path, "b", GOOD.replace("topic: orders", "topic: orders.odd"))
    declare(tmp_path, "c", GOOD.replace("topic: orders", "topic: orders.odd") + "dead_letter_topic: orders")
    found = load_streams(Settings(declarations=tmp_path))
    assert [one.name for one in found.usable] == ["a", "b"]
    assert "the stream a reads its dead letters" in found.broken[0].problem


def test_a_stream_with_the_name_of_a_dataset_is_not_loaded(tmp_path: Path) -> None:
    declare(tmp_path, "a", GOOD + "name: weather")
    (tmp_path / "weather").mkdir()
    (tmp_path / "weather" / "defs.yaml").write_text(
        "type: ingest_project.FileDataset\nattributes:\n  columns: [{name: id, type: text}]\n"
    )
    found = load_streams(Settings(declarations=tmp_path))
    assert found.usable == ()
    assert "a dataset is called 'weather'" in found.broken[0].problem
