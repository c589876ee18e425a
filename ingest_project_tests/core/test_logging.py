"""The log continues if its file is lost, and cannot control a terminal."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from ingest_project.core.logging import configure_logging, get_logger
from ingest_project.core.settings import LoggingSettings

HOSTILE = "a\x1b[2J\x9b31mb\u202ec\x7fd\udcffe\U000e0001f\ng"
SENT = ("\x1b", "\x9b", "\u202e", "\x7f", "\udcff", "\U000e0001")


@pytest.fixture(autouse=True)
def _log_of_one_test() -> Iterator[None]:
    logger = logging.getLogger("ingest_project")
    before = (logger.handlers, logger.level, logger.propagate)
    logger.handlers = []
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


def log_something_hostile() -> None:
    log = get_logger("ingest_project.tests")
    try:
        int(HOSTILE)
    except ValueError:
        log.exception("it_failed", name=HOSTILE, names=[HOSTILE])


def test_a_json_log_line_is_safe_for_a_terminal_and_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LoggingSettings(file=tmp_path / "log"))
    log_something_hostile()
    for text in (capsys.readouterr().err, (tmp_path / "log").read_text("utf-8")):
        assert not [one for one in SENT if one in text]
        assert text.count("\n") == 1
        line = json.loads(text)
        assert line["name"] == HOSTILE
        assert line["names"] == [HOSTILE]
        assert "ValueError: invalid literal" in line["exception"]


def test_a_console_log_line_is_safe_for_a_terminal_and_cannot_forge_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings(format="console"))
    log_something_hostile()
    said = capsys.readouterr().err
    assert not [one for one in SENT if one in said]
    first, *others = said.splitlines()
    assert r"a\x1b[2J\x9b31mb\u202ec\x7fd\udcffe\U000e0001f\ng" in first
    assert all(line.startswith("    ") for line in others)


def test_the_folder_of_the_log_file_is_made_for_this_user_alone(tmp_path: Path) -> None:
    configure_logging(LoggingSettings(file=tmp_path / "logs" / "deep" / "consumer.log"))
    get_logger("ingest_project.tests").info("it_works")
    assert "it_works" in (tmp_path / "logs" / "deep" / "consumer.log").read_text()
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0


def test_a_log_file_that_cannot_be_opened_is_said_at_once_and_the_log_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for log_file in (tmp_path / "file" / "consumer.log", tmp_path):
        configure_logging(LoggingSettings(file=log_file))
        get_logger("ingest_project.tests").info("it_goes_on")
        warned, went_on = map(json.loads, capsys.readouterr().err.splitlines())
        assert warned["level"] == "warning"
        assert f"LOG_FILE {log_file} is not written" in warned["event"]
        assert went_on["event"] == "it_goes_on"


def test_a_log_file_that_was_rotated_or_lost_its_folder_raises_in_no_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_file = tmp_path / "logs" / "consumer.log"
    configure_logging(LoggingSettings(file=log_file))
    log = get_logger("ingest_project.tests")
    log.info("first")
    log_file.rename(tmp_path / "rotated")
    log.info("second")
    assert "second" in log_file.read_text()
    log_file.unlink()
    log_file.parent.rmdir()
    log_file.parent.touch()
    capsys.readouterr()
    log.info("third")
    log.info("fourth")
    said = capsys.readouterr().err
    assert said.count("is not written") == 1
    assert "third" in said
    assert "fourth" in said
    log_file.parent.unlink()
    log.info("fifth")
    assert "fifth" in log_file.read_text()


def test_a_full_disk_under_the_log_file_stops_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    configure_logging(LoggingSettings(file=tmp_path / "full"))
    get_logger("ingest_project.tests").info("it_goes_on")
    said = capsys.readouterr().err
    assert "it_goes_on" in said
    assert "No space left on device" in said


def test_tracebacks_of_commands_and_threads_are_safe_for_a_terminal() -> None:
    program = """
import threading, typer
from ingest_project.cli import main
def broken():
    raise ValueError("a\\x1b[2J\\x9bb\\u202ec")
def files():
    thread = threading.Thread(target=broken); thread.start(); thread.join()
    broken()
import ingest_project.file_ingest.commands.files
ingest_project.file_ingest.commands.files.files_app = files
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program, "files"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(r"ValueError: a\x1b[2J\x9bb\u202ec") == 2
    assert not [one for one in SENT if one in done.stderr]


def test_a_retry_prints_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    failures = iter((OSError("not yet"),))

    @stamina.retry(on=OSError, wait_initial=0, wait_max=0)
    def done_at_last() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert done_at_last() == "done"
    assert capfd.readouterr().out == ""


def test_a_process_that_configures_no_log_shows_a_traceback_without_the_values_of_variables() -> None:
    script = """
from ingest_project.core.logging import get_logger

def connect(password):
    raise ValueError("refused")

try:
    connect("hunter2")
except ValueError:
    get_logger("daemon").exception("it_failed")
"""
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
    )
    said = done.stdout + done.stderr
    assert "it_failed" in said
    assert "ValueError: refused" in said
    assert "hunter2" not in said
