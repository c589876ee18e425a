"""After a demo: each file and each attachment is a partition that shows its result."""

from __future__ import annotations

import re

import pytest

from ingest_project.attachments.tables import AttachmentState
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project_tests.after_a_demo.dead_attachments import queue_states_of, ten_dead
from ingest_project_tests.after_a_demo.finished_demo import Demo
from ingest_project_tests.browser.window import Window
from ingest_project_tests.services.http_server import HttpServer

# Starting the system and, on a clean machine, installing a browser count as part of the first test.
pytestmark = pytest.mark.timeout(900)

ASSETS = ("raw_files", "validated_sensor_data", "quarantined_files", "aggregated_metrics")
GOOD, REFUSED, PARTLY_REFUSED = "sample_data_2.csv", "missing_column.csv", "some_bad_rows.csv"


def partition_page(asset: str, key: str) -> str:
    return f"/assets/{asset}?view=partitions&partition={key}"


def counted_partitions(demo: Demo) -> str:
    return rf"^Materialized \({len(demo.report.files)}\)$"


def test_an_ingested_file_is_a_green_partition_that_shows_its_row_count(demo: Demo, window: Window) -> None:
    file = demo.file(GOOD)
    window.open(partition_page("validated_sensor_data", file.file_key))
    window.wait_for(
        rf"{counted_partitions(demo)}.*^{re.escape(file.file_key)}\nMaterialized\nLatest materialization$"
        rf".*^dagster/row_count\n{file.rows_accepted}$.*^rows_quarantined\n0$"
    )
    assert window.tone_of("Materialized") == "green"
    # Its first rows are below what is known of it as a whole.
    window.wait_for(r"^line_number timestamp device_id sensor_type value unit$")
    window.keep("partition-materialized")


def test_a_quarantined_file_is_a_partition_without_rows_whose_checks_say_why(demo: Demo, window: Window) -> None:
    file = demo.file(REFUSED)
    window.open(partition_page("validated_sensor_data", file.file_key))
    window.wait_for(
        rf"{counted_partitions(demo)}.*^{re.escape(file.file_key)}\nMaterialized\nLatest materialization$"
        rf".*^dagster/row_count\n0$.*^reason\n[^\n]*no column 'device_id'"
    )

    window.open("/assets/validated_sensor_data?view=checks&checkDetail=file_accepted")
    window.click("//button[normalize-space()='Partitions']")
    window.wait_for(rf"^Failed \({len(demo.report.files) - demo.count(FileState.INGESTED)}\)$")
    window.open("/assets/validated_sensor_data?view=checks&checkDetail=contract_holds")
    window.click("//button[normalize-space()='Partitions']")
    window.wait_for(rf"^Failed \({demo.count(FileState.QUARANTINED) + 1}\)$")  # and the file with some bad rows
    window.click_partition(file.file_key)
    window.wait_for(
        rf"^{re.escape(file.file_key)}\nFailed\nLatest execution\n"
        rf".*^Description\n[^\n]*no column 'device_id' \(profile.*^Metadata\n"
        rf"file\n{re.escape(file.file_key)}\nreason\n[^\n]*no column 'device_id'"
    )
    assert window.tone_of("Failed") == "red"
    window.keep("partition-quarantined")


@pytest.mark.long
def test_a_refused_file_and_refused_rows_are_shown_with_their_reasons(demo: Demo, window: Window) -> None:
    whole = demo.file(REFUSED)
    window.open(partition_page("quarantined_files", whole.file_key))
    window.wait_for(
        rf"^{re.escape(whole.file_key)}\nMaterialized$.*^whole_file\ntrue$.*^reason\n[^\n]*no column 'device_id'"
    )
    by_row = demo.file(PARTLY_REFUSED)
    window.open(partition_page("quarantined_files", by_row.file_key))
    window.wait_for(rf"^{re.escape(by_row.file_key)}\nMaterialized$.*^dagster/row_count\n{by_row.rows_quarantined}$")
    window.wait_for(r"value_out_of_range.*^line_number raw_text reasons$.*,temperature,4000,.*value_out_of_range$")
    window.keep("quarantined-rows")


