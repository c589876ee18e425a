"""Settings: the origin of each value, and the errors for wrong ones."""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_project.core import plugins
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Origin, load_settings
from ingest_project.core.settings.platform import STORE_SCHEMES
from ingest_project.platform.object_store import STORES


def test_the_environment_wins_over_dotenv_and_dotenv_over_yaml(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KAFKA_GROUP_ID=from-dotenv\nLOG_LEVEL=DEBUG\n")
    (tmp_path / "config.yaml").write_text(
        "kafka:\n  group_id: from-yaml\nenvironment: staging\nlogging: {level: ERROR}\n"
    )

    loaded = load_settings({"KAFKA_GROUP_ID": "from-environment"}, tmp_path)

    assert loaded.settings.kafka.group_id == "from-environment"
    assert loaded.settings.logging.level == "DEBUG"
    assert loaded.settings.environment == "staging"
    origins = {setting.path: setting.origin for setting in loaded.each()}
    assert origins["kafka.group_id"] is Origin.ENVIRONMENT
    assert origins["logging.level"] is Origin.DOTENV
    assert origins["environment"] is Origin.YAML
    assert origins["retries.max_attempts"] is Origin.DEFAULT


def test_the_old_name_of_the_broker_setting_is_honoured(tmp_path: Path) -> None:
    assert load_settings({"KAFKA_BROKERS": "broker:9092"}, tmp_path).settings.kafka.bootstrap_servers == "broker:9092"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert load_settings({"KAFKA_GROUP_ID": ""}, tmp_path).settings.kafka.group_id == "ingest-project"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("INGEST_BATCH_SIZE", "INGEST_BATCH_FILES"),
        ("DATABASE_ULR", "DATABASE_URL"),
        ("AUTO_OFFSET_REST", "AUTO_OFFSET_RESET"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} in environment. Did you mean {nearest}"):
        load_settings({name: "anything"}, tmp_path)


def test_a_misspelt_name_in_yaml_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kafka:\n  bootstrap_server: broker:9092\n")
    with pytest.raises(
        SettingsError, match=r"kafka.bootstrap_server in config.yaml. Did you mean kafka.bootstrap_servers"
    ):
        load_settings({}, tmp_path)


def test_variables_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    load_settings({"PATH": "/bin", "KAFKA_HOME": "/opt/kafka", "AWS_REGION": "eu-west-1", "HOME": "/root"}, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "POSTGRES_PASSWORD",
        "COMPOSE_PROJECT_NAME",
        "MONITOR_TOKEN",
        "NODE_ENV",
        "SECRET_KEY",
        "REDIS_URL",
        "API_KEY",
        "KAFKA_TOPIC",
        "ENABLE_AUTO_COMMIT",
        "KAFKA_BROKER_ID",
        "KAFKA_NODE_ID",
        "KAFKA_ADVERTISED_LISTENERS",
        "KAFKA_CFG_LISTENERS",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE",
    ],
)
def test_variables_of_other_programs_in_a_shared_dotenv_file_are_ignored(tmp_path: Path, name: str) -> None:
    (tmp_path / ".env").write_text(f"{name}=anything\nKAFKA_GROUP_ID=ours\n")
    assert load_settings({name: "anything"}, tmp_path).settings.kafka.group_id == "ours"


@pytest.mark.parametrize("name", ["DATABASE_ULR", "INGEST_BATCH_SIZE", "KAFKA_BROKER", "KAFKA_GRUOP_ID", "LOG_LEVL"])
def test_a_misspelt_name_in_a_dotenv_file_is_an_error_all_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / ".env").write_text(f"POSTGRES_PASSWORD=anything\n{name}=anything\n")
    with pytest.raises(SettingsError, match=rf"^Unknown setting {name} in \.env\. Did you mean \w+\?$"):
        load_settings({}, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["KAFKA_SESSION_TIMEOUT_MS", "KAFKA_MAX_POLL_RECORDS", "ONELAKE_WORKSPACE_ID", "ENABLE_AUTOCOMMIT", "MAX_RETRY"],
)
def test_a_client_setting_of_another_service_is_named_and_stops_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / ".env").write_text(f"{name}=anything\n")
    assert load_settings({}, tmp_path).ignored == (name,)
    assert load_settings({name: "anything"}, tmp_path).ignored == (name,)


