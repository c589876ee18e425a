"""The Dockerfile: every copied file exists, and excluded files stay out of the image."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import yaml

from ingest_project_tests.deploy.compose_file import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
IGNORED = [
    line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", "")
]


def test_packages_come_hashed_and_ready_made() -> None:
    for flag in ("--require-hashes", "--only-binary :all:", "--no-deps"):
        assert flag in STAGES[0]


def test_the_locks_of_both_images_agree_and_name_no_address() -> None:
    locks = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("runtime", "kubernetes")}
    pins = {
        name: dict(re.findall(r"^([a-z0-9._-]+(?:\[\w+\])?)==(\S+)", text, re.MULTILINE))
        for name, text in locks.items()
    }
    assert pins["runtime"].items() <= pins["kubernetes"].items()
    assert "dagster-k8s" in pins["kubernetes"]
    assert not any(
        "://" in line for text in locks.values() for line in text.splitlines() if not line.lstrip().startswith("#")
    )


def test_the_runtime_stage_installs_nothing_and_is_not_root() -> None:
    runtime = STAGES[-1]
    assert not re.search(r"\b(pip|apt-get|curl|gcc)\b", runtime)
    assert re.search(r"^USER 10001:10001$", runtime, flags=re.MULTILINE)
    assert runtime.rindex("USER ") > runtime.rindex("COPY ")


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, _ = line.split()
        for source in (source.replace("${REQUIREMENTS}", "runtime") for source in sources):
            assert (ROOT / source).exists(), source
            assert not _is_ignored(source), source


def test_secrets_and_local_state_stay_out() -> None:
    for path in (
        ".env",
        "config.yaml",
        "deploy/compose.env",
        "deploy/ingest.env",
        ".ingest/postgres.password",
        ".git/config",
    ):
        assert _is_ignored(path), path


def test_the_code_server_is_found_by_a_variable() -> None:
    workspace = yaml.safe_load((ROOT / "deploy" / "workspace.yaml").read_text(encoding="utf-8"))
    server = workspace["load_from"][0]["grpc_server"]
    assert server == {"host": {"env": "DAGSTER_CODE_SERVER_HOST"}, "port": 4000, "location_name": "ingest_project"}


def _is_ignored(path: str) -> bool:
    """As Docker decides: the last line that matches the path or a folder above it."""
    ignored = False
    for line in IGNORED:
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        places = ["/".join(parts[: end + 1]) for end in range(len(parts))] + ([parts[-1]] if "**/" in line else [])
        if any(fnmatch(place, pattern) for place in places):
            ignored = not line.startswith("!")
    return ignored
