"""Shrink the packages of the image and compile what its processes import.

The Dockerfile's builder runs it with the Python of the environment: python slim.py SITE_PACKAGES
"""

import ast
import importlib
import os
import py_compile
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROJECT = "ingest_project"
# Tests, type stubs, headers, source maps of the UI, and Arrow's Flight and S3: S3 is reached by boto3 and delta-rs.
UNUSED = (
    "**/tests",
    "**/*.pyi",
    "dagster_webserver/webapp/**/*.map",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/*flight*",
    "pyarrow/_s3fs*",
    "pyarrow/libarrow_s3*",
)
# What botocore describes of the 400 services of AWS: those that sign in, hold bytes and secrets, and run tasks.
AWS_DATA = Path("botocore/data")
AWS_SERVICES = {"ec2", "ecs", "kms", "logs", "s3", "secretsmanager", "signin", "ssm", "sso", "sso-oidc", "sts"}
# Modules that processes start with, and those that Dagster's configurations and uvicorn name.
ENTRY_POINTS = (
    "ingest_project.definitions",
    "ingest_project.cli.main",
    "ingest_project.operations.daemon",
    "ingest_project.platform.dagster.code_server",
    "ingest_project.platform.dagster.webserver",
    "dagster._cli",
    "dagster._daemon.cli",
    "dagster_aws.ecs",
    "dagster_aws.s3.compute_log_manager",
    "dagster_webserver.cli",
    "pyarrow.dataset",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_impl",
    "uvloop",
)


def remove_unused(packages: Path) -> None:
    """Remove the files and folders that no process loads."""
    for pattern in UNUSED:
        for path in list(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (packages / AWS_DATA).iterdir():
        if path.is_dir() and path.name not in AWS_SERVICES:
            shutil.rmtree(path)


def strip_symbols(packages: Path) -> None:
    """Remove the symbols for debuggers from extension modules.

    Libraries in `*.libs` were moved there by auditwheel, whose patched headers strip may misplace.
    """
    for path in packages.rglob("*.so*"):
        if not path.parent.name.endswith(".libs"):
            subprocess.run(["strip", "--strip-unneeded", path], check=True)


def imported(source: Path) -> Iterator[str]:
    """Yield the modules that a file may import, those imported within functions too."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def compile_imported(packages: Path) -> int:
    """Compile the project and all it imports, directly or not; return how many modules."""
    sources = list((packages / PROJECT).rglob("*.py"))
    warnings.simplefilter("ignore")
    # What is missing after `remove_unused` must end the build, not a process: these are imported without mercy.
    for name in ENTRY_POINTS:
        importlib.import_module(name)
    for name in sorted({name for source in sources for name in imported(source)}):
        # A class, another system's module or an optional package.
        with suppress(ImportError):
            importlib.import_module(name)
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    files = {*sources, *(Path(file) for file in loaded if file and file.endswith(".py"))}
    # Some imported modules restrict new files to their owner; another user runs the image.
    os.umask(0o022)
    # By content, not by time: whoever copies the layer may change the times, and no file of an image changes.
    for file in (file for file in files if file.is_relative_to(packages)):
        py_compile.compile(str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return len(files)


def main(packages: Path) -> None:
    """Shrink, then compile."""
    sys.dont_write_bytecode = True
    remove_unused(packages)
    strip_symbols(packages)
    sys.stdout.write(f"{compile_imported(packages)} modules compiled\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