@pytest.mark.parametrize("name", ["ONELAKE_CLAIMS_PTH", "ONELAKE_CLAIMS_PATHS"])
def test_a_misspelt_destination_of_a_domain_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} in environment. Did you mean ONELAKE_"):
        load_settings({name: "abfss://here"}, tmp_path)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("abfss://claims", "names no file system"),
        ("s4://bucket/claims", "no store has the scheme 's4'; known are file, s3, abfss"),
        ("s3:/bucket/claims", "lacks its scheme"),
        ("onelake.dfs.fabric.microsoft.com/sales/claims.Lakehouse/Files", "lacks its scheme"),
        ("https://", "ends behind its scheme"),
        ("claims/../../other", r"no part \.\."),
    ],
)
@pytest.mark.parametrize("name", ["ONELAKE_CLAIMS_PATH", "INGEST_ATTACHMENTS_URL", "INGEST_LANDING_URL"])
def test_an_address_of_no_store_is_refused_at_the_start(tmp_path: Path, name: str, address: str, problem: str) -> None:
    known_as = "ONELAKE_[*]_PATH" if name.startswith("ONELAKE") else name
    with pytest.raises(SettingsError, match=rf"^{known_as} \(from environment\): .*{problem}"):
        load_settings({name: address}, tmp_path)


def test_an_address_of_a_server_that_contains_a_password_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"INGEST_S3_ENDPOINT_URL.*must not contain a user or password") as caught:
        load_settings({"INGEST_S3_ENDPOINT_URL": "http://me:hunter2@s3.example:9000"}, tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["/data/claims", "claims/in", "file:///data", "s3://bucket/a b", "a:b/c"])
def test_folders_and_addresses_are_destinations_of_a_domain(tmp_path: Path, address: str) -> None:
    given = {"ONELAKE_CLAIMS_PATH": address}
    assert load_settings(given, tmp_path).settings.attachments.destinations == {"claims": address}


def test_a_path_in_the_lake_is_not_taken_for_a_folder_of_this_machine(tmp_path: Path) -> None:
    given = {"ONELAKE_CLAIMS_PATH": "/claims/incoming", "INGEST_ATTACHMENTS_URL": "s3://bucket/attachments"}
    with pytest.raises(SettingsError, match=r"of claims: /claims/incoming is a folder of this machine"):
        load_settings(given, tmp_path)
    load_settings({**given, "ONELAKE_CLAIMS_PATH": "file:///claims/incoming"}, tmp_path)


def test_the_settings_know_the_schemes_of_the_stores() -> None:
    assert set(STORE_SCHEMES) == set(STORES) - set(plugins.installed(plugins.STORES))


def test_the_other_name_of_the_environment_is_honoured(tmp_path: Path) -> None:
    assert load_settings({"APP_ENV": "staging"}, tmp_path).settings.environment == "staging"


@pytest.mark.parametrize("text", ["/a,/b", "/a, /b,", '["/a", "/b"]', ' ["/a","/b"] ', "/a\n/b\n"])
def test_a_list_may_be_written_with_commas_one_a_line_or_as_json(tmp_path: Path, text: str) -> None:
    polling = load_settings({"INGEST_LOCAL_ROOTS": text}, tmp_path).settings.polling
    assert polling.local_roots == [Path("/a"), Path("/b")]


def test_only_a_json_list_may_hold_commas_and_quotes(tmp_path: Path) -> None:
    polling = load_settings({"INGEST_LOCAL_ROOTS": json.dumps(["/a,b", "/it's"])}, tmp_path).settings.polling
    assert polling.local_roots == [Path("/a,b"), Path("/it's")]


def test_an_address_in_brackets_is_no_json(tmp_path: Path) -> None:
    allowed = {"INGEST_ALLOWED_INTERNAL_HOSTS": "[::1],[fe80::1]:8080,host"}
    assert load_settings(allowed, tmp_path).settings.downloads.allowed_internal_hosts == [
        "[::1]",
        "[fe80::1]:8080",
        "host",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("INGEST_LOCAL_ROOTS", text)
            for text in ('["/a"', "['/a']", '{"a": 1}', '"/a"', "'/a','/b'", "[1]", '[["/a"]]')
        ),
        ("INGEST_ALLOWED_HOSTS", '["a"'),
        ("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS", "[300"),
        ("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS", "5m,10m"),
        ("INGEST_DOWNLOAD_RETRY_DELAYS_SECONDS", "inf"),
        ("INGEST_CREDENTIALS", "a=b"),
        ("INGEST_CREDENTIALS", "[]"),
        ("INGEST_ATTACHMENT_URL_PATHS", "{'*': []}"),
        ("RETRY_DELAY", "5s"),
        ("RETRY_DELAY", "inf"),
        ("RETRY_DELAY", "nan"),
        ("RETRY_DELAY", "1e300"),
        ("INGEST_KEEP_RUNS_DAYS", "999999999999"),
        ("INGEST_BATCH_FILES", "1,000"),
        ("INGEST_BATCH_FILES", "1k"),
    ],
)
def test_a_value_that_is_not_of_its_shape_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} \(from environment\): .+\.$"):
        load_settings({name: text}, tmp_path)


def test_variables_that_kubernetes_sets_for_services_are_ignored(tmp_path: Path) -> None:
    links = {"KAFKA_SERVICE_HOST": "10.0.0.1", "KAFKA_SERVICE_PORT_CLIENT": "9092", "KAFKA_PORT": "tcp://10.0.0.1:9092"}
    load_settings({**links, "INGEST_MONITOR_PORT_8080_TCP_ADDR": "10.0.0.2"}, tmp_path)


