"""The servers that tests may use, each in its own module under `services`, and the order of the tests."""

from __future__ import annotations

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from execnet import XSpec
from hypothesis import HealthCheck, settings

from ingest_project_tests.compiling import compile_once
from ingest_project_tests.forked_workers import start_parent
from ingest_project_tests.fuzz import EXAMPLES, FEW_EXAMPLES, PROFILE

# A busy machine is no fault of the code.
settings.register_profile(
    "long", max_examples=EXAMPLES, deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow]
)
# The ordinary run draws the same examples each time, so that a change fails for what it changes; the long run and
# `make fuzz` draw many, and others each time.
settings.register_profile("ordinary", settings.get_profile("long"), max_examples=FEW_EXAMPLES, derandomize=True)
# Tests that state their own number of examples keep it: new seeds, round after round, are what finds more.
settings.register_profile(PROFILE, settings.get_profile("long"), max_examples=1_000)

ROOT = Path(__file__).parents[1]
FIXTURES = (
    "ingest_project_tests.browser.fixtures",
    "ingest_project_tests.services.alert_receivers",
    "ingest_project_tests.services.compiled_statements",
    "ingest_project_tests.services.identity",
    "ingest_project_tests.services.kusto_server",
    "ingest_project_tests.services.postgres",
    "ingest_project_tests.services.s3",
    "ingest_project_tests.services.dfs_server",
    "ingest_project_tests.services.object_stores",
    "ingest_project_tests.services.dagster",
    "ingest_project_tests.services.loaded_definitions",
    "ingest_project_tests.services.logs",
    "ingest_project_tests.services.http_server",
    "ingest_project_tests.services.openlineage",
    "ingest_project_tests.services.otlp",
    "ingest_project_tests.journeys.system",
    "ingest_project_tests.crashes.deadly_process",
    "ingest_project_tests.attachments.system",
)
# It says in the end which broker the tests talked to.
KAFKA = "ingest_project_tests.services.kafka"
# The `conftest.py` of a folder may import them before they are plugins.
pytest.register_assert_rewrite(KAFKA, *FIXTURES)

# These start the whole system. They come first, and so one after the other in one process: side by side they would take
# each other's time.
WHOLE_SYSTEMS = (
    "after_a_demo/test_",
    "devstack/test_stack_dagster.py",
    "devstack/test_dagster_dev.py",
    "devstack/test_first_dataset.py",
)


# These are about topics, offsets and what is shown of them, not about SQL: in the ordinary run one kind of database is
# enough.
OF_ANY_DATABASE = (
    "test_a_crm_message_is_traced_to_its_row",
    "test_a_log_that_cannot_be_written_stops_nothing",
    "test_a_run_without_offsets_also_stores_messages_that_wait_for_a_retry",
    "test_a_run_stores_up_to_the_offsets_that_were_requested",
    "test_a_run_that_is_done_again_starts_where_the_sink_is",
    "test_a_tick_whose_cursor_was_never_saved_and_a_run_that_never_came_lose_nothing",
    "test_a_topic_that_was_created_again_is_read_from_its_beginning",
    "test_crm",
    "test_each_message_is_found_by_its_id_its_trace_and_its_position_and_has_a_page",
    "test_each_origin_has_the_same_share_of_the_next_batch",
    "test_far_behind_a_run_stores_a_bounded_number_of_messages_and_the_next_continues",
    "test_from_the_beginning_nothing_is_doubled_and_the_sensor_is_stopped_meanwhile",
    "test_latency_is_measured_of_each_message_and_processing_of_each_batch",
    "test_messages_that_were_removed_before_they_were_read_are_said_to_be_lost",
    "test_no_bare_input_is_a_record_and_each_is_kept_to_the_byte",
    "test_odd_headers_and_keys_do_not_keep_a_message_from_being_kept",
    "test_the_log_of_unidentified_messages_is_bounded_and_is_where_a_setting_says",
    "test_unidentified_messages_have_a_log_of_their_own",
)

# Dagster's records are written the same on either storage: `test_both_storages_hold_the_same_rows_for_the_same_batch`.
OF_ANY_STORAGE = (
    "test_a_check_is_tied_to_the_materialisation_it_is_about",
    "test_a_run_repeated_shows_the_same_state",
    "test_a_run_that_a_person_launches_without_partitions_says_so",
    "test_a_run_without_partitions_or_batch_says_what_to_do",
    "test_a_selected_partition_goes_through_the_same_code",
    "test_an_idle_system_with_dead_letters_says_how_many_it_keeps_on_which_topic",
    "test_metadata_of_a_partition_is_stored_with_its_materialisation",
)

