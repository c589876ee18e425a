"""The first commands on a new machine, run by several processes at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest_project.core.errors import PermanentError
from ingest_project.devstack import postgres
from ingest_project_tests.services.first_use import one_at_a_time

USER_FILES = ("passwd", "group", "shadow", "gshadow")
# The user files of this machine are replaced for the processes of the namespace alone.
IN_A_NAMESPACE = """
set -e
mount --make-rprivate /
for name in {names}; do mount --bind {folder}/$name /etc/$name; done
exec "$@"
"""
START_A_SERVER = """
from ingest_project_tests.services.postgres import PostgresProcess
server = PostgresProcess()
try:
    server.start()
    server.execute("SELECT 1")
finally:
    server.close()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The user files of a machine on which no PostgreSQL was ever installed or run."""
    namespace = ["unshare", "-m", "mount", "--make-rprivate", "/"]
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run(namespace, check=False).returncode:
        pytest.skip("only root with its own mount namespaces can have other user files")
    for name in USER_FILES:
        lines = Path("/etc", name).read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(("postgres:", "pgserver:"))]
        (tmp_path / name).write_text("".join(kept), "utf-8")
        (tmp_path / name).chmod(0o644 if name in {"passwd", "group"} else 0o600)
    return tmp_path


def on(machine: Path, *command: str) -> Sequence[str]:
    names = " ".join(name for name in USER_FILES if (machine / name).exists())
    script = IN_A_NAMESPACE.format(names=names, folder=machine)
    return ["unshare", "-m", "bash", "-c", script, "bash", *command]


def test_servers_that_start_side_by_side_need_no_new_user(machine: Path) -> None:
    before = (machine / "passwd").read_bytes()
    workers = [
        subprocess.Popen(on(machine, sys.executable, "-c", START_A_SERVER), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert (machine / "passwd").read_bytes() == before


def test_a_data_folder_of_a_user_without_a_name_is_refused_with_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path, 54_321, -1)
    with pytest.raises(PermanentError, match=r"user id 54321, which has no name here.*/etc/passwd.*DATABASE_URL"):
        postgres.server_user(tmp_path)


def test_one_process_creates_a_shared_file_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bring = """
import sys, time
from pathlib import Path
from ingest_project_tests.services.first_use import one_at_a_time
with one_at_a_time("thing"):
    if not Path(sys.argv[1]).exists():
        time.sleep(0.3)
        Path(sys.argv[1]).touch()
        print("brought")
"""
    command = [sys.executable, "-c", bring, str(tmp_path / "thing")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes].count("brought\n") == 1
    with one_at_a_time("thing"):
        pass
