"""A process that loads the definitions as a code server does: it starts once for all tests that look at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from ingest_project_tests.services.shared import made_once

IGNORED = {"KAFKA_TOPIC": "sales_events", "DB_PASSWORD": "s3cret"}
PROGRAM = """
import importlib, json, os, subprocess, sys
from ingest_project.platform.dagster.code_server import HEAVY_MODULES
for name in HEAVY_MODULES:
    importlib.import_module(name)
tasks = os.listdir("/proc/self/task")
threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
import ingest_project.definitions
from ingest_project.platform import tracing
tracing.publish("topic", None)
modules = sorted(sys.modules)
log_ignored = '''
from ingest_project.core.logging import configure_logging, log_ignored
from ingest_project.core.settings import load_settings
loaded = load_settings()
configure_logging(loaded.settings.logging)
log_ignored(loaded.ignored)
'''
subprocess.run([sys.executable, "-c", log_ignored], check=True)
print(json.dumps({"modules": modules, "threads": threads}), flush=True)
# Deleting all that was imported would take a second.
os._exit(0)
"""


@dataclass(frozen=True)
class LoadedDefinitions:
    """What the process left.

    Args:
        modules: that were imported in the end.
        threads: names of its threads when the modules of run workers were imported.
        log: of the process, with `IGNORED` in its environment, and of one that it started.
    """

    modules: list[str]
    threads: list[str]
    log: str

    def imported(self, *packages: str) -> set[str]:
        """Return those of the packages that were imported."""
        return {name.partition(".")[0] for name in self.modules} & {*packages}


@pytest.fixture(scope="session")
def loaded_definitions(tmp_path_factory: pytest.TempPathFactory) -> LoadedDefinitions:
    """Load the definitions in a process that has imported nothing before."""

    def load() -> str:
        folder = str(tmp_path_factory.mktemp("definitions"))
        environ = {**os.environ, **IGNORED, "INGEST_CONFIG_DIR": folder, "INGEST_STATE_DIR": folder}
        environ.pop("_INGEST_SETTINGS_IGNORED", None)
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.dumps(json.loads(done.stdout) | {"log": done.stderr})

    return LoadedDefinitions(**json.loads(made_once("loaded_definitions", tmp_path_factory, load)))
