"""Settings of the monitor: where it listens, and who may look."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from ingest_project.settings.fields import Env, Section

SHORTEST_TOKEN = 16
FEWEST_CHARACTERS = 6


def _strong(token: SecretStr | None) -> SecretStr | None:
    text = token.get_secret_value() if token else ""
    if text and (len(text) < SHORTEST_TOKEN or len(set(text)) < FEWEST_CHARACTERS):
        raise ValueError(
            f"it can be guessed; it needs at least {SHORTEST_TOKEN} characters, {FEWEST_CHARACTERS} of them different. "
            "`openssl rand -hex 32` prints a good one"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("it must be of printable ASCII characters without spaces, as a header has to carry it")
    return token


class MonitorSettings(Section):
    """The page, the metrics and the health of the system."""

    host: Annotated[str, Env("INGEST_MONITOR_HOST")] = Field(
        "127.0.0.1", description="address that the monitor listens on; beyond this machine it wants a token"
    )
    port: Annotated[int, Env("INGEST_MONITOR_PORT")] = Field(
        8080, ge=0, le=65535, description="port of the monitor; 0 picks a free one"
    )
    token: Annotated[SecretStr | None, AfterValidator(_strong), Env("INGEST_MONITOR_TOKEN")] = Field(
        None,
        description="whoever looks at more than /healthz must know it, at least 16 characters; empty: nobody is asked",
    )
    refresh_seconds: Annotated[float, Env("INGEST_MONITOR_REFRESH_SECONDS")] = Field(
        2.0, ge=0.5, le=60, description="how often the monitor looks, and the page asks it"
    )
