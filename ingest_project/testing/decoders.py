"""Contract of every decoder of stream messages: values by column, and a refusal of unreadable messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pytest

from ingest_project.contracts.columns import StreamColumn
from ingest_project.core.settings import Settings
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.decoders import Decoder, DecoderFactory

COLUMNS = (StreamColumn(name="name", type="text"), StreamColumn(name="count", type="integer"))
RECORDS = ({"name": "a", "count": 1}, {"name": "grüße €", "count": -(2**40)}, {"name": "", "count": 0})


def message(value: bytes, offset: int = 0) -> ConsumerRecord:
    """Return a message with this value."""
    return ConsumerRecord("topic", 0, offset, None, None, value, ())


class DecoderContract:
    """Override the fixtures `factory` and `encode`, and `settings` if the decoder needs some."""

    @pytest.fixture
    def factory(self) -> DecoderFactory:
        """Return the value of the entry point."""
        raise NotImplementedError("Override the fixture `factory`.")

    @pytest.fixture
    def encode(self) -> Callable[[Mapping[str, object]], bytes]:
        """Return a function that encodes a record of a text `name`, an integer `count` and maybe a text `more`."""
        raise NotImplementedError("Override the fixture `encode`.")

    @pytest.fixture
    def settings(self) -> Settings:
        """Return the settings of the process."""
        return Settings()

    @pytest.fixture
    def decoder(self, factory: DecoderFactory, settings: Settings) -> Decoder:
        """Return the decoder of a stream with the columns `name` and `count`."""
        return factory(COLUMNS, settings)

    @pytest.fixture
    def messages(self, encode: Callable[[Mapping[str, object]], bytes]) -> Sequence[ConsumerRecord]:
        """Return readable messages."""
        return [message(encode(record), offset) for offset, record in enumerate(RECORDS)]

    def test_messages_become_columns_in_their_order(self, decoder: Decoder, messages: Sequence[ConsumerRecord]) -> None:
        found = decoder.decode(messages)
        assert found.kept == messages
        assert found.refused == []
        names, counts = found.columns
        assert names == [record["name"] for record in RECORDS]
        assert [int(str(count)) for count in counts] == [record["count"] for record in RECORDS]

    def test_no_messages_are_no_values(self, decoder: Decoder) -> None:
        found = decoder.decode([])
        assert (found.kept, [len(column) for column in found.columns]) == ([], [0, 0])

    def test_a_message_that_cannot_be_read_is_refused_alone_with_a_reason(
        self, decoder: Decoder, messages: Sequence[ConsumerRecord]
    ) -> None:
        broken = [message(value, 9) for value in (b"\xff\xfe no message", b"\x00", b"{")]
        found = decoder.decode([broken[0], *messages, *broken[1:]])
        assert found.kept == messages
        assert [refused for refused, _ in found.refused] == broken
        assert all(str(reason) for _, reason in found.refused)
        assert {len(column) for column in found.columns} == {len(messages)}

    def test_a_field_without_a_column_is_kept_as_json(
        self, decoder: Decoder, encode: Callable[[Mapping[str, object]], bytes]
    ) -> None:
        found = decoder.decode([message(encode({"name": "a", "count": 1, "more": "x"}))])
        assert json.loads(found.unknown[0] or b"{}") == {"more": "x"}