def test_every_wrong_value_is_named_at_once_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("file_ingest:\n  batch_files: none\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({"LOG_LEVEL": "LOUD"}, tmp_path)
    assert "LOG_LEVEL (from environment)" in str(caught.value)
    assert "INGEST_BATCH_FILES (from config.yaml)" in str(caught.value)


def test_a_secret_is_not_shown_in_an_error_or_by_printing(tmp_path: Path) -> None:
    loaded = load_settings({"DATABASE_URL": "postgresql://user:hunter2@host/db"}, tmp_path)
    assert "hunter2" not in repr(loaded.settings)
    assert "hunter2" not in " ".join(str(setting.value) for setting in loaded.each())


def test_services_of_a_living_ingest_dev_are_found_and_those_of_a_dead_one_are_not(tmp_path: Path) -> None:
    services = {"pid": os.getpid(), "settings": {"kafka.bootstrap_servers": "127.0.0.1:1234"}}
    (tmp_path / "services.json").write_text(json.dumps(services))
    environ = {"INGEST_STATE_DIR": str(tmp_path)}
    loaded = load_settings(environ, tmp_path)
    assert loaded.settings.kafka.bootstrap_servers == "127.0.0.1:1234"
    assert loaded.origins["kafka.bootstrap_servers"] is Origin.EMBEDDED

    (tmp_path / "services.json").write_text(json.dumps({**services, "pid": 2**22 + 1}))
    assert load_settings(environ, tmp_path).settings.kafka.bootstrap_servers == ""


def test_pauses_between_attempts_double_up_to_their_limit(tmp_path: Path) -> None:
    retries = load_settings({"RETRY_DELAY": "5", "INGEST_MAX_RETRY_DELAY_SECONDS": "30"}, tmp_path).settings.retries
    assert [retries.delay(attempts) for attempts in (1, 2, 3, 4, 99)] == [
        timedelta(seconds=seconds) for seconds in (5, 10, 20, 30, 30)
    ]


ROOT = Path(__file__).parents[2]


def test_the_example_of_a_dotenv_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    (tmp_path / ".env").write_text(re.sub(r"^#(?=[A-Z_]+=)", "", example, flags=re.MULTILINE), encoding="utf-8")
    found = load_settings({}, tmp_path).settings
    assert found.model_copy(update={"declarations": tmp_path / "none" / found.declarations.name}) == (
        load_settings({}, tmp_path / "none").settings
    )
    for setting in load_settings({}, tmp_path / "none").each():
        assert f"#{setting.env_names[0]}=" in example, setting.path
        assert setting.description in example.replace("\n# ", " "), setting.path


def test_the_example_of_a_yaml_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((ROOT / "config.example.yaml").read_bytes())
    found = load_settings({}, tmp_path).settings
    assert found.model_copy(update={"declarations": tmp_path / "none" / found.declarations.name}) == (
        load_settings({}, tmp_path / "none").settings
    )
    text = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    for setting in load_settings({}, tmp_path / "none").each():
        assert f"{setting.path.rpartition('.')[2]}:" in text, setting.path
        assert setting.description in text.replace("\n  # ", " "), setting.path


def test_every_setting_has_a_description(tmp_path: Path) -> None:
    descriptions = {setting.path: setting.description for setting in load_settings({}, tmp_path).each()}
    assert all(descriptions.values())
    assert descriptions["kafka.sasl_username"] == "SASL user"


@pytest.mark.parametrize(
    "dagster",
    [
        "postgresql://ingest:b@db:5432/ingest",
        "postgresql+psycopg2://other@DB/ingest?sslmode=require",
        "postgres://u@/ingest?host=db",
    ],
)
def test_warehouse_and_dagster_do_not_share_a_database(tmp_path: Path, dagster: str) -> None:
    urls = {"DATABASE_URL": "postgresql://ingest:a@db/ingest", "DAGSTER_POSTGRES_URL": dagster}
    with pytest.raises(SettingsError, match=r"name the same database\. Give Dagster one of its own"):
        load_settings(urls, tmp_path)


@pytest.mark.parametrize(
    "dagster",
    [
        "postgresql://ingest:a@db/dagster",
        "postgresql://ingest:a@db:5433/ingest",
        "postgresql://ingest:a@elsewhere/ingest",
        "postgresql://ingest:a@db/ingest?options=-csearch_path%3Ddagster",
        "",
    ],
)
def test_two_databases_or_two_schemas_are_fine(tmp_path: Path, dagster: str) -> None:
    load_settings({"DATABASE_URL": "postgresql://ingest:a@db/ingest", "DAGSTER_POSTGRES_URL": dagster}, tmp_path)
    load_settings({"DATABASE_URL": "sqlite:////tmp/a.db", "DAGSTER_POSTGRES_URL": dagster}, tmp_path)
