"""One engine, and failures reported with their remedy."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from ingest_project.core.errors import DatabaseUnavailableError, SettingsError, TransactionConflictError
from ingest_project.platform.database import migrate, open_engine, reading, redacted, writing
from ingest_project.platform.kafka.publisher import outbox
from ingest_project_tests.services.postgres import PostgresProcess, PostgresServer


def entry(created_at: datetime) -> dict[str, object]:
    return {"topic": "t", "message_id": "m", "state": "sent", "created_at": created_at}


def test_a_plain_postgresql_address_takes_the_driver_that_is_installed() -> None:
    engine = open_engine("postgresql://somebody@localhost/warehouse")
    assert engine.url.drivername == "postgresql+psycopg2"


def test_a_missing_address_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        open_engine("")


@pytest.mark.parametrize(
    "address",
    [
        "secret-that-is-no-url",
        "postgresql://u:very@secret@localhost/warehouse",
        "postgresql://u:secret@localhost:port/warehouse",
        "postgresql://u:secret@[::1/warehouse",
    ],
)
def test_a_malformed_address_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_engine(address)
    assert "secret" not in str(caught.value)
    assert redacted(address) == "(not a URL)"


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        engine = open_engine(f"postgresql://somebody:secret@127.0.0.1:{port}/warehouse", connect_timeout_seconds=2)
        with pytest.raises(DatabaseUnavailableError) as caught, reading(engine):
            pass
    assert f"127.0.0.1:{port}/warehouse" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_password_is_never_in_a_printed_address() -> None:
    assert redacted("postgresql://u:secret@h/d?password=secret") == "postgresql://u:***@h/d"
    assert redacted("no address: secret") == "(not a URL)"


def test_a_missing_database_is_unavailable_and_a_mistake_in_a_statement_is_seen_as_it_is(
    postgres_server: PostgresServer,
) -> None:
    engine = open_engine(postgres_server.url("no_such_database"))
    with pytest.raises(DatabaseUnavailableError, match="no_such_database"), reading(engine):
        pass
    engine = open_engine(postgres_server.url())
    with pytest.raises(sa.exc.ProgrammingError), reading(engine) as connection:
        connection.exec_driver_sql("SELECT nonsense")
    engine.dispose()


@pytest.mark.parametrize(
    ("setting", "statement", "state"),
    [
        ("statement_timeout = 1", "SELECT pg_sleep(5)", "stopped a statement: .* Raise statement_timeout"),
        ("TRANSACTION READ ONLY", "CREATE TABLE t (n int)", "is read-only: .* target_session_attrs=read-write"),
    ],
)
def test_a_statement_cancelled_by_an_operator_or_a_server_limit_is_transient(
    postgres_url: str, setting: str, statement: str, state: str
) -> None:
    engine = open_engine(postgres_url)
    with pytest.raises(DatabaseUnavailableError, match=state), writing(engine) as connection:
        connection.exec_driver_sql(f"SET {setting}; {statement}")
    engine.dispose()


def failure_of(url: str) -> str:
    engine = open_engine(url, connect_timeout_seconds=2)
    with pytest.raises(DatabaseUnavailableError) as caught, reading(engine):
        pass
    engine.dispose()
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


@contextmanager
def something_else(answer: bytes) -> Iterator[int]:
    """A server that is no PostgreSQL, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_all() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.recv(1_024)
                        connection.sendall(answer)

        threading.Thread(target=answer_all, daemon=True).start()
        yield listener.getsockname()[1]