# One decoder of each message.
OF_EACH_MESSAGE = ("file event", "polling job", "attachment event", "download task", "enriched event", "project")

# Instances of a promise that stay in the ordinary run; the others take seconds each, and are left to `make test-all`.
KEPT = {
    "test_a_topic_that_was_created_again_is_another_stream": ("delta",),
    "test_an_idle_system_is_said_to_be_idle": ("postgresql",),
    "test_any_damaged_file_is_refused_with_a_reason": ("gz", "zip"),
    "test_other_partitions_of_the_table_are_refused_and_the_files_wait": ("partitions0",),
    "test_sensors_and_schedules_whose_last_tick_lies_in_the_future_go_on_from_now": ("postgresql",),
    "test_ten_thousand_files_are_listed": ("mlsd",),
    "test_ten_thousand_files_are_listed_one_by_one_in_bounded_memory": ("local",),
    "test_status_metrics_traces_and_inputs_of_other_assets_know_a_declared_stream": ("delta",),
    "test_each_row_is_published_once_whatever_happens": ("window-1", "cursor-3"),
    "test_an_unreachable_backend_neither_fails_nor_delays_a_run": ("refusing",),
    "test_a_change_that_would_lose_data_is_refused_and_the_files_wait": ("removed",),
    "test_a_collector_that_is_away_or_slow_neither_fails_nor_delays_the_work": ("slow",),
    "test_a_file_in_many_chunks_ends_as_it_would_in_one": ("refused",),
    "test_a_file_read_by_the_wrong_profile_is_read_by_the_one_that_is_named_next": ("job",),
    "test_a_file_with_a_stored_key_is_quarantined_where_keys_are_unique_in_the_table": ("file-60", "table-1048576"),
    "test_a_key_lets_us_in_with_and_without_a_passphrase": ("open sesame-ssh-ed25519", "None-ssh-rsa"),
    "test_a_killed_action_is_found_with_what_it_had_done_and_performing_it_again_doubles_nothing": (
        "release-quarantined-files: second one queued, by_another_profile",
        "reprocess-files: requested, quarantined",
        "redrive-dead-letters: sent, letters",
    ),
    "test_a_landed_file_is_ingested_again_even_without_its_source": ("changed",),
    "test_a_megabyte_of_what_is_never_closed_is_parsed_at_once": ("<a ", "<script>"),
    "test_a_message_of_a_declared_stream_is_found_by_its_position_its_trace_and_its_key_and_has_a_page": ("sql",),
    "test_a_part_of_the_state_folder_that_cannot_be_used_is_one_line_with_the_remedy": ("lock",),
    "test_a_publisher_killed_at_any_step_leaves_each_id_once_when_run_again": (
        "kafka_server-sending",
        "kafka_server-written",
        "embedded_server-intended",
    ),
    "test_a_publisher_killed_at_random_leaves_each_id_once_when_run_again": ("kafka_server",),
    "test_a_publisher_that_is_suspended_and_goes_on_after_its_successor_writes_nothing_twice": (
        "kafka_server-intended",
        "kafka_server-half",
        "embedded_server-connected",
    ),
    "test_a_registry_that_answers_nonsense_blames_no_message": ("redirect",),
    "test_a_request_to_stop_ends_everything_in_good_order": ("15",),
    "test_a_writer_killed_at_any_moment_leaves_each_row_once_after_it_ran_again": ("committed",),
    "test_all_checks_pass_on_correct_data_and_fail_on_errors": ("postgres",),
    "test_an_empty_column_of_a_declared_dataset_is_not_usual": ("400",),
    "test_an_unreadable_event_is_a_dead_letter_and_its_neighbours_are_stored": ("no list",),
    "test_an_example_that_is_killed_half_way_stores_everything_once_when_it_runs_again": ("weather: files begun",),
    "test_every_compression_is_read": ("snappy", "zstd"),
    "test_every_metric_of_the_contract_is_there_and_right": ("postgres",),
    "test_expanding_takes_a_bounded_amount_of_memory": ("zst",),
    "test_fields_of_json_are_kept_as_they_are_written": ("evolve",),
    "test_files_of_a_remote_source_and_their_new_versions_are_ingested": ("http",),
    "test_files_that_the_table_refuses_wait_until_it_is_fixed": ("table",),
    "test_files_wait_for_a_right_that_is_missing": ("40",),
    "test_killed_between_the_two_commits_every_row_is_there_once": ("rows committed to Delta, not to the database",),
    "test_names_may_be_words_of_sql_and_as_long_as_is_declared": (
        "PostgreSQL-a word of SQL",
        "SQLite-the longest name",
    ),
    "test_at_equal_times_the_later_offset_and_the_recreated_topic_win": ("postgres",),
    "test_partitions_that_are_added_are_read_from_their_first_message": ("delta",),
    "test_rows_of_new_files_are_appended_in_one_commit": ("60",),
    "test_rows_with_the_key_of_another_row_of_their_file_are_quarantined": ("file-60",),
    "test_spellings_of_a_new_column_are_one_column": ("40-table", "1048576-Delta"),
    "test_sqlite_stores_the_same": ("60",),
    "test_the_largest_message_is_refused_or_read_in_bounded_time": OF_EACH_MESSAGE,
    "test_the_shared_inputs_are_read_or_refused_also_inside_a_message": OF_EACH_MESSAGE,
    # Each by the lock of `test_locks.py`, which is tried on both.
    "test_processes_that_start_at_once_all_find_a_migrated_database": ("postgres",),
    "test_thousands_of_entries_are_each_listed_once": ("local", "onelake"),
    "test_thousands_of_files_go_through_every_step_in_bulk": ("postgres",),
    "test_tombstones_are_handled_by_the_declared_policy": ("delete", "mark"),
    "test_the_gap_check_names_the_missing_offsets_and_hours_before_recovery": ("removed log entries",),
    "test_rows_missing_from_the_table_are_recovered_once_before_new_events_are_stored": ("a restore",),
    "test_writes_of_another_program_do_not_lose_or_double_an_offset": ("deletes",),
    **dict.fromkeys(OF_ANY_DATABASE, ("postgres",)),
    **dict.fromkeys(OF_ANY_STORAGE, ("postgresql",)),
}

