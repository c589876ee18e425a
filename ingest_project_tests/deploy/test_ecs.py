"""What stands in deploy/ecs: task definitions that ECS accepts, and a launcher that starts a run as a task of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import boto3
import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster_aws.ecs import EcsRunLauncher
from moto import mock_aws

from ingest_project.core.settings import load_settings
from ingest_project_tests.deploy.compose_file import ROOT

FOLDER = ROOT / "deploy" / "ecs"
SERVICES = ("migrate", "code-server", "daemon", "webserver", "monitor", "run")
PLACEHOLDERS = {
    "IMAGE": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/ingest_project:0.1.0",
    "AWS_ACCOUNT_ID": "123456789012",
    "AWS_REGION": "eu-west-1",
    "SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ingest-AbCdEf",
    "BUCKET": "example-ingest",
    "KAFKA_BOOTSTRAP_SERVERS": "b-1.example.kafka.eu-west-1.amazonaws.com:9094",
    "WEBSERVER_URL": "https://dagster.example.com",
}


def definition(name: str) -> dict[str, Any]:
    """A task definition, its placeholders filled in."""
    filled: dict[str, Any] = json.loads(Template((FOLDER / f"{name}.json").read_text("utf-8")).substitute(PLACEHOLDERS))
    return filled


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """ECS with the task definitions registered."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        ecs = boto3.client("ecs")
        for name in SERVICES:
            ecs.register_task_definition(**definition(name))
        yield ecs


def test_ecs_accepts_every_task_definition(aws: Any) -> None:  # noqa: ANN401 - boto3's client
    families = {arn.rsplit("/", 1)[1].partition(":")[0] for arn in aws.list_task_definitions()["taskDefinitionArns"]}
    assert families == {f"ingest-{name}" for name in SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_no_task_is_root_or_has_a_secret_inline(name: str) -> None:
    (container,) = definition(name)["containerDefinitions"]
    assert container["user"] == "10001:10001"
    assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    more = {"INGEST_MONITOR_TOKEN"} if name == "monitor" else set()
    assert {secret["name"] for secret in container["secrets"]} == {"DATABASE_URL", "DAGSTER_POSTGRES_URL"} | more
    assert not any(re.search("PASSWORD|SECRET|TOKEN", entry["name"]) for entry in container["environment"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_one_that_exists(name: str) -> None:
    (container,) = definition(name)["containerDefinitions"]
    environ = {entry["name"]: entry["value"] for entry in container["environment"]}
    settings = load_settings(environ, FOLDER).settings
    assert settings.landing_url == "s3://example-ingest/landing"


def test_the_configuration_is_that_of_the_project_with_another_launcher() -> None:
    ours = yaml.safe_load((FOLDER / "dagster.yaml").read_text(encoding="utf-8"))
    project = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    different = ("run_launcher", "compute_logs")
    assert {name: value for name, value in ours.items() if name not in different} == {
        name: value for name, value in project.items() if name not in different
    }


@pytest.mark.usefixtures("aws")
def test_dagster_loads_the_launcher_and_finds_the_task_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_postgres_url: str
) -> None:
    (container,) = definition("daemon")["containerDefinitions"]
    for entry in container["environment"]:
        if entry["name"].startswith("DAGSTER_"):
            monkeypatch.setenv(entry["name"], entry["value"])
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_postgres_url)
    (tmp_path / "dagster.yaml").write_text((FOLDER / "dagster.yaml").read_text("utf-8"), encoding="utf-8")

    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, EcsRunLauncher)
        assert launcher.supports_check_run_worker_health
        assert str(launcher.task_definition).endswith("task-definition/ingest-run:1")
        assert type(instance.event_log_storage).__name__ == "BulkEventLogStorage"
        assert type(instance.compute_log_manager).__name__ == "S3ComputeLogManager"


def test_the_policy_lets_the_launcher_do_what_it_does_and_hand_over_two_roles() -> None:
    statements = json.loads((FOLDER / "launcher-policy.json").read_text(encoding="utf-8"))["Statement"]
    actions = {action for statement in statements for action in _listed(statement["Action"])}
    assert {"ecs:RunTask", "ecs:StopTask", "ecs:DescribeTasks", "ecs:DescribeTaskDefinition", "iam:PassRole"} <= actions
    assert not any("*" in action for action in actions)
    (roles,) = (statement["Resource"] for statement in statements if statement["Action"] == "iam:PassRole")
    used = {definition("run")[role].rsplit("/", 1)[1] for role in ("executionRoleArn", "taskRoleArn")}
    assert {role.rsplit("/", 1)[1] for role in roles} == used


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
