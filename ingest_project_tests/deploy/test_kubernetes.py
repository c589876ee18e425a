"""What stands in deploy/kubernetes: objects that Kubernetes knows, and a launcher that Dagster loads and that works."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster_k8s import K8sRunLauncher

from ingest_project.core.settings import load_settings
from ingest_project_tests.deploy.compose_file import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
SERVED = {
    "Job": kubernetes.client.V1Job,
    "Deployment": kubernetes.client.V1Deployment,
    "Service": kubernetes.client.V1Service,
}
DIFFERENT = ("run_launcher", "compute_logs")
SHARED = (
    "storage",
    "run_coordinator",
    "concurrency",
    "run_monitoring",
    "run_retries",
    "sensors",
    "schedules",
    "retention",
    "telemetry",
)


def load(name: str) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def objects() -> Iterator[dict[str, Any]]:
    for name in load("kustomization.yaml")["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))


OBJECTS = list(objects())
PODS = [found["spec"]["template"]["spec"] for found in OBJECTS if "template" in found["spec"]]
VALUES = load("values.yaml")
CHART_PARTS = [VALUES["dagsterWebserver"], VALUES["dagsterDaemon"], *VALUES["dagster-user-deployments"]["deployments"]]


@pytest.mark.parametrize("found", OBJECTS, ids=lambda found: found["kind"])
def test_every_field_is_one_that_kubernetes_knows(found: dict[str, Any]) -> None:
    unknown = list(_unknown_fields(SERVED[found["kind"]], found, found["kind"]))
    assert not unknown


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_everything_together() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    made = {(found["kind"], found["metadata"]["name"]) for found in yaml.safe_load_all(built.stdout)}
    assert made == {
        ("ConfigMap", "ingest-instance"),
        ("ConfigMap", "ingest-settings"),
        ("Deployment", "dagster-ingest-monitor"),
        ("Job", "migrate"),
        ("Service", "dagster-ingest-monitor"),
    }


@pytest.mark.parametrize(
    "context", [*(pod["securityContext"] for pod in PODS), *(part["podSecurityContext"] for part in CHART_PARTS)]
)
def test_every_pod_runs_as_the_user_of_the_image(context: dict[str, Any]) -> None:
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 10_001


@pytest.mark.parametrize(
    "context",
    [
        *(box["securityContext"] for pod in PODS for box in pod["containers"]),
        *(part["securityContext"] for part in CHART_PARTS),
    ],
)
def test_no_container_can_write_its_image_or_gain_rights(context: dict[str, Any]) -> None:
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_every_container_has_a_limit_of_memory() -> None:
    boxes = [*(box for pod in PODS for box in pod["containers"]), *CHART_PARTS]
    assert all(box["resources"]["limits"]["memory"] for box in boxes)


def test_nothing_is_open_to_the_world_and_no_secret_is_inline() -> None:
    assert all(found["spec"]["type"] == "ClusterIP" for found in OBJECTS if found["kind"] == "Service")
    assert VALUES["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@|password:\s*\S", text, flags=re.IGNORECASE)
    assert all("value" not in entry or entry["name"] == "DAGSTER_HOME" for part in CHART_PARTS for entry in part["env"])


def test_the_names_of_the_services_set_no_setting_of_ours() -> None:
    names = [found["metadata"]["name"] for found in OBJECTS if found["kind"] == "Service"]
    names += [deployment["name"] for deployment in VALUES["dagster-user-deployments"]["deployments"]]
    variables = {f"{name.upper().replace('-', '_')}_{what}" for name in names for what in ("SERVICE_HOST", "PORT")}
    load_settings({**dict.fromkeys(variables, "tcp://10.0.0.1:80"), **_settings()}, FOLDER)


def test_every_process_gets_the_same_settings() -> None:
    for part in CHART_PARTS:
        assert part["envConfigMaps"] == [{"name": "ingest-settings"}]
        assert part["envSecrets"] == [{"name": "ingest-secrets"}]
        assert part["image"] == VALUES["dagsterWebserver"]["image"]
        home = next(entry["value"] for entry in part["env"] if entry["name"] == "DAGSTER_HOME")
        assert any(mount["mountPath"] == home for mount in part["volumeMounts"])
    assert load_settings(_settings(), FOLDER).settings.landing_url.startswith("s3://")


def test_the_webserver_looks_for_the_code_server_where_the_chart_puts_it() -> None:
    (server,) = VALUES["dagsterWebserver"]["workspace"]["servers"]
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])
    arguments = deployment["dagsterApiGrpcArgs"]
    assert server["name"] == arguments[arguments.index("--location-name") + 1]


def test_the_configuration_is_that_of_the_project_with_another_launcher() -> None:
    ours, project = load("dagster.yaml"), yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    assert {name: value for name, value in ours.items() if name not in DIFFERENT} == {
        name: value for name, value in project.items() if name not in DIFFERENT
    }
    assert set(SHARED) <= ours.keys()


def test_dagster_loads_the_launcher_beside_our_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_postgres_url: str
) -> None:
    monkeypatch.setenv("DAGSTER_NAMESPACE", "ingest")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_postgres_url)
    (tmp_path / "dagster.yaml").write_text(_outside_a_cluster(tmp_path), encoding="utf-8")

    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        assert launcher.supports_check_run_worker_health
        assert launcher.job_namespace == "ingest"
        assert launcher.instance_config_map == "ingest-instance"
        assert type(instance.event_log_storage).__name__ == "BulkEventLogStorage"


def _outside_a_cluster(folder: Path) -> str:
    """The configuration, with a kubeconfig in place of the pod's own account."""
    kubeconfig = folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [cluster],
                "contexts": [context],
                "users": [{"name": "u", "user": {}}],
            }
        ),
        encoding="utf-8",
    )
    configuration = load("dagster.yaml")
    configuration["run_launcher"]["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    return yaml.safe_dump(configuration)


def _settings() -> dict[str, str]:
    lines = (FOLDER / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _unknown_fields(model: Any, content: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - generated models
    """Fields that the model of the Kubernetes client does not have, at any depth."""
    fields = {attribute: (name, model.openapi_types[name]) for name, attribute in model.attribute_map.items()}
    for key, value in content.items():
        if key not in fields:
            yield f"{path}.{key}"
            continue
        kind = fields[key][1]
        inner = re.fullmatch(r"(?:list\[)?(V1\w+)\]?", kind)
        if inner and (nested := getattr(kubernetes.client, inner.group(1), None)) and inspect.isclass(nested):
            for number, item in enumerate(value if kind.startswith("list[") else [value]):
                yield from _unknown_fields(nested, item, f"{path}.{key}[{number}]")
