"""Sources that are known by a name: to be tried, and to be looked at again and again without anyone asking."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ingest_project.settings.fields import Section

MIN_SECONDS = 5


class ConfiguredSource(Section):
    """One source, and how often it is looked at."""

    source_config: dict[str, Any] = Field(
        description="source_type, path, credentials and the like, as a polling job has"
    )
    file_pattern: str = Field("*", description="glob that file names must match")
    priority: Literal["low", "normal", "high"] = Field("normal", description="high goes before normal before low")
    metadata: dict[str, Any] = Field(default_factory=dict, description="carried along to every file; format: a profile")
    every_seconds: float | None = Field(
        None, ge=MIN_SECONDS, description="how often it is looked at by itself; empty: only when a job asks"
    )

    @field_validator("source_config")
    @classmethod
    def _has_a_type(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("source_type"), str):
            raise ValueError("a source_config needs a source_type")  # noqa: TRY004 - pydantic takes ValueErrors
        return config
