"""Cost of an idle system and duration of a start, compared with plain Dagster.

The product is what `ingest dev` runs. The floor is Dagster's own three processes over a code location that imports
nothing, with as many sensors, each of which skips every tick at once. Processor time is what the kernel counted for
each process; memory is the proportional share (PSS), so that what processes share counts once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from benchmarks.measurement import Result, say
from benchmarks.memory import PROC, trees
from benchmarks.system import NOT_OURS, System, report_restarts
from benchmarks.workload import write_workload
from ingest_project.core.settings import load_settings
from ingest_project.devstack import HOST, Child, free_port, python_module, start
from ingest_project.devstack.dagster_processes import DagsterHome, wait_until_ready
from ingest_project.devstack.supervisor import Stack, running_stack

SECONDS = 120.0
# The monitor polls more rarely once nobody has looked for half a minute, and sensors rest after some seconds.
SETTLE_SECONDS = 60.0
SENSORS = 12
LAUNCHER = "launcher"
NOT_COUNTED = ("broker", "postgres")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PLAIN = """import dagster as dg

def sensor(number):
    @dg.sensor(name=f"sensor_{number}", minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
    def skips():
        return dg.SkipReason("nothing")
    return skips

defs = dg.Definitions(sensors=[sensor(number) for number in range(SENSORS)])
"""


def measure_idle(options: argparse.Namespace, folder: Path) -> Result:
    """Measure processor time and memory of an idle system, and of idle plain Dagster."""
    with _product(folder / "product") as children:
        product = _observed("the product", children, options.seconds)
    with _plain_dagster(folder / "plain") as children:
        plain = _observed("plain Dagster", children, options.seconds)
    return {
        "cores": round(sum(cores for cores, _ in product.values()), 4),
        "pss_mb": round(sum(megabytes for _, megabytes in product.values())),
        "plain_cores": round(sum(cores for cores, _ in plain.values()), 4),
        "plain_pss_mb": round(sum(megabytes for _, megabytes in plain.values())),
        "of_each": {name: [round(cores, 4), round(megabytes)] for name, (cores, megabytes) in product.items()},
        "plain_of_each": {name: [round(cores, 4), round(megabytes)] for name, (cores, megabytes) in plain.items()},
        "seconds": options.seconds,
        "exact": True,
    }


def measure_start(options: argparse.Namespace, folder: Path) -> Result:
    """Measure the seconds and CPU seconds of a second start until a first file is stored, and of plain Dagster."""
    inbox = folder / "inbox"
    _environment(folder / "product", inbox)
    ready, stored, cpu, plain = [], [], [], []
    for number in range(1 + options.starts):
        began = time.monotonic()
        with running_stack(load_settings(), report_restarts) as stack, closing(System(stack)) as system:
            until_ready = time.monotonic() - began
            # A workload of one file has no bad one.
            files = write_workload(inbox / str(number), 1, 1_000, name=f"readings-{number}", seed=number)
            system.seconds_to_rows(files.paths[0])
            if number:
                ready.append(until_ready)
                stored.append(time.monotonic() - began)
                roots = frozenset((*(child.guard.pid for child in stack.children), *_launcher(stack)))
                cpu.append(sum(_cpu_seconds(pid) for pid in trees(roots)))
                say(f"Ready after {ready[-1]:.1f} s, a file stored after {stored[-1]:.1f} s.")
        began = time.monotonic()
        with _plain_dagster(folder / "plain"):
            if number:
                plain.append(time.monotonic() - began)
                say(f"Plain Dagster: {plain[-1]:.1f} s.")
    return {
        "ready_s": round(min(ready), 2),
        "stored_s": round(min(stored), 2),
        "cpu_s": round(min(cpu), 2),
        "plain_ready_s": round(min(plain), 2),
        "ratio": round(min(stored) / min(plain), 2),
        "exact": True,
    }


def _environment(folder: Path, inbox: Path | None = None) -> None:
    folder.mkdir(parents=True)
    for name in NOT_OURS:
        os.environ.pop(name, None)
    os.environ |= {
        "INGEST_STATE_DIR": str(folder / "state"),
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_WEBSERVER_PORT": "0",
        "INGEST_MONITOR_PORT": "0",
        **({"INGEST_LOCAL_ROOTS": str(inbox)} if inbox else {}),
    }


@contextmanager
def _product(folder: Path) -> Iterator[Mapping[str, int]]:
    _environment(folder)
    with running_stack(load_settings(), report_restarts, monitor=True) as stack:
        launcher = zip((LAUNCHER,), _launcher(stack), strict=False)
        yield {child.name: child.guard.pid for child in stack.children} | dict(launcher)


def _launcher(stack: Stack) -> Sequence[int]:
    return stack.launcher.pids if stack.launcher else ()


@contextmanager
def _plain_dagster(folder: Path) -> Iterator[Mapping[str, int]]:
    """Run Dagster's webserver, daemon and code server as Dagster starts them."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plain.py").write_text(PLAIN.replace("SENSORS", str(SENSORS)))
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\nsensors: {use_threads: true, num_workers: 16}\n")
    port, server = free_port(), free_port()
    (folder / "workspace.yaml").write_text(f"load_from:\n  - grpc_server: {{host: {HOST}, port: {server}}}\n")
    environ = {**os.environ, "DAGSTER_HOME": str(folder), "PYTHONPATH": str(folder)}
    environ.pop("DAGSTER_POSTGRES_URL", None)
    if is_new:
        # Two processes that create the storage at once leave one that none can open.
        storage = start(python_module("storage", ["dagster", "instance", "migrate"], environ), folder)
        storage.require_success("could not create Dagster's storage")
    workspace = ["--workspace", str(folder / "workspace.yaml")]
    commands = {
        "code server": ["dagster", "api", "grpc", "--module-name", "plain", "--port", str(server)],
        "webserver": ["dagster_webserver", "--port", str(port), *workspace],
        "daemon": ["dagster._daemon", "run", *workspace],
    }
    with ExitStack() as on_exit:
        children: list[Child] = []
        for name, arguments in commands.items():
            child = start(python_module(name, arguments, environ), folder)
            on_exit.callback(child.stop)
            children.append(child)
        home = DagsterHome(folder, folder / "no.sock", "plain", port)
        wait_until_ready(home, next(child for child in children if child.name == "webserver"), children)
        yield {child.name: child.guard.pid for child in children}


def _observed(who: str, parts: Mapping[str, int], seconds: float) -> dict[str, tuple[float, float]]:
    """Return cores and megabytes of each part."""
    say(f"{who} comes to rest ...")
    time.sleep(SETTLE_SECONDS)
    counted = {name: pid for name, pid in parts.items() if name not in NOT_COUNTED}
    before = {pid: _cpu_seconds(pid) for pid in trees(frozenset(counted.values()))}
    time.sleep(seconds)
    found = {}
    for name, root in counted.items():
        # The parts are its descendants.
        family = {root} if name == LAUNCHER else trees(frozenset([root]))
        used = sum(_cpu_seconds(pid) - before.get(pid, 0.0) for pid in family)
        found[name] = (used / seconds, sum(map(_pss_megabytes, family)))
        say(f"{who}, {name}: {found[name][0]:.4f} cores, {found[name][1]:.0f} MB")
    return found


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        fields = (PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return 0.0


def _pss_megabytes(pid: int) -> float:
    with suppress(OSError):
        lines: Sequence[str] = (PROC / str(pid) / "smaps_rollup").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6
    return 0.0