def test_a_missing_database_a_refused_login_a_wrong_address_and_missing_tls_are_distinguished(
    own_postgres_server: PostgresProcess, tmp_path: Path
) -> None:
    server = own_postgres_server
    here = f"127.0.0.1:{server.port}"
    said = failure_of(f"postgresql://postgres:hunter2@{here}/no_such_database")
    assert "does not exist" in said
    assert "Create that database on the server, or correct its name in DATABASE_URL" in said
    said = failure_of(f"postgresql://nobody_here:hunter2@{here}/postgres")
    assert "refuses this login" in said
    assert "Correct user and password" in said
    said = failure_of(f"postgresql://postgres:hunter2@{here}/postgres?sslmode=require")
    assert "could not be reached with the configured TLS settings" in said
    assert "Correct sslmode" in said
    for wrong in ("sslmode=perhaps", "no_such_option=1"):
        assert "Correct DATABASE_URL." in failure_of(f"postgresql://postgres:hunter2@{here}/postgres?{wrong}")
    said = failure_of("postgresql://postgres:hunter2@no-such-host.invalid/postgres")
    assert "Correct the host in DATABASE_URL" in said
    with something_else(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        for tls in ("prefer", "disable"):
            said = failure_of(f"postgresql://postgres:hunter2@127.0.0.1:{port}/postgres?sslmode={tls}")
            assert "Another program answers at this address: correct host and port" in said
    server.execute("CREATE ROLE someone LOGIN PASSWORD 'hunter3'")
    (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    server.stop()
    said = failure_of(f"postgresql://postgres:hunter2@{here}/postgres")
    assert "No server listens at this address: start one" in said
    server._process = subprocess.Popen(server._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up_at = time.monotonic() + 20
    while "refuses this login" not in (said := failure_of(f"postgresql://someone:hunter2@{here}/postgres")):
        assert time.monotonic() < give_up_at, said
    assert "password authentication failed" in said
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.db", tmp_path):
        with pytest.raises(DatabaseUnavailableError, match=r"cannot be opened.*correct DATABASE_URL"):
            reading(open_engine(f"sqlite:///{path}")).__enter__()


def test_a_user_that_may_only_read_is_told_which_right_it_lacks(postgres_url: str) -> None:
    migrate(open_engine(postgres_url))
    may_read = sa.make_url(postgres_url).update_query_dict({"options": "-crole=pg_read_all_data"})
    engine = open_engine(may_read.render_as_string(hide_password=False))
    migrate(engine)
    with reading(engine) as connection:
        assert connection.execute(sa.select(outbox)).all() == []
    reason = r"cannot be changed: permission denied for table outbox\. Let the user"
    with pytest.raises(SettingsError, match=reason), writing(engine) as connection:
        connection.execute(sa.delete(outbox))
    engine.dispose()


def test_a_connection_that_was_cut_in_the_pool_is_replaced(postgres_url: str, postgres_server: PostgresServer) -> None:
    engine = open_engine(postgres_url)
    with reading(engine) as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 10000)")
    with reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    engine.dispose()


def test_a_server_that_comes_back_is_used_again_by_the_same_engine(own_postgres_server: PostgresProcess) -> None:
    engine = open_engine(own_postgres_server.url(), connect_timeout_seconds=2)
    with reading(engine) as connection:
        connection.exec_driver_sql("SELECT 1")
    own_postgres_server.kill()
    with pytest.raises(DatabaseUnavailableError), reading(engine):
        pass
    own_postgres_server.start()
    with reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    engine.dispose()


@pytest.mark.parametrize("options", ["", "?options=-csearch_path%3Dnowhere,public"])
def test_sessions_are_the_same_whatever_a_database_has_as_its_own(
    empty_postgres_url: str, postgres_server: PostgresServer, options: str
) -> None:
    name = make_url(empty_postgres_url).database
    for setting in ("timezone = 'America/St_Johns'", "extra_float_digits = -3", "datestyle = 'German'"):
        postgres_server.execute(f'ALTER DATABASE "{name}" SET {setting}')
    engine = open_engine(empty_postgres_url + options)
    with reading(engine) as connection:
        third, shown = connection.execute(sa.text("SELECT 1 / 3::float8, current_setting('lock_timeout')")).one()
        moment = connection.execute(sa.text("SELECT '2026-07-01 12:00'::timestamptz")).scalar_one()
        path = connection.execute(sa.text("SELECT current_setting('search_path')")).scalar_one()
    engine.dispose()
    assert (third, shown, moment) == (1 / 3, "1min", datetime(2026, 7, 1, 12, tzinfo=UTC))
    assert path.startswith("nowhere") == bool(options)


def test_times_come_back_as_the_same_moment_in_utc(database_url: str) -> None:
    moment = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    engine = open_engine(database_url)
    with writing(engine) as connection:
        connection.execute(sa.insert(outbox).values(entry(moment)))
    with reading(engine) as connection:
        found = connection.execute(sa.select(outbox.c.created_at)).scalar_one()
    engine.dispose()
    assert found == moment
    assert found.tzinfo == UTC


def test_a_time_without_zone_is_refused(database_url: str) -> None:
    engine = open_engine(database_url)
    with pytest.raises(sa.exc.StatementError, match="without zone"), writing(engine) as connection:
        connection.execute(sa.insert(outbox).values(entry(datetime(2026, 7, 1))))  # noqa: DTZ001 - what is tested
    engine.dispose()


def test_a_sqlite_writer_that_never_gets_its_turn_says_so(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_project.platform.database.SQLITE_BUSY_TIMEOUT_SECONDS", 0.1)
    first, second = open_engine(sqlite_url), open_engine(sqlite_url)
    with writing(first), pytest.raises(TransactionConflictError), writing(second):
        pass
    first.dispose()
    second.dispose()
