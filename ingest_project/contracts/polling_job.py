"""PollingJob: somebody asks us to look in a source (topic `polling-queue`)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ingest_project.contracts.decoding import (
    MAX_NAME_LENGTH,
    decode,
    require_details,
    require_texts,
    without_null_values,
)
from ingest_project.contracts.file_event import MAX_PATH_BYTES, require_format
from ingest_project.core.errors import UnreadableMessageError

Priority = Literal["low", "normal", "high"]

MAX_PATTERN_BYTES = 512
LONGEST_TEXTS = {"job_id": 800, "file_pattern": MAX_PATTERN_BYTES, "trace_id": 1_024}
SECRET_NAMES = ("password", "secret", "token", "access_key", "private_key", "connection_string", "sas", "account_key")


class PollingJob(msgspec.Struct, frozen=True, kw_only=True):
    """A request to list a source and publish an event for each new file.

    Args:
        job_id: chosen by the sender; sending it again asks for another look at the same source.
        source_config: `source_type`, `path`, and what else that type of source needs. Never a secret: a job names
            stored credentials (`"credentials": "warehouse-sftp"`).
        file_pattern: glob that file names must match.
        priority: high goes before normal before low.
        metadata: carried along to every file event; `format` names a reader profile.
    """

    job_id: str
    source_config: dict[str, Any]
    file_pattern: str = "*"
    priority: Priority = "normal"
    metadata: dict[str, Any] = {}
    trace_id: str | None = None

    @property
    def source_type(self) -> str:
        """Kind of source, e.g. `local`."""
        return str(self.source_config["source_type"])

    @property
    def path(self) -> str:
        """Folder, prefix or listing address."""
        return str(self.source_config.get("path", ""))


class _SourceConfig(msgspec.Struct):
    source_type: str
    path: str = ""
    credentials: str | None = None


def decode_polling_job(raw: bytes | None) -> PollingJob:
    """One message of `polling-queue`.

    Raises:
        UnreadableMessageError: not a polling job; also when it carries a secret, which must not travel in messages.
    """
    job = decode(raw, PollingJob)
    if not job.job_id.strip() or len(job.job_id) > 200:  # noqa: PLR2004 - the bound is said in the reason
        raise UnreadableMessageError("Not a PollingJob: job_id must have 1 to 200 characters.")
    require_texts(job, LONGEST_TEXTS)
    require_details(job, "metadata", "source_config")
    require_format(job, job.metadata)
    trace_id = job.metadata.get("trace_id")
    if trace_id is not None and not (isinstance(trace_id, str) and len(trace_id) <= MAX_NAME_LENGTH):
        raise UnreadableMessageError(
            f"Not a PollingJob: metadata.trace_id must be a text of at most {MAX_NAME_LENGTH}."
        )
    job = msgspec.structs.replace(job, source_config=without_null_values(job.source_config))
    try:
        config = msgspec.convert(job.source_config, _SourceConfig)
    except msgspec.ValidationError as error:
        raise UnreadableMessageError(f"Not a PollingJob: {error} (in source_config).") from error
    if len(config.source_type) > MAX_NAME_LENGTH:
        raise UnreadableMessageError(f"Not a PollingJob: source_type is longer than {MAX_NAME_LENGTH} characters.")
    if len(config.path.encode()) > MAX_PATH_BYTES:
        raise UnreadableMessageError(f"Not a PollingJob: source_config.path is longer than {MAX_PATH_BYTES} bytes.")
    for name in job.source_config:
        if name.lower() in SECRET_NAMES:
            raise UnreadableMessageError(
                f'source_config carries {name!r}: name stored credentials instead ("credentials": "…").'
            )
    return job