# What pytest-xdist starts as Python.
WORKERS = pytest.StashKey[str]()
# The instances of tests in `KEPT` that there are in this run, by the name of the test: `test_ordinary_run.py` compares.
COLLECTED = pytest.StashKey[dict[str, set[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples before tests are imported; an option of Hypothesis comes after it.

    The process that only hands tests out imports no fixtures; one that the others are forks of does, on Linux.
    """
    settings.load_profile("ordinary" if config.option.markexpr == "not long" else "long")
    hands_out = config.option.dist != "no" and not config.option.collectonly
    for name in (KAFKA, *(() if hands_out else FIXTURES)):
        config.pluginmanager.import_plugin(name)
    if hands_out and sys.platform == "linux":
        config.stash[WORKERS] = start_parent(FIXTURES, _modules_of(config.args))
    if hands_out and not sys.dont_write_bytecode:
        compile_once(config, Path(__file__).parent)


def _modules_of(arguments: Iterable[str]) -> list[str]:
    chosen = [Path(argument.partition("::")[0]).resolve() for argument in arguments]
    files = [file for path in chosen for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]
    inside = [file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)]
    return [".".join(file.with_suffix("").parts) for file in inside]


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[XSpec]) -> None:
    """Have the processes that run tests be forks of one that has imported the fixtures."""
    for spec in specs:
        spec.python = config.stash.get(WORKERS, None)


def pytest_xdist_auto_num_workers() -> int:
    """Return three processes on two cores, four on more: tests wait for servers a good part of their time."""
    return max(3, min(4, os.cpu_count() or 1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of whole systems first, then those that kill; leave further instances to the long run."""
    collected: dict[str, set[str]] = defaultdict(set)
    config.stash[COLLECTED] = collected
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in KEPT and hasattr(item, "callspec"):
            collected[item.originalname].add(item.callspec.id)
            if item.callspec.id not in KEPT[item.originalname]:
                item.add_marker(pytest.mark.long)
    items.sort(key=_order)


def _order(item: pytest.Item) -> int:
    if any(path in item.nodeid for path in WHOLE_SYSTEMS):
        return 0
    # So that they are in one process as well: what has to be imported before the first kill takes a processor 5 s.
    return 1 if "deadly_process" in getattr(item, "fixturenames", ()) else 2


def pytest_collection_finish() -> None:
    """Look no more through what the imports left, and less often through the rest, which is much all the same."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let all objects be deleted at the end, as some libraries want it; a fork ends without."""
    if not hasattr(config, "workerinput"):
        gc.unfreeze()
