"""The migrations bring any database to this version's tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ingest_project import operations as metric_tables
from ingest_project.attachments import tables as attachment_tables
from ingest_project.core.errors import SettingsError
from ingest_project.file_ingest import tables
from ingest_project.operations.alerts import incidents as alert_tables
from ingest_project.platform.database import HEAD, REVISIONS, migrate, open_engine, schema_version, writing
from ingest_project.platform.database.sql import metadata
from ingest_project.streams import positions as stream_tables
from ingest_project.streams.crm import records as crm_tables
from ingest_project.streams.user_activity import hours as activity_tables

# Importing them registers them.
DESCRIBED = (tables, attachment_tables, crm_tables, stream_tables, metric_tables, activity_tables, alert_tables)

# Forks of one process, which wait until all of them are there: each by itself would import for seconds.
MIGRATE_AT_ONCE = """
import os, sys
from ingest_project.platform.database import migrate, open_engine
waiting, begin = os.pipe()
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os.close(begin)
        engine = open_engine(sys.argv[1])
        os.read(waiting, 1)
        migrate(engine)
        sys.exit()
    children.append(pid)
os.close(begin)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children) != 0)
"""


@pytest.fixture(params=["postgres", "sqlite"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new folder' / 'empty.db'}"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


def test_the_migrations_make_the_tables_that_the_code_sees(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    engine.dispose()
    # Indexes that are written in PostgreSQL's own words are not in the tables' description.
    own_words = re.compile("raw_sensor_data_by_file|.*_by_key_hash")
    assert [d for d in differences if not own_words.fullmatch(str(getattr(d[1], "name", "")))] == []


def test_the_newest_revision_is_head() -> None:
    config = Config()
    config.set_main_option("script_location", "ingest_project.platform.database:migrations")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == HEAD
    assert {one.revision for one in scripts.walk_revisions()} == REVISIONS


def test_a_current_database_costs_one_quick_query(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    asked: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    migrate(engine)
    engine.dispose()
    assert [text for text in asked if not text.startswith("BEGIN")] == ["SELECT version_num FROM alembic_version"]


def test_processes_that_start_at_once_all_find_a_migrated_database(empty_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", MIGRATE_AT_ONCE, empty_url]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    engine = open_engine(empty_url)
    assert schema_version(engine) == HEAD
    engine.dispose()


def test_a_migration_that_fails_half_way_leaves_nothing(empty_url: str) -> None:
    engine = open_engine(empty_url)
    with writing(engine) as connection:
        # Stands in the way of a table that is made late.
        connection.exec_driver_sql("CREATE TABLE outbox (id INTEGER)")
    with pytest.raises(sa.exc.DBAPIError):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == ["outbox"]
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TABLE outbox")
    migrate(engine)
    assert schema_version(engine) == HEAD
    engine.dispose()


def test_downgrading_to_nothing_and_upgrading_again_works(database_url: str) -> None:
    engine = open_engine(database_url)
    config = Config()
    config.set_main_option("script_location", "ingest_project.platform.database:migrations")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(engine)
    assert "files" in sa.inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize("version", ["0001", "0013"])
def test_tables_of_an_unknown_revision_are_refused_with_the_way_out(database_url: str, version: str) -> None:
    engine = open_engine(database_url)
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises(SettingsError, match=rf"revision {version}.*drop all tables"):
        migrate(engine)
    assert "files" in sa.inspect(engine).get_table_names()
    engine.dispose()


def test_a_schema_that_is_missing_or_closed_is_named_with_what_to_do(empty_postgres_url: str) -> None:
    for options, reason in (
        ("-csearch_path=nowhere", "no schema has been selected to create in"),
        ("-crole=pg_monitor", "permission denied for schema public"),
    ):
        engine = open_engine(
            sa.make_url(empty_postgres_url).set(query={"options": options}).render_as_string(hide_password=False)
        )
        with pytest.raises(SettingsError, match=rf"cannot be changed: .*{reason}\. Let the user"):
            migrate(engine)
        engine.dispose()
