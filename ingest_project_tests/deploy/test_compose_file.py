"""docker-compose.yml: no open port, no root, no secret inline, and only commands that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib.metadata import entry_points
from typing import Any

import click
import pytest
import typer.main

from ingest_project.cli.main import build_app
from ingest_project.core.settings import Settings, load_settings
from ingest_project_tests.deploy.compose_file import (
    COMPOSE_FILE,
    REQUIRED,
    ROOT,
    VARIABLE,
    compose,
    example_variables,
    services,
)

SERVICES = services()
OURS = ("migrate", "code-server", "daemon", "webserver", "monitor")
ONE_SHOT = ("migrate",)
TOP_LEVEL = {"name", "services", "volumes"}
PINNED = re.compile(r"[a-z0-9_./-]+:v?\d+\.\d+[\w.-]*")


@pytest.fixture(params=sorted(SERVICES))
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = SERVICES[request.param]
    return {"name": request.param, **found}


def test_the_file_has_nothing_but_services_volumes_and_anchors() -> None:
    assert {name for name in compose() if not name.startswith("x-")} == TOP_LEVEL


def test_every_port_is_on_the_loopback_interface(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service


def test_nobody_is_root_or_becomes_it(service: dict[str, Any]) -> None:
    user = str(service["user"]).partition(":")[0]
    assert user == "appuser" or int(user) > 0
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    assert not service.get("cap_add")


def test_only_volumes_can_be_written(service: dict[str, Any]) -> None:
    assert service["read_only"] or service["name"] == "kafka"


def test_every_image_is_pinned(service: dict[str, Any]) -> None:
    assert PINNED.fullmatch(service["image"])


def test_every_service_has_a_restart_policy(service: dict[str, Any]) -> None:
    expected = "on-failure:5" if service["name"] in ONE_SHOT else "unless-stopped"
    assert service["restart"] == expected


def test_every_long_running_service_has_a_health_check_and_a_grace_period(service: dict[str, Any]) -> None:
    if service["name"] in ONE_SHOT:
        assert service["healthcheck"] == {"disable": True}
        return
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()
    assert service["stop_grace_period"]


def test_memory_processors_and_logs_are_bounded(service: dict[str, Any]) -> None:
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()


def test_every_service_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}, (name, needed)
    assert _before("daemon") == {"code-server", "migrate", "kafka", "postgres"}


def test_every_volume_that_is_named_is_declared(service: dict[str, Any]) -> None:
    sources = {volume.partition(":")[0] for volume in service.get("volumes", [])}
    assert {source for source in sources if not source.startswith((".", "/"))} <= compose()["volumes"].keys()
    for source in sources:
        if source.startswith("."):
            assert (ROOT / source).exists(), source


def test_no_secret_stands_in_the_file() -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    for name, value in re.findall(r"^\s*(\w*(?:PASSWORD|SECRET|TOKEN|KEY)\w*):\s*(.+)$", text, flags=re.MULTILINE):
        assert value.startswith("${"), name
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@", text)


def test_each_secret_is_where_it_is_needed_and_opens_one_thing(service: dict[str, Any]) -> None:
    given = " ".join(map(str, service.get("environment", {}).values()))
    expected = {
        "kafka": set(),
        "monitor": {"POSTGRES_PASSWORD", "MONITOR_TOKEN"},
        "prometheus": {"MONITOR_TOKEN"},
        "grafana": {"GRAFANA_PASSWORD"},
    }.get(service["name"], {"POSTGRES_PASSWORD"})
    assert {name for name, value in REQUIRED.items() if value in given} == expected


def test_a_missing_password_is_refused_with_what_to_do() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        compose({})


def test_the_example_names_every_variable_and_no_other() -> None:
    used = {name for name, *_ in VARIABLE.findall(COMPOSE_FILE.read_text(encoding="utf-8"))}
    assert used == example_variables().keys()


def test_the_example_agrees_with_the_defaults_and_has_no_password() -> None:
    example = example_variables()
    assert [name for name, value in example.items() if not value] == list(REQUIRED)
    assert compose({**example, **REQUIRED}) == compose()


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_one_that_exists(name: str) -> None:
    environ = {variable: str(value) for variable, value in SERVICES[name]["environment"].items()}
    settings = load_settings(environ, ROOT / "deploy").settings
    assert settings.kafka.bootstrap_servers == "kafka:19092"
    assert "canary" not in settings.model_dump_json()


@pytest.mark.parametrize("name", OURS)
def test_a_file_of_settings_wins_over_whatever_the_project_sets(name: str) -> None:
    service = compose()["services"][name]
    # `environment` would win over it silently.
    assert service["environment"].keys() <= {"PGPASSWORD", "DAGSTER_CODE_SERVER_HOST", "INGEST_MONITOR_TOKEN"}
    assert service["env_file"] == [
        {"path": "deploy/compose.settings.env"},
        {"path": "deploy/ingest.env", "required": False},
    ]


def test_services_mount_the_state_folder_and_declarations_that_they_use() -> None:
    volumes = {name: {volume.split(":")[1] for volume in SERVICES[name].get("volumes", [])} for name in OURS}
    assert {name for name in OURS if "/var/lib/ingest" in volumes[name]} == {"code-server", "monitor"}
    declared = {name for name in OURS if f"/opt/ingest/{Settings().declarations}" in volumes[name]}
    assert declared == set(OURS) - {"webserver"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_and_option_exists(name: str) -> None:
    program, *arguments = SERVICES[name]["command"]
    if program == "python":
        assert importlib.util.find_spec(arguments[1])
        return
    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    command = typer.main.get_command(build_app()) if program == "ingest" else _script(scripts[program].value)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        group: Any = command
        command = group.commands[arguments.pop(0)]
    parameters: Any = command
    known = {option for parameter in parameters.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known, shlex.join(arguments)


def _script(target: str) -> Any:  # noqa: ANN401 - a command of click, Dagster's or Typer's own
    module, _, attribute = target.partition(":")
    loaded = importlib.import_module(module)
    if attribute == "main":
        # Their main() calls a group that stands beside it, or makes one.
        groups = [value for value in vars(loaded).values() if isinstance(value, click.Command)]
        named = [group for group in groups if group.name in {"cli", "group", "dagster-webserver", "dagster-daemon"}]
        return named[0] if named else loaded.create_dagster_daemon_cli()
    return getattr(loaded, attribute)


def _before(name: str) -> set[str]:
    needed = set(SERVICES[name].get("depends_on", {}))
    return needed.union(*(_before(other) for other in needed)) if needed else needed
