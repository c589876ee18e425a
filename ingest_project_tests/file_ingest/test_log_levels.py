"""The log has a warning for each file that an operator must inspect, and none for good files."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import structlog
from structlog.testing import capture_logs

from ingest_project.file_ingest import definitions
from ingest_project.file_ingest.file_queue import FileQueue
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.database import open_engine
from ingest_project_tests.file_ingest.samples import arrival


@pytest.mark.parametrize(
    ("state", "rows_quarantined", "level"),
    [
        (FileState.INGESTED, 0, "info"),
        (FileState.DUPLICATE, 0, "info"),
        (FileState.INGESTED, 1, "warning"),
        (FileState.QUARANTINED, 0, "warning"),
        (FileState.FAILED, 0, "warning"),
        (FileState.PENDING, 0, "warning"),
    ],
)
def test_a_file_or_row_that_was_refused_is_a_warning(
    state: FileState, rows_quarantined: int, level: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A logger that was used before keeps its processors, and nothing of it would be captured.
    monkeypatch.setattr(definitions, "logger", structlog.get_logger())
    engine = open_engine(sqlite_url)
    queue = FileQueue(engine)
    queue.record([arrival("a")], datetime.now(UTC))
    record = queue.get("a")
    engine.dispose()
    assert record is not None
    with capture_logs() as logged:
        definitions._log(FileResult(record, state, rows_read=5, rows_quarantined=rows_quarantined))
    assert [line["log_level"] for line in logged] == [level]
