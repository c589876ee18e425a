"""Every type of file that a dataset declares goes the whole way, compressed and in archives too."""

from __future__ import annotations

import gzip
import io
import zipfile
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pyarrow as pa
from dagster import DagsterInstance
from pyarrow import parquet

from ingest_project_tests.file_ingest.datasets.system import declare, opened, settings_of
from ingest_project_tests.journeys.system import JOB_OF, POLLING
from ingest_project_tests.services.kafka import Server

VALIDATED = dg.AssetKey(["halls", "validated"])
COLUMNS = [
    {"name": "station", "type": "text", "required": True},
    {"name": "amount", "type": "decimal(20,2)"},
    {"name": "details", "type": "json"},
]
AMOUNT = "123456789012345678.90"


def contents() -> dict[str, bytes]:
    """A row of each type of file."""
    archive, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened_archive:
        opened_archive.writestr("in/first.csv", f"station,amount\nzip-1,{AMOUNT}\n,1\n")
        opened_archive.writestr("left.txt", "station\nno\n")
        opened_archive.writestr("second.jsonl.gz", gzip.compress(f'{{"station":"zip-2","amount":{AMOUNT}}}'.encode()))
    parquet.write_table(pa.table({"station": ["parquet"], "amount": [Decimal(AMOUNT)], "details": [[1, 2]]}), table)
    return {
        "a.csv.gz": gzip.compress(f"station,amount\ngz,{AMOUNT}\n".encode()),
        "b.zip": archive.getvalue(),
        "c.jsonl": f'{{"station":"json","amount":{AMOUNT},"details":{{"x":1.50}},"more":[1]}}\nbad\n'.encode(),
        "d.parquet": table.getvalue(),
        "e.pdf": b"%PDF",
        "f.xlsx": b"of a type that is not declared",
    }


def test_files_of_every_declared_type_become_rows(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    types = ["csv", "zip", "jsonl", "parquet"]
    more = {"file_types": types, "reader": {"members": "*.*s*"}, "max_rejected_share": 0.9}
    declare(tmp_path, "halls", columns=COLUMNS, paths=["*/halls/*"], **more)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    for name, content in contents().items():
        system.write(f"halls/{name}", content)
    system.send_job(system.folder / "halls")
    for request in system.requests(POLLING):
        system.execute(JOB_OF[POLLING], request)
    system.run_due()
    rows = system.rows("SELECT station, amount, details, rescued_data, line_number FROM halls ORDER BY station")
    amount = Decimal(AMOUNT)
    assert rows == [
        ("gz", amount, None, None, 2),
        ("json", amount, {"x": 1.5}, {"more": [1]}, 1),
        ("parquet", amount, [1, 2], None, 1),
        ("zip-1", amount, None, None, 2),
        ("zip-2", amount, None, None, 10_000_000_001),
    ]
    bad = system.rows("SELECT line_number, raw_text, reasons FROM quarantined_rows ORDER BY line_number, raw_text")
    assert bad == [(2, "bad", ["not_json"]), (3, "in/first.csv, line 3: ,1", ["station_missing"])]
    left_out = {name: system.metadata(VALIDATED, record.file_key) for name, record in system.files().items()}
    assert {name: found["members_left_out"] for name, found in left_out.items() if "members_left_out" in found} == {
        "b.zip": ["left.txt"]
    }
    assert {*system.files()} == {"a.csv.gz", "b.zip", "c.jsonl", "d.parquet"}
    system.close()
