"""The shipped decoders pass the contract suite; those with a registry are tested with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from ingest_project.streams.decoders import DECODERS, DecoderFactory
from ingest_project.testing.decoders import DecoderContract


class TestJsonDecoder(DecoderContract):
    """JSON objects."""

    @pytest.fixture
    def factory(self) -> DecoderFactory:
        """The decoder of JSON."""
        return DECODERS["json"]

    @pytest.fixture
    def encode(self) -> Callable[[Mapping[str, object]], bytes]:
        """As JSON."""
        return lambda record: json.dumps(record).encode()
