"""`ingest profile` and `ingest dataset`: they work with nothing running, and store nothing."""

from __future__ import annotations

import gzip
import shlex
from pathlib import Path

import pytest

from ingest_project.operations import SystemResources
from ingest_project.operations.dashboard.data import dashboard
from ingest_project.operations.snapshot import take_snapshot
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.test_documentation import ROOT, blocks

PAGE = ROOT / "docs" / "reader-profiles.md"
READINGS = "timestamp,device_id,sensor_type,value,unit\n"
ORDERS = "Order ID;Customer;Price;Ordered at;Paid\n" + "".join(
    f"A-{n:03};c{n % 3};{n},90;2026-01-15T1{n}:00:00Z;true\n" for n in range(8)
)
BROKEN = "name: hall\ncolums: {Zeit: timestamp}\n"


def test_the_session_of_the_documentation_works_as_printed(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "hall-3_2026-01.csv").write_text(blocks(PAGE, "")[0], encoding="utf-8")
    (session,) = blocks(PAGE, "console")
    out = ""
    for step in session.split("$ ingest ")[1:]:
        command, _, printed = step.partition("\n")
        command, _, target = command.partition(" > ")
        done = ingest(*shlex.split(command))
        assert done.exit_code == 0, done.err
        if target:
            Path(target).write_text(done.out, encoding="utf-8")
            out = done.out
        elif printed:
            assert done.out == printed
    assert blocks(PAGE, "text")[0] in out
    assert out.startswith("# Tried on hall-3_2026-01.csv: 3 of 3 rows accepted.\n")


def test_trying_a_file_shows_its_rejected_rows_as_they_are_written(ingest: Ingest) -> None:
    done = ingest("profile", "try", str(ROOT / "dummy_data" / "some_bad_rows.csv"), "--rows", "2")
    assert done.exit_code == 0
    assert "50 read, 42 accepted, 8 rejected" in done.out
    assert "2026-01-16T08:04:00Z,plant-a-01,temperature,n/a,°C" in done.out
    assert "\x1b" not in done.out


def test_a_file_that_would_be_quarantined_is_exit_code_1_also_as_json(ingest: Ingest) -> None:
    done = ingest("profile", "try", str(ROOT / "dummy_data" / "mostly_bad_rows.csv"), "--json", "--rows", "1")
    assert done.exit_code == 1
    assert done.json["refusal"].startswith("too_many_bad_rows")
    assert (done.json["rows_read"], done.json["rules"]) == (20, {"value_not_a_number": 14})
    assert done.json["rejected"][0]["line_number"] == 2


