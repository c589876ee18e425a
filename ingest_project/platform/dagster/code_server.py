"""Dagster's code server, with run workers that start warm.

    python -m ingest_project.platform.dagster.code_server --module-name ingest_project.definitions --port 4000

takes the arguments of `dagster api grpc` and is the same server, except for its run workers: each is a fork of a parent
process that has imported Dagster, Polars and pandera once, instead of a new interpreter that imports them for 2 s.
The parent is itself a fork of this process, made before this one has connections or threads, so that both share the
memory of the imported modules. The parent only imports: reading a user's declarations would start Polars' threads,
which a fork lacks and would wait for forever. So each worker builds the definitions itself, which takes 0.1 s. Without
this module (`dagster dev`, `dagster api grpc`) everything works, and each run starts 2 s later.

A run worker must not continue once nobody can see or stop it. The kernel ensures that, in whatever order processes are
killed: the workers' parent, which imports this module first, ends with the code server, and each worker with its
parent. SIGTERM ends the workers alone; their parent runs as long as the code server does.

Dagster's server starts processes by the "spawn" method of `multiprocessing` and no other, so this replaces that method.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext
from typing import Any

from ingest_project.core.local_files import keep_files_private
from ingest_project.core.settings import current_settings

# Slow imports of every run worker, with what they import. None of them starts Polars' threads.
HEAVY_MODULES = (
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.plan.active",
    "dagster._core.instance.factory",
    "dagster._core.secrets.env_file",
    "dagster._core.storage.root",
    "dagster._core.system_config.composite_descent",
    "dagster._utils.test.definitions",
    "ingest_project.file_ingest.warehouse.postgres",
    "ingest_project.operations.definitions",
    "ingest_project.platform.dagster.executor",
    "ingest_project.readers.formats.csv_reader",
    "ingest_project.sources.local",
    "multiprocessing.popen_forkserver",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "pandera.backends.polars.builtin_checks",
    "pandera.backends.polars.components",
    "pandera.backends.polars.container",
    "pandera.backends.register_checks",
    "psycopg2.sql",
    "upath.implementations.local",
)
# Imported first by the workers' parent, see the end of the module.
THIS_MODULE = "ingest_project.platform.dagster.code_server"
# Each tick occupies a thread of the server, for seconds if it reads much. By default there are four more threads than
# cores, and the launch of a run would wait for a free one.
THREADS = ("--max-workers", "32")
PR_SET_PDEATHSIG = 1
_workers_parent = 0


def share_cores(parallel_runs: int) -> None:
    """Give each run worker its share of the cores: more Polars threads than cores gain nothing.

    Args:
        parallel_runs: number of run workers that are busy at a time. A POLARS_MAX_THREADS that is set takes precedence.
    """
    from ingest_project.platform.runtime import processors  # slow, like all that `warm_workers` imports

    os.environ.setdefault("POLARS_MAX_THREADS", str(max(1, processors() // parallel_runs)))


def warm_workers() -> None:
    """Make this process start its run workers as forks of a process that has imported the heavy modules."""
    for name in HEAVY_MODULES:
        import_module(name)
    # The collector does not write to frozen objects, so their memory stays shared.
    gc.collect()
    gc.freeze()
    warm = multiprocessing.get_context("forkserver")
    warm.set_forkserver_preload([THIS_MODULE, *HEAVY_MODULES])
    cold_context = multiprocessing.get_context

    def context(method: str | None = None) -> BaseContext:
        return warm if method == "spawn" else cold_context(method)

    multiprocessing.get_context = context  # type: ignore[assignment]
    resource_tracker.ensure_running()
    start_program = util.spawnv_passfds
    # Fork only the first parent: if it is killed, this process has threads by then, and starts a new program.
    vars(util)["spawnv_passfds"] = _fork_program
    try:
        forkserver.ensure_running()
    finally:
        vars(util)["spawnv_passfds"] = start_program


def _fork_program(_path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Run the program `python -c …` in a fork of this process, with these file descriptors only; return its id."""
    if pid := os.fork():
        return pid
    try:
        kept = {0, 1, 2, *descriptors}
        for descriptor in {int(name) for name in os.listdir("/dev/fd")} - kept:  # noqa: PTH208 - names are numbers
            with suppress(OSError):
                os.close(descriptor)
        prepare()
        # The program imports this module, which would otherwise prepare the process a second time.
        sys.modules[THIS_MODULE] = sys.modules[__name__]
        exec(arguments[-1], {})  # noqa: S102 - the standard library's own program
    finally:
        os._exit(0)


def end_on_reload() -> None:
    """Make a reload of the code location end this server once its runs are done; its supervisor restarts it.

    Dagster's own server ignores reloads, so it would never read an edited declaration.
    """
    from dagster._grpc.__generated__ import dagster_api_pb2  # as in `main`
    from dagster._grpc.server import DagsterApiServer

    def reload_code(server: DagsterApiServer, request: Any, context: Any) -> Any:  # noqa: ANN401 - gRPC's messages
        server.ShutdownServer(request, context)
        return dagster_api_pb2.ReloadCodeReply()

    DagsterApiServer.ReloadCode = reload_code  # type: ignore[assignment,method-assign]


def look_for_ended_runs_again() -> None:
    """Make the server continue to check for ended run workers after Dagster's database was unavailable.

    Dagster's own checking thread ends at its first failure. From then on, a worker that ended counts as running until
    the server ends: neither run monitoring nor the work queue releases its leases.
    """
    from dagster._grpc.server import DagsterApiServer  # as in `main`

    look = DagsterApiServer._check_for_orphaned_runs  # noqa: SLF001

    def look_again(server: DagsterApiServer) -> None:
        try:
            look(server)
        except Exception:
            server._logger.exception("Searching again for run workers that ended.")  # noqa: SLF001

    DagsterApiServer._check_for_orphaned_runs = look_again  # type: ignore[assignment,method-assign]  # noqa: SLF001


def main(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - never returns: it ends the process
    """Serve until stopped."""
    keep_files_private()
    share_cores(current_settings().file_ingest.max_parallel_batches)
    warm_workers()
    from dagster._cli.api import grpc_command  # after the workers' parent has started

    end_on_reload()
    look_for_ended_runs_again()
    threads = () if THREADS[0] in arguments else THREADS
    return grpc_command(args=[*arguments, *threads], prog_name=THIS_MODULE)


def end_with_parent() -> None:
    """Make the kernel kill this process as soon as its parent has ended (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def prepare() -> None:
    """Tie the life of this process to the code server, and that of its forks to this process."""
    global _workers_parent  # noqa: PLW0603 - of this process, for its forks
    _workers_parent = os.getpid()
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_set_up_worker)


def _set_up_worker() -> None:
    # Forks of a worker call this too. If a thread forked them, the kernel would kill them when that thread ends.
    if os.getppid() == _workers_parent:
        end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() != _workers_parent:
            os._exit(1)


# Python starts the workers' parent with this program; other processes that import this module are not affected.
if "from multiprocessing.forkserver import main" in sys.orig_argv[-1]:
    prepare()


if __name__ == "__main__":
    main(sys.argv[1:])
