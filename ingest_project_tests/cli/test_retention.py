"""`ingest retention`: expired records are purged, and a dry run lists them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest_project.operations import SystemResources
from ingest_project.platform.database import writing
from ingest_project.platform.kafka.publisher import outbox
from ingest_project_tests.cli.conftest import Ingest

DAGSTER_YAML = Path(__file__).parents[2] / "dagster.yaml"
TOPIC = "user-activity-events"


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dagster's records of this test alone, in files."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text(DAGSTER_YAML.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    return home


@pytest.fixture
def sent_long_ago(services: SystemResources) -> int:
    """Ten ids of messages that were published three years ago."""
    ids = [f"message-{number}" for number in range(10)]
    for message_id in ids:
        services.outbox.remember(TOPIC, message_id)
    with writing(services.engine) as connection:
        connection.execute(sa.update(outbox).values(created_at=datetime.now(UTC) - timedelta(days=1_000)))
    return len(ids)


@pytest.mark.usefixtures("dagster_home")
def test_a_dry_run_lists_what_would_be_purged_and_removes_nothing_and_a_real_run_removes_it(
    ingest: Ingest, services: SystemResources, sent_long_ago: int
) -> None:
    def number(*options: str) -> int:
        result = ingest("retention", "--json", *options)
        assert result.exit_code == 0, result.err
        (messages,) = (one for one in result.json["removals"] if one["what"] == "ids of published messages")
        return int(messages["number"])

    assert number("--dry-run") == sent_long_ago
    assert len(services.outbox.ids(TOPIC, "message-")) == sent_long_ago
    assert number() == sent_long_ago
    assert services.outbox.ids(TOPIC, "message-") == []
    assert number() == 0


@pytest.mark.usefixtures("dagster_home", "sent_long_ago")
def test_the_dry_run_prints_a_table(ingest: Ingest) -> None:
    said = ingest("retention", "--dry-run")
    assert said.exit_code == 0, said.err
    assert "Would be removed" in said.out
    assert "ids of published messages" in said.out


def test_without_dagsters_folder_it_says_what_to_do(ingest: Ingest, services: SystemResources) -> None:
    del services
    refused = ingest("retention")
    assert refused.exit_code != 0
    assert "ingest dev" in refused.err
    assert "Traceback" not in refused.err
