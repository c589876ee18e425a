"""deploy/ecs: task definitions that ECS accepts, and a launcher that starts each run as a task."""

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
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster_aws.ecs import EcsRunLauncher
from moto import mock_aws

from examples.demo.attachments import FileServer
from ingest_project.core.settings import load_settings
from ingest_project.definitions import defs
from ingest_project.operations import SystemResources
from ingest_project.platform.runtime import local_stores
from ingest_project_tests.deploy.compose_file import ROOT, services

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
            registered = definition(name)
            # moto counts each container's memory, which Fargate takes from the task where a container has none.
            registered["containerDefinitions"][0]["memory"] = int(registered["memory"])
            ecs.register_task_definition(**registered)
        yield ecs


def test_ecs_accepts_every_task_definition(aws: Any) -> None:  # noqa: ANN401 - boto3's client
    families = {arn.rsplit("/", 1)[1].partition(":")[0] for arn in aws.list_task_definitions()["taskDefinitionArns"]}
    assert families == {f"ingest-{name}" for name in SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_no_task_is_root_or_has_a_secret_inline(name: str) -> None:
    (container,) = definition(name)["containerDefinitions"]
    assert container["user"] == "10001:10001"
    assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    # What decides about files and reads them has the credentials of sources.
    further = dict.fromkeys(("code-server", "run"), "INGEST_CREDENTIALS") | {"monitor": "INGEST_MONITOR_TOKEN"}
    more = {further[name]} if name in further else set()
    assert {secret["name"] for secret in container["secrets"]} == {"DATABASE_URL", "DAGSTER_POSTGRES_URL"} | more
    assert not any(re.search("PASSWORD|SECRET|TOKEN", entry["name"]) for entry in container["environment"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_one_that_exists(name: str) -> None:
    (container,) = definition(name)["containerDefinitions"]
    environ = {entry["name"]: entry["value"] for entry in container["environment"]}
    settings = load_settings(environ, FOLDER).settings
    assert settings.landing_url == "s3://example-ingest/landing"
    assert local_stores(SystemResources(settings)) == []
    # Where every process learns that runs are tasks of their own.
    assert environ["DAGSTER_HOME"] == "/opt/ingest/ecs_home"


@pytest.mark.parametrize("name", ["code-server", "daemon", "webserver", "monitor"])
def test_each_process_is_the_one_of_the_compose_file(name: str) -> None:
    (container,) = definition(name)["containerDefinitions"]
    command = " ".join(services()[name]["command"]).replace("dagster_home", "ecs_home")
    assert " ".join(container["command"]) == command


def test_the_configuration_is_that_of_the_project_with_another_launcher() -> None:
    ours = yaml.safe_load((FOLDER / "dagster.yaml").read_text(encoding="utf-8"))
    project = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    different = ("run_launcher", "compute_logs")
    assert {name: value for name, value in ours.items() if name not in different} == {
        name: value for name, value in project.items() if name not in different
    }


@pytest.fixture
def instance(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dagster_postgres_url: str,
    aws: Any,  # noqa: ANN401 - boto3's client
) -> Iterator[DagsterInstance]:
    """Dagster as the daemon's task on Fargate has it; ECS tells it where it runs."""
    (container,) = definition("daemon")["containerDefinitions"]
    for entry in container["environment"]:
        if entry["name"].startswith("DAGSTER_"):
            monkeypatch.setenv(entry["name"], entry["value"])
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster_postgres_url)
    (tmp_path / "dagster.yaml").write_text((FOLDER / "dagster.yaml").read_text("utf-8"), encoding="utf-8")
    aws.create_cluster(clusterName="ingest")
    daemon = aws.run_task(
        cluster="ingest",
        taskDefinition="ingest-daemon",
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": _network()},
    )["tasks"][0]
    metadata = {"Cluster": "ingest", "TaskARN": daemon["taskArn"], "Name": "daemon"}
    (tmp_path / "task").write_text(json.dumps(metadata), encoding="ascii")
    with FileServer(tmp_path) as server:
        monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", f"http://{server.host_and_port}")
        with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as made:
            yield made


def test_dagster_loads_the_launcher_and_finds_the_task_of_a_run(instance: DagsterInstance) -> None:
    launcher = instance.run_launcher
    assert isinstance(launcher, EcsRunLauncher)
    assert launcher.supports_check_run_worker_health
    assert str(launcher.task_definition).endswith("task-definition/ingest-run:1")
    assert type(instance.event_log_storage).__name__ == "BulkEventLogStorage"
    assert type(instance.compute_log_manager).__name__ == "S3ComputeLogManager"


def test_a_run_is_a_task_of_the_registered_definition_where_the_daemon_is(
    instance: DagsterInstance,
    aws: Any,  # noqa: ANN401 - boto3's client
) -> None:
    run = launched(instance)
    task = _task_of(run, aws)
    assert task["taskDefinitionArn"].endswith("task-definition/ingest-run:1")
    assert task["launchType"] == "FARGATE"
    assert {"key": "ingest", "value": "run"} in task["tags"]
    (override,) = task["overrides"]["containerOverrides"]
    assert override["name"] == "run"
    assert override["command"][:3] == ["dagster", "api", "execute_run"]
    assert {name: str(override[name]) for name in ("cpu", "memory")} == {"cpu": "1024", "memory": "2048"}
    assert _subnets(task) == _network()["subnets"]

    used = aws.describe_task_definition(taskDefinition=task["taskDefinitionArn"])["taskDefinition"]
    (container,) = used["containerDefinitions"]
    assert used["taskRoleArn"].endswith("role/ingest-task")
    assert used["requiresCompatibilities"] == ["FARGATE"]
    assert container["image"] == PLACEHOLDERS["IMAGE"]
    assert container["user"] == "10001:10001"
    # No definition of the launcher's own: it would have the daemon's rights, image and variables.
    assert len(aws.list_task_definitions()["taskDefinitionArns"]) == len(SERVICES)


def test_ending_a_run_stops_its_task_and_a_task_that_stopped_is_a_run_that_failed(
    instance: DagsterInstance,
    aws: Any,  # noqa: ANN401 - boto3's client
) -> None:
    run = launched(instance)
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert launcher.terminate(run.run_id)
    assert _task_of(run, aws)["lastStatus"] == "STOPPED"
    assert launcher.check_run_worker_health(run).status is not WorkerStatus.RUNNING


def test_the_policy_lets_the_launcher_do_what_it_does_and_hand_over_two_roles() -> None:
    statements = json.loads((FOLDER / "launcher-policy.json").read_text(encoding="utf-8"))["Statement"]
    actions = {action for statement in statements for action in _listed(statement["Action"])}
    assert {"ecs:RunTask", "ecs:StopTask", "ecs:DescribeTasks", "ecs:DescribeTaskDefinition", "iam:PassRole"} <= actions
    assert not any("*" in action for action in actions)
    (roles,) = (statement["Resource"] for statement in statements if statement["Action"] == "iam:PassRole")
    used = {definition("run")[role].rsplit("/", 1)[1] for role in ("executionRoleArn", "taskRoleArn")}
    assert {role.rsplit("/", 1)[1] for role in roles} == used


def launched(instance: DagsterInstance) -> DagsterRun:
    """Start a run as the daemon does; return it as it is stored."""
    repository = RepositoryPythonOrigin(
        executable_path="python",
        code_pointer=ModuleCodePointer("ingest_project.definitions", "defs", None),
        container_image=PLACEHOLDERS["IMAGE"],
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
    )
    run = instance.create_run_for_job(
        defs.resolve_job_def("retention"),
        status=DagsterRunStatus.STARTING,
        job_code_origin=JobPythonOrigin("retention", repository),
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    return stored


def _task_of(run: DagsterRun, aws: Any) -> Any:  # noqa: ANN401 - boto3's client
    (task,) = aws.describe_tasks(cluster=run.tags["ecs/cluster"], tasks=[run.tags["ecs/task_arn"]], include=["TAGS"])[
        "tasks"
    ]
    return task


def _network() -> dict[str, Any]:
    """Return the first subnet of the account and its default security group."""
    ec2 = boto3.client("ec2")
    subnet = min(ec2.describe_subnets()["Subnets"], key=lambda one: str(one["SubnetId"]))
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [subnet["VpcId"]]}])["SecurityGroups"]
    return {"subnets": [subnet["SubnetId"]], "securityGroups": [groups[0]["GroupId"]]}


def _subnets(task: Any) -> list[str]:  # noqa: ANN401 - boto3's answer
    details = [detail for attachment in task["attachments"] for detail in attachment["details"]]
    return [detail["value"] for detail in details if detail["name"] == "subnetId"]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