def test_an_unreadable_file_is_one_error_line_and_exits_with_1(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    done = ingest("profile", "guess", "empty.csv")
    assert (done.exit_code, done.out) == (1, "")
    assert done.err == "empty_file: The file has no text.\n"


def test_a_proposal_names_the_installed_profile_that_reads_the_file_too(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "2026-01-15_sds011_sensor_7.csv"
    header = "sensor_id;sensor_type;location;lat;lon;timestamp;P1;durP1;ratioP1;P2;durP2;ratioP2\n"
    path.write_text(header + "".join(f"7;SDS011;1;2;3;2026-01-15T10:0{n}:00;4.{n};;;2.0;;\n" for n in range(9)))
    assert "The profile luftdaten reads it too: 18 rows accepted." in ingest("profile", "guess", path.name).out


def test_check_names_file_line_and_the_nearest_name(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hall.yaml"
    path.write_text(BROKEN, encoding="utf-8")
    monkeypatch.setenv("INGEST_READER_PROFILES", str(path))
    for arguments in ((), ("hall.yaml",)):
        done = ingest("profile", "check", *arguments)
        assert done.exit_code == 1
        assert "hall.yaml, line 2" in done.err
        assert "did you mean columns" in done.err
    assert "Broken: " in ingest("profile", "list").err
    assert ingest("profile", "check", "--json").json["problems"][0].startswith(str(path))


def test_show_prints_a_profile_as_it_is_written(ingest: Ingest) -> None:
    assert ingest("profile", "show", "skab").out.startswith("name: skab\n")
    assert ingest("profile", "show", "skap").exit_code == 2


def test_a_proposed_dataset_loads_and_reads_its_file(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "orders_2026-01-15.csv").write_text(ORDERS, encoding="utf-8")
    proposed = ingest("dataset", "guess", "orders_2026-01-15.csv")
    assert proposed.out.startswith("# Tried on orders_2026-01-15.csv: 8 of 8 rows accepted.\n"), proposed.err
    for part in (
        "{name: order_id, type: text, required: true}",
        "{name: price, type: 'decimal(12,2)', required: true}",
        "{name: ordered_at, type: timestamp, required: true}",
        "{name: paid, type: boolean, required: true}",
        "columns: [order_id]",
    ):
        assert part in proposed.out
    declared = tmp_path / "ingest_project_defs" / "orders" / "defs.yaml"
    declared.parent.mkdir(parents=True)
    declared.write_text(proposed.out, encoding="utf-8")
    assert ingest("dataset", "check").exit_code == 0
    assert "orders" in ingest("dataset", "list").out
    done = ingest("dataset", "try", "orders_2026-01-15.csv", "--dataset", "orders", "--json")
    assert done.json["accepted"][1] | {"line_number": 0} == {
        "line_number": 0,
        "order_id": "A-001",
        "customer": "c1",
        "price": "1.90",
        "ordered_at": "2026-01-15T11:00:00Z",
        "paid": True,
        "rescued_data": None,
    }


def test_a_row_that_breaks_the_contract_of_a_dataset_is_shown_with_its_reasons(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(ORDERS, encoding="utf-8")
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "defs.yaml").write_text(ingest("dataset", "guess", "orders.csv").out, encoding="utf-8")
    bad = (
        ORDERS.replace("3,90", "three").replace("A-005", "A-004").replace("Paid", "Paid;Note").replace("true", "true;x")
    )
    (tmp_path / "bad.csv").write_text(bad, encoding="utf-8")
    done = ingest("profile", "try", "bad.csv", "--dataset", "orders/defs.yaml", "--json")
    assert done.json["rules"] == {"price_not_a_decimal": 1, "order_id_duplicate": 2}
    assert "Note" in done.json["drift"]
    assert {"A-003;c0;three;2026-01-15T13:00:00Z;true;x"} <= {row["raw_text"] for row in done.json["rejected"]}


def test_a_compressed_file_is_guessed_by_what_is_in_it(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "orders.csv.gz").write_bytes(gzip.compress(ORDERS.encode()))
    assert "8 of 8 rows accepted" in ingest("dataset", "guess", "orders.csv.gz").out


def test_broken_declarations_are_in_the_status_and_on_the_dashboard(
    ingest: Ingest, services: SystemResources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hall.yaml").write_text(BROKEN, encoding="utf-8")
    monkeypatch.setenv("INGEST_READER_PROFILES", str(tmp_path / "hall.yaml"))
    declared = tmp_path / "ingest_project_defs" / "weather" / "defs.yaml"
    declared.parent.mkdir(parents=True)
    declared.write_text("type: ingest_project.FileDataset\nattributes:\n  columnz: []\n", encoding="utf-8")
    problems = " ".join(ingest("status", "--json").json["problems"])
    assert "hall.yaml, line 2" in problems
    assert "weather/defs.yaml, line 3" in problems
    own = services.settings.model_copy(update={"declarations": declared.parents[1]})
    snapshot = take_snapshot(SystemResources(own), DagsterRecords(own))
    assert b"weather/defs.yaml, line 3" in dashboard(snapshot, None, "1h")


LOCAL = (
    "Zeit;Ort;Durchfluss [m³/s]\n25.10.2026 01:30;Wehr;1.234,5\n25.10.2026 02:30;Wehr;2,5\n29.03.2026 02:30;Wehr;3\n"
)
WEIR = """type: ingest_project.FileDataset
attributes:
  columns: [{name: at, type: timestamp}, {name: place, type: text}, {name: flow, type: number}]
  reader:
    columns: {Zeit: at, Ort: place, "Durchfluss [m³/s]": flow}
    timestamps: {formats: ["%d.%m.%Y %H:%M"], zone: Europe/Berlin}
    numbers: {decimal: ",", thousands: "."}
"""


def test_a_time_that_clocks_pass_twice_or_skip_has_its_own_reason_and_remedy(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "weir.csv").write_text(LOCAL, encoding="utf-16")
    (tmp_path / "weir").mkdir()
    (tmp_path / "weir" / "defs.yaml").write_text(WEIR, encoding="utf-8")
    done = ingest("dataset", "try", "weir.csv", "--dataset", "weir/defs.yaml", "--json")
    assert done.json["rules"] == {"at_ambiguous_time": 1, "at_skipped_time": 1}
    assert "INGEST_MAX_REJECTED_SHARE allows 50%): at_ambiguous_time 1, at_skipped_time 1." in done.json["refusal"]
    assert "set timestamps.ambiguous" in done.json["refusal"]
    assert "timestamps.zone" in done.json["refusal"]
    shown = ingest("dataset", "try", "weir.csv", "--dataset", "weir/defs.yaml").out
    assert "csv, utf-16-le, divided by ';', times in Europe/Berlin" in shown
    assert "reject (timestamps.ambiguous), decimal ',', thousands '.'" in shown
    # As every database shows it.
    assert " 1234.5" in shown
    assert "timestamps.ambiguous of the reader" in shown


def test_a_header_that_another_delimiter_divides_is_asked_about(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "weir.csv").write_text(LOCAL, encoding="utf-8")
    (tmp_path / "weir").mkdir()
    declared = WEIR.replace("  reader:", "  reader:\n    delimiter: ','")
    (tmp_path / "weir" / "defs.yaml").write_text(declared, encoding="utf-8")
    done = ingest("dataset", "try", "weir.csv", "--dataset", "weir/defs.yaml", "--json")
    assert done.json["refusal"].endswith("Is the delimiter ';'?")


def test_checking_says_what_it_checked_and_which_command_checks_the_rest(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "declared"
    attributes = {
        "orders": "TopicStream\nattributes:\n  topic: orders\n  columns: [{name: id, type: text}]\n",
        "halls": "FileDataset\nattributes:\n  columns: [{name: id, type: text}]\n",
        "keyed": "TopicStream\nattributes:\n  topic: o\n  columns: [{name: id, type: text}]\n  sink:\n    key: [idd]\n",
    }
    for name, text in attributes.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "defs.yaml").write_text(f"type: ingest_project.{text}", encoding="utf-8")
    monkeypatch.setenv("INGEST_DECLARATIONS", str(folder))
    for arguments, shipped in (((), 1), (("declared",), 0)):
        done = ingest("dataset", "check", *arguments)
        assert (done.exit_code, done.out) == (0, f"{shipped + 1} dataset{'s' * shipped} usable, 0 problems.\n")
        assert "2 declarations of another kind: `ingest streams check`" in done.err
        done = ingest("streams", "check", *arguments)
        assert (done.exit_code, done.out) == (1, "1 stream usable, 1 problem.\n")
        assert (
            "keyed/defs.yaml, line 6: this is not a stream: sink.key: there is no column idd, did you mean id?"
            in done.err
        )
        assert "1 declaration of another kind: `ingest dataset check`" in done.err
    assert "declared/gone" in ingest("streams", "check", "declared/gone").err
    assert ingest("streams", "check", "declared/orders", "--json").json == {"problems": []}


def test_a_profile_trial_has_the_values_taken_from_folder_names(ingest: Ingest, tmp_path: Path) -> None:
    file = tmp_path / "hall-7" / "a.csv"
    file.parent.mkdir()
    file.write_text("timestamp,sensor_type,value\n2026-01-15T10:00:00Z,temperature,1.5\n")
    profile = tmp_path / "halls.yaml"
    profile.write_text(
        "name: halls\ncolumns: {timestamp: timestamp, sensor_type: sensor_type, value: value}\n"
        "from_path: {device_id: '(hall-[0-9]+)/'}\n"
    )
    trial = ingest("profile", "try", str(file), "--profile", str(profile), "--json").json
    assert (trial["refusal"], trial["accepted"][0]["device_id"]) == (None, "hall-7")
