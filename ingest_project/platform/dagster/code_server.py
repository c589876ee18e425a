"""Dagster's code server, with run workers that start warm.

    python -m ingest_project.platform.dagster.code_server --module-name ingest_project.definitions --port 4000

takes the arguments of `dagster api grpc` and is the same server, except that a run worker is not a new interpreter that
imports Dagster, Polars and pandera for two seconds, but a fork of a process that did so once, before the first run.
That process has no threads and no connections, which makes forking it safe. Without this module (`dagster dev`,
`dagster api grpc`) everything works as well, each run two seconds later.

Dagster's server starts processes by the "spawn" method of `multiprocessing` and no other, so this replaces that method.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.settings import current_settings

# Slow imports of every run worker, in addition to the definitions.
HEAVY_MODULES = (
    "adbc_driver_postgresql.dbapi",
    "dagster._grpc.impl",
    "ingest_project.sources.local",
    "ingest_project.platform.object_store.content_store",
    "ingest_project.file_ingest.warehouse.postgres",
    "pandera.backends.polars.register",
    "pandera.polars",
    "pandera.strategies.base_strategies",
    "psycopg2.extras",
)

# Ensures that no worker survives this server.
WORKERS_PARENT = "ingest_project.platform.dagster.workers_parent"

# Each sensor waits for a first message inside its tick and occupies a thread of the server meanwhile. By default there
# are four more than cores, and the launch of a run would wait for one as well.
THREADS = ("--max-workers", "32")


def share_cores(parallel_runs: int) -> None:
    """Give each run worker its share of the cores: more Polars threads than cores gain nothing.

    Args:
        parallel_runs: run workers that are busy at a time. POLARS_MAX_THREADS, where it is set, is left as it is.
    """
    os.environ.setdefault("POLARS_MAX_THREADS", str(max(1, (os.cpu_count() or 1) // parallel_runs)))


def warm_workers(modules: Sequence[str]) -> None:
    """Have this process start its workers as forks of one in which these modules are imported, from now on."""
    warm = multiprocessing.get_context("forkserver")
    warm.set_forkserver_preload([WORKERS_PARENT, *modules, *HEAVY_MODULES])
    cold_context = multiprocessing.get_context

    def context(method: str | None = None) -> BaseContext:
        return warm if method == "spawn" else cold_context(method)

    multiprocessing.get_context = context  # type: ignore[assignment]
    forkserver.ensure_running()


def main(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - never returns: it ends the process
    """Serve until stopped."""
    keep_files_private()
    share_cores(current_settings().file_ingest.max_parallel_batches)
    if "--module-name" in arguments:
        warm_workers([arguments[arguments.index("--module-name") + 1]])
    from dagster._cli.api import grpc_command  # noqa: PLC0415 - the workers' parent should be on its way first

    threads = () if THREADS[0] in arguments else THREADS
    return grpc_command(args=[*arguments, *threads], prog_name="ingest_project.platform.dagster.code_server")


if __name__ == "__main__":
    main(sys.argv[1:])
