"""A monitor's parts over real databases and a real broker, and a running one for the browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import uvicorn
from pydantic import SecretStr
from selenium import webdriver
from starlette.types import ASGIApp

from ingest_project.core.settings import KafkaSettings, MonitorSettings, Settings, WarehouseSettings
from ingest_project.operations.dashboard import monitor_app
from ingest_project.operations.dashboard.limits import server_config
from ingest_project_tests.browser.programs import BrowserPrograms
from ingest_project_tests.browser.window import open_browser


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings that lead to a database and a broker, or to neither."""

    def made(
        database_url: str = "", bootstrap_servers: str = "", token: str | None = None, operator_token: str | None = None
    ) -> Settings:
        return Settings(
            state_dir=tmp_path,
            kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, request_timeout_seconds=5.0),
            warehouse=WarehouseSettings(database_url=SecretStr(database_url), connect_timeout_seconds=2),
            monitor=MonitorSettings(
                refresh_seconds=0.5,
                token=SecretStr(token) if token else None,
                operator_token=SecretStr(operator_token) if operator_token else None,
            ),
        )

    return made


@contextmanager
def running(settings: Settings, *, local_only: bool = True) -> Iterator[str]:
    """The monitor on a free port, and its address; ended in order."""
    with serving(monitor_app(settings, local_only=local_only)) as site:
        yield site


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """An application with /healthz on a free port, and its address; ended in order."""
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the monitor did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.read() == b"ok\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def shared_browser(programs: BrowserPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser for all tests of this folder."""
    with open_browser(programs, tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def browser(shared_browser: webdriver.Chrome) -> webdriver.Chrome:
    """The browser on an empty page and with an empty log: the page of an earlier test would go on asking its server."""
    shared_browser.get("about:blank")
    shared_browser.get_log("browser")  # type: ignore[no-untyped-call]
    return shared_browser