@pytest.mark.long
def test_a_stored_attachment_is_a_green_partition_that_shows_its_location(demo: Demo, window: Window) -> None:
    attachment = demo.attachment("signed_contract.pdf")
    window.open(partition_page("onelake_attachments", attachment.attachment_key))
    window.wait_for(
        rf"^{re.escape(attachment.attachment_key)}\nMaterialized\nLatest materialization$"
        rf".*^size_bytes\n{attachment.size_bytes}$.*^stored_at\n[^\n]*/signed_contract\.pdf$.*^replays\n1$"
    )
    assert window.tone_of("Materialized") == "green"


@pytest.mark.long
def test_a_dead_attachment_is_a_partition_whose_check_is_red_and_says_why(dead_key: str, window: Window) -> None:
    window.open("/assets/onelake_attachments?view=checks&checkDetail=attachment_stored")
    window.click("//button[normalize-space()='Partitions']")
    window.wait_for(r"^Failed \(1\)$")
    window.click_partition(dead_key)
    window.wait_for(
        rf"^{re.escape(dead_key)}\nFailed\nLatest execution\n"
        r".*^Description\n[^\n]*Refused to contact http://10\.0\.0\.8/late_contract\.pdf[^\n]*In the dead letters\."
    )
    assert window.tone_of("Failed") == "red"
    window.keep("attachment-dead", height=848)


@pytest.mark.long
def test_the_partition_leads_to_the_run_that_made_it_and_the_run_to_its_batch(demo: Demo, window: Window) -> None:
    window.open(partition_page("validated_sensor_data", demo.file(GOOD).file_key))
    run = window.wait_for(r"^Run\n([0-9a-f]{8})$").group(1)
    window.click(f"//a[contains(@href, '/runs/') and normalize-space()='{run}']")
    window.wait_for(rf"^{run}\nSuccess$.*^4 assets$.*\bfile_ingest\b")
    window.click("//button[normalize-space()='View tags and config']")
    window.wait_for(r"ingest/batch: files\b.*ingest/batch_size: \d+$")


@pytest.mark.long
def test_the_graph_shows_the_way_of_a_file_from_topic_to_view(demo: Demo, window: Window) -> None:
    del demo
    window.open("/locations/ingest_project/asset-groups/file_ingest")
    # Long names are cut in the middle.
    shown = ("file_event_queue", "file_events", "raw_files", "validated_se…_data", "aggregated_metrics")
    for name in (*shown, "quarantined_files", "device_metrics"):
        window.wait_for(rf"^{name}$")
    window.keep("asset-graph", height=850)


@pytest.mark.long
def test_of_ten_dead_attachments_those_that_are_clicked_together_are_replayed_by_one_backfill(
    services: SystemResources, http_server: HttpServer, window: Window
) -> None:
    dead = ten_dead(services, http_server, "outage")
    left_alone, chosen = dead[:6:2], [*dead[1:6:2], *dead[6:]]
    window.open("/assets/onelake_attachments")
    window.click("//button[starts-with(normalize-space(), 'Materialize')]")
    window.click("//*[normalize-space(text())='Select a partition or create one']")
    for key in chosen:
        window.click(f"//*[text()='{key}']")
    window.click("//*[starts-with(normalize-space(text()), 'Launch runs to materialize')]")  # closes the list
    window.wait_for(rf"^{len(chosen)} partitions selected$")
    window.click("//button[normalize-space()='Launch backfill']")

    window.wait_for(r"^Created backfill")
    window.click("//*[self::a or self::button][normalize-space()='View']")
    window.wait_for(
        rf"^Partition selection\n{len(chosen)} partitions\nStatus\nSucceeded$"
        rf".*^onelake_attachments$.*^100% completed\n{len(chosen)}\n0\n{len(chosen)}\n0$"
    )
    window.keep("backfill", height=330)
    assert queue_states_of(services, chosen) == {(AttachmentState.STORED, 1)}
    assert queue_states_of(services, left_alone) == {(AttachmentState.FAILED, 0)}

    window.open("/runs?view=backfills")
    window.wait_for(rf"^{len(chosen)} partitions$.*^Success$")
