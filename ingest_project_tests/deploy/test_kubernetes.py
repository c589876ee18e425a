"""The manifests of deploy/kubernetes: valid objects, network policies, and each run as a Job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin

from ingest_project.core.secrets import holds_secrets
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.yaml_models import leaves, variables_of
from ingest_project.definitions import defs
from ingest_project.operations import SystemResources
from ingest_project.platform.runtime import local_stores
from ingest_project_tests.deploy.compose_file import ROOT
from ingest_project_tests.services.kubernetes_api import KubernetesApi

FOLDER = ROOT / "deploy" / "kubernetes"
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
# The oldest one that is still supported, whose fields all newer ones have.
SCHEMAS = "1.34"
DIFFERENT = ("run_launcher", "compute_logs")
IMAGE = "registry.example.com/ingest_project:0.1.0-kubernetes"
ALL = {"dagster-database", "warehouse", "kafka", "stores", "sources", "monitor"}
# Each process with the secrets that it uses, and no other.
SECRETS = {
    "migrate": {"dagster-database", "warehouse", "kafka"},
    "code-server": {"dagster-database", "warehouse", "kafka", "stores", "sources"},
    "daemon": {"dagster-database", "warehouse", "kafka"},
    "webserver": {"dagster-database"},
    "monitor": {"dagster-database", "warehouse", "kafka", "stores", "monitor"},
}
RUN_SECRETS = ALL - {"monitor"}


def load(name: str) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def objects() -> Iterator[dict[str, Any]]:
    for name in load("kustomization.yaml")["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))


OBJECTS = list(objects())
PODS = {
    found["metadata"]["labels"]["app.kubernetes.io/component"]: found["spec"]["template"]
    for found in OBJECTS
    if found["kind"] in {"Deployment", "Job"}
}
POLICIES = [found["spec"] for found in OBJECTS if found["kind"] == "NetworkPolicy"]


def identity(found: dict[str, Any]) -> str:
    return f"{found['kind']}-{found['metadata']['name']}"


@pytest.mark.parametrize("found", OBJECTS, ids=identity)
def test_kubernetes_accepts_every_object(found: dict[str, Any]) -> None:
    _require_valid(found)


@pytest.mark.parametrize("name", PODS)
def test_no_pod_can_gain_rights_write_its_image_or_take_all_memory(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["automountServiceAccountToken"] is (name in {"daemon", "webserver"})
    _is_hardened(pod)


@pytest.mark.parametrize("name", PODS)
def test_each_process_has_the_secrets_that_it_uses_and_no_other(name: str) -> None:
    (container,) = PODS[name]["spec"]["containers"]
    assert _secrets(container) == SECRETS[name]


def test_every_process_gets_the_same_settings_and_image() -> None:
    settings, image = _settings(), load("kustomization.yaml")["images"][0]
    for pod in PODS.values():
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"][0] == {"configMapRef": {"name": "ingest-settings"}}
        assert container["image"] == image["name"]
    assert settings["DAGSTER_CURRENT_IMAGE"] == f"{image['newName']}:{image['newTag']}" == IMAGE
    assert local_stores(SystemResources(load_settings(settings, FOLDER).settings)) == []


def test_nothing_is_open_to_the_world_and_no_secret_is_inline() -> None:
    assert {found["spec"]["type"] for found in OBJECTS if found["kind"] == "Service"} == {"ClusterIP"}
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@|password:\s*\S", text, flags=re.IGNORECASE)


def test_variables_named_after_services_set_no_setting() -> None:
    names = [found["metadata"]["name"] for found in OBJECTS if found["kind"] == "Service"]
    variables = {f"{name.upper().replace('-', '_')}_{what}" for name in names for what in ("SERVICE_HOST", "PORT")}
    load_settings({**dict.fromkeys(variables, "tcp://10.0.0.1:80"), **_settings()}, FOLDER)


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_services_and_budgets_select_pods_that_exist(kind: str) -> None:
    for found in (found for found in OBJECTS if found["kind"] == kind):
        selector = found["spec"]["selector"]
        assert any(_selects({"matchLabels": selector.get("matchLabels", selector)}, pod) for pod in _labels().values())


def test_only_daemon_and_webserver_reach_the_code_server() -> None:
    assert {name for name in _labels() if _may_connect(name, "code-server", 4000)} == {"daemon", "webserver"}
    assert _settings()["DAGSTER_CODE_SERVER_HOST"] in {found["metadata"]["name"] for found in OBJECTS}


def test_each_process_reaches_what_its_code_contacts() -> None:
    broker = {name for name in _labels() if _may_leave(name, 9_094)}
    assert broker == {"migrate", "code-server", "daemon", "monitor", "run"}
    # Sources, of which only a tick and a run ask anything: SFTP here.
    assert {name for name in _labels() if _may_leave(name, 22)} == {"code-server", "run"}


def test_the_page_says_which_secret_holds_each_setting_that_is_one() -> None:
    rows = re.findall(r"^\| `ingest-[\w-]+` \| (.+) \| .+ \|$", DEPLOYMENT, flags=re.MULTILINE)
    held = tuple(name.rstrip("…") for row in rows for name in re.findall(r"`([A-Z0-9_]+…?)`", row))
    secrets = [name for _, field in leaves(Settings) if holds_secrets(field.annotation) for name in variables_of(field)]
    assert len(secrets) > 10
    assert [name for name in secrets if not name.startswith(held)] == []


@pytest.mark.parametrize("token", ["INGEST_MONITOR_TOKEN", "INGEST_MONITOR_OPERATOR_TOKEN", None])
def test_the_readiness_probe_of_the_monitor_uses_the_configured_token(token: str | None) -> None:
    (container,) = PODS["monitor"]["spec"]["containers"]
    program, *arguments = container["readinessProbe"]["exec"]["command"]
    seen: list[tuple[str, str | None]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        code = arguments[-1].replace("8080", str(server.server_port))
        environ = {"PATH": os.environ["PATH"], **({token: "a-token-of-the-tests"} if token else {})}
        subprocess.run([sys.executable, *arguments[:-1], code], env=environ, check=True)
    assert program == "python"
    assert seen == [("/readyz", "Bearer a-token-of-the-tests") if token else ("/healthz", None)]


def test_nothing_in_the_namespace_reaches_a_run() -> None:
    assert not [name for name in _labels() if _may_connect(name, "run", 8080)]


def test_no_pod_reaches_the_metadata_service_of_a_cloud() -> None:
    blocks = [
        peer["ipBlock"]
        for policy in POLICIES
        for rule in policy.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks if block["cidr"] == "0.0.0.0/0")


def test_only_daemon_and_webserver_reach_the_api_of_the_cluster() -> None:
    accounts = {name: pod["spec"]["serviceAccountName"] for name, pod in PODS.items()}
    assert {name for name, account in accounts.items() if account == "ingest-launcher"} == {"daemon", "webserver"}
    subjects = [subject for found in OBJECTS if found["kind"] == "RoleBinding" for subject in found["subjects"]]
    assert subjects == [{"kind": "ServiceAccount", "name": "ingest-launcher"}]


def test_the_configuration_is_that_of_the_project_with_another_launcher() -> None:
    ours, project = load("dagster.yaml"), yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    assert {name: value for name, value in ours.items() if name not in DIFFERENT} == {
        name: value for name, value in project.items() if name not in DIFFERENT
    }


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi("ingest") as server:
        yield server


@pytest.fixture
def instance(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dagster_postgres_url: str
) -> Iterator[DagsterInstance]:
    """Dagster as deploy/kubernetes configures it, outside a cluster."""
    for name, value in {**_settings(), "DAGSTER_POSTGRES_URL": dagster_postgres_url}.items():
        monkeypatch.setenv(name, value)
    configuration = load("dagster.yaml")
    configuration["run_launcher"]["config"] |= {
        "load_incluster_config": False,
        "kubeconfig_file": str(api.write_kubeconfig(tmp_path)),
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        yield instance


def test_a_run_is_a_job_without_rights_whose_command_runs_it(
    api: KubernetesApi, instance: DagsterInstance, tmp_path: Path, postgres_url: str
) -> None:
    run = _launch(instance, "retention")

    (job,) = api.jobs.values()
    _require_valid(job)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert pod["serviceAccountName"] == "ingest"
    assert pod["automountServiceAccountToken"] is False
    assert _secrets(container) == RUN_SECRETS
    _is_hardened(pod)
    policies = [policy for policy in POLICIES if _selects(policy["podSelector"], _labels_of(job["spec"]["template"]))]
    assert len(policies) > 2, "the pods of runs have other labels than the policies select"

    # As the pod runs it: with no way to the API of the cluster.
    (tmp_path / "kubeconfig").unlink()
    _run_as_pod(container, postgres_url, tmp_path)
    assert instance.get_run_by_id(run.run_id).status is DagsterRunStatus.SUCCESS  # type: ignore[union-attr]


def test_a_job_that_failed_or_vanished_is_a_run_that_failed(api: KubernetesApi, instance: DagsterInstance) -> None:
    run = _launch(instance, "retention")
    (job,) = api.jobs.values()
    launcher = instance.run_launcher
    job["status"] = {"active": 1}
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    job["status"] = {"failed": 1}
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    api.jobs.clear()
    assert launcher.check_run_worker_health(run).status is not WorkerStatus.RUNNING


def test_ending_a_run_deletes_its_job(api: KubernetesApi, instance: DagsterInstance) -> None:
    run = _launch(instance, "retention")
    (name,) = api.jobs
    assert instance.run_launcher.terminate(run.run_id)
    assert api.deleted == [name]


def _launch(instance: DagsterInstance, job_name: str) -> DagsterRun:
    """Start a run as the daemon does."""
    repository = RepositoryPythonOrigin(
        executable_path=sys.executable,
        code_pointer=ModuleCodePointer("ingest_project.definitions", "defs", None),
        container_image=os.environ["DAGSTER_CURRENT_IMAGE"],
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
    )
    origin = JobPythonOrigin(job_name, repository)
    run = instance.create_run_for_job(
        defs.resolve_job_def(job_name), status=DagsterRunStatus.STARTING, job_code_origin=origin
    )
    launcher = instance.run_launcher
    assert type(launcher).__name__ == "K8sRunLauncher"
    launcher.launch_run(LaunchRunContext(run, workspace=None))
    return run


def _run_as_pod(container: dict[str, Any], warehouse: str, folder: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name.startswith(("DAGSTER_", "PATH", "HOME"))}
    variables |= {"DATABASE_URL": warehouse, "INGEST_STATE_DIR": str(folder), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    program = str(Path(sys.executable).with_name(container["args"][0]))
    ended = subprocess.run(
        [program, *container["args"][1:]], env=variables, cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-2_000:] + ended.stderr[-2_000:]


def _require_valid(found: dict[str, Any]) -> None:
    import kubernetes_validate  # a second, in the one process that needs it

    kubernetes_validate.validate(found, SCHEMAS, strict=True)


def _is_hardened(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    limits, context = container["resources"]["limits"], container["securityContext"] | pod["securityContext"]
    assert limits["memory"]
    assert pod["enableServiceLinks"] is False
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == 10_001
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def _secrets(container: dict[str, Any]) -> set[str]:
    return {
        source["secretRef"]["name"].removeprefix("ingest-") for source in container["envFrom"] if "secretRef" in source
    }


def _settings() -> dict[str, str]:
    lines = (FOLDER / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _labels_of(template: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = template["metadata"]["labels"]
    return labels


def _labels() -> dict[str, dict[str, str]]:
    """Of every pod in the namespace, and of one that is a stranger."""
    run = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/component": "run_worker"}
    return {name: _labels_of(pod) for name, pod in PODS.items()} | {"run": run, "stranger": {"app": "stranger"}}


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As Kubernetes matches labels; the only operator here is In."""
    expressions = selector.get("matchExpressions", [])
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in expressions
    )


