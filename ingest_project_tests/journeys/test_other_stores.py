"""The same journey with the bytes in S3, and with the rows in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from ingest_project.core.secrets import text_of
from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import Bucket, S3Options, location_of
from ingest_project_tests.file_ingest.stored_metrics import metrics_of
from ingest_project_tests.journeys.system import RAW, VALIDATED, System, changed, readings

FILES = {
    "good.csv": readings(5),
    "twin.csv": readings(5),
    "some.csv": readings(6, "device-2", bad=2),
    "refused.csv": "timestamp,value\n1,2\n",
}


def send_all(system: System) -> None:
    for name, content in FILES.items():
        system.write(name, content)
    system.send_job(system.folder)
    assert all(run.success for run in system.drive())


def assert_all_there(system: System) -> None:
    states = system.states()
    assert {states.pop("good.csv"), states.pop("twin.csv")} == {"ingested", "duplicate"}
    assert states == {"some.csv": "ingested", "refused.csv": "quarantined"}
    assert system.services.warehouse.totals()[:2] == (9, 2)
    for name in FILES:
        landed = system.file(name).sha256
        assert landed is not None
        with system.services.landing.local_path(landed) as path:
            assert path.read_bytes() == (system.folder / name).read_bytes()
    assert system.quarantined_bytes(system.file("refused.csv").file_key) == FILES["refused.csv"].encode()
    assert len(system.instance.get_materialized_partitions(RAW)) == 4
    shown = [system.metadata(VALIDATED, record.file_key) for record in system.files().values()]
    assert sum(metadata.get("dagster/row_count", 0) > 0 for metadata in shown) == 2
    assert system.check("rows_add_up").passed


def test_with_landing_store_and_quarantine_in_s3_nothing_is_different(
    system: System, s3_options: S3Options, s3_url: str
) -> None:
    system.settings = changed(
        system.settings,
        "storage",
        landing_url=f"{s3_url}/landing",
        quarantine_url=f"{s3_url}/quarantine",
        s3_endpoint_url=s3_options.endpoint_url,
        s3_region=s3_options.region,
        s3_access_key_id=s3_options.access_key_id,
        s3_secret_access_key=SecretStr(text_of(s3_options.secret_access_key or "")),
    )
    system.restart()
    send_all(system)
    assert_all_there(system)
    bucket = location_of(s3_url)
    assert isinstance(bucket, Bucket)
    listed = s3_client(s3_options).list_objects_v2(Bucket=bucket.name, Prefix=bucket.prefix)["Contents"]
    # Three contents of four files, and two objects for the refused one.
    assert len(listed) == 5


def test_with_a_warehouse_in_sqlite_nothing_is_different(system: System, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    system.settings = changed(system.settings, "warehouse", database_url=SecretStr(url))
    system.restart()
    send_all(system)
    assert_all_there(system)
    key = system.file("some.csv").file_key
    assert all(run.success for run in system.materialize([key]))
    assert_all_there(system)


@pytest.mark.parametrize("bad", [0, 60], ids=["taken", "refused"])
def test_a_file_in_many_chunks_ends_as_it_would_in_one(
    system: System, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    content = "".join([readings(100, "d1"), *(readings(40, f"d{n}", bad).partition("\n")[2] for n in (2, 1, 3))])
    content = content if not bad else content.partition("\n")[0] + "\n" + readings(90, "d9", 80).partition("\n")[2]
    system.send_files(system.write("once.csv", content))
    system.drive()
    whole = system.file("once.csv")
    metrics = metrics_of(system.services.warehouse, whole.file_key)

    from ingest_project.readers.layout import ReadLimits

    monkeypatch.setattr(ReadLimits, "from_settings", lambda _settings: ReadLimits(chunk_bytes=1_000))
    with system.services.warehouse.transaction() as transaction:
        transaction.release_contents([whole.file_key])
    system.send_files(system.write("many.csv", content))
    system.drive()
    many = system.file("many.csv")
    assert (many.state, many.rows_read, many.rows_accepted, many.rows_quarantined, many.rule_counts) == (
        whole.state,
        whole.rows_read,
        whole.rows_accepted,
        whole.rows_quarantined,
        whole.rule_counts,
    )
    assert many.state.value == ("quarantined" if bad else "ingested")
    stored = system.services.warehouse.file_counts([whole.file_key, many.file_key])
    assert stored[many.file_key] == stored[whole.file_key]
    assert (stored[many.file_key] == (0, 0, 0)) is bool(bad)
    for one, other in zip(metrics, metrics_of(system.services.warehouse, many.file_key), strict=True):
        assert one[:4] == other[:4]
        assert (one.mean, one.stddev) == pytest.approx((other.mean, other.stddev))