def _may_leave(sender: str, port: int) -> bool:
    """Test whether a policy lets a pod connect to this port of any address outside."""
    policies = [p for p in POLICIES if "Egress" in p["policyTypes"] and _selects(p["podSelector"], _labels()[sender])]
    return any(
        port in [entry["port"] for entry in rule.get("ports", [{"port": port}])]
        and any("ipBlock" in peer for peer in rule["to"])
        for policy in policies
        for rule in policy.get("egress", [])
    )


def _may_connect(sender: str, receiver: str, port: int) -> bool:
    """As Kubernetes decides: some policy of each end must allow it, once any policy selects that end."""
    labels = _labels()

    def allowed(end: str, other: str, direction: str, peers: str) -> bool:
        mine = [p for p in POLICIES if direction in p["policyTypes"] and _selects(p["podSelector"], labels[end])]
        rules = [rule for policy in mine for rule in policy.get(direction.lower(), [])]
        return not mine or any(
            # A peer with a selector of namespaces stands for any pod in those: this one too, where it selects all.
            port in [entry["port"] for entry in rule.get("ports", [{"port": port}])]
            and any(
                _selects(peer.get("podSelector", {}), labels[other])
                for peer in rule[peers]
                if "ipBlock" not in peer and not peer.get("namespaceSelector")
            )
            for rule in rules
        )

    return allowed(sender, receiver, "Egress", "to") and allowed(receiver, sender, "Ingress", "from")
