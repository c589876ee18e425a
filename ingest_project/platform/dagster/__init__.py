"""Everything that touches Dagster beyond its public API.

Written against and tested with dagster 1.13.27 and dagster-postgres 0.29.27. No other package imports Dagster's private
modules or dagster-postgres. An upgrade of Dagster has to keep everything in this list; the tests named in each entry
fail where it does not.

- `instance.py`: the event log's `_store_asset_event_tags`, `_store_asset_event`, `_connect` and
  `_check_partitions_table`; the tables `event_logs`, `asset_check_executions` and `dynamic_partitions`;
  the `_engine` of three storages, `should_autocreate_tables`, and that these can be copied; their `has_…` methods
  (a removed one fails at import, an added one costs a query); `InstanceRef.from_dir` (test_asset_events,
  test_internals).
- `event_text.py`: `serialize_value` and `pack_value`, `dagster_shared.record.replace`, the fields of the events below
  and of their metadata, and how metadata of the common kinds is stored (test_asset_events). Without it:
  `serialize_value` of each event.
- `asset_events.py`: `EventLogEntry`, `DagsterEvent`, `StepMaterializationData` and `AssetMaterialization`, which are
  named tuples; `normalize_metadata`, `AssetCheckEvaluation`, `get_step_execution_context`, and the metadata key by
  which an output has no event (test_asset_events, test_sensor).
  With a storage other than `BulkEventLogStorage` each event goes through `DagsterInstance.handle_new_event`.
  `AssetCheckResult._get_target_materialization_data`; without it, Dagster's own way to it, which takes longer.
  `handle_run_event` of the run storage, which every status of a run passes (test_internals). Without it: a run that was
  canceled by force while it was queued may start.
- `run_records.py`: the run, schedule and event log storages, opened without an instance, and their `_engine`;
  `InstigatorState` and its ticks; the event log's `index_connection` and the table `asset_check_executions`;
  `StepFailureData` and `JobFailureData` (test_status, test_alerts, test_sensor).
- `daemon.py`: `MIN_INTERVAL_LOOP_TIME` and `DEFAULT_DAEMON_INTERVAL_SECONDS` of Dagster's loops; its variables
  `DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR` and `ASSET_BACKFILL_CURSOR_OFFSET`; the command line of
  `dagster-daemon`; `InstigatorState`, its data and its ticks (test_daemon of both packages). Without it:
  `dagster-daemon run`, each message seen up to four seconds later.
- `quiet_sensors.py`: `is_under_min_interval` and `SensorLaunchContext` of the loop over the sensors, which it finds by
  name; `core_loop` of `SensorDaemon` and `QueuedRunCoordinatorDaemon`, which the controller creates by name; the tag of
  a sensor's runs; the table of sensors' switches (test_quiet_sensors, test_internals). Without it: sensors tick at
  their intervals.
- `daemon.py`, the queued runs: that the run queue's daemon checks each queued run with a `TagConcurrencyLimitsCounter`,
  which it finds by name; the asset graph of a workspace (test_held_runs, test_killed_daemon). Without it: a paused
  capability launches the runs that are queued.
- `code_server.py`: that the code server starts run workers by `multiprocessing.get_context("spawn")`; the command of
  `dagster api grpc`; `_check_for_orphaned_runs` of `DagsterApiServer` (test_code_server, test_internals). Without it:
  `dagster api grpc`, each run two seconds later; after an outage of Dagster's database it has to be restarted.
- `webserver.py`: that `dagster_webserver.cli` creates its application by `create_app_from_workspace_process_context`
  (test_webserver, test_stack_dagster). Without it: `dagster-webserver`, behind a proxy with the same rules.
- `control.py`: backfills and sensors as the UI starts and stops them: `PartitionBackfill`, `AssetGraphSubset`,
  `InstigatorState` and the origin of a remote sensor (test_control). Without it: by hand, in the UI.
- `executor.py`: `InProcessExecutor` and the context of a plan, where traces or lineage are exported (test_lineage,
  test_traces). Without it: Dagster's own executor, and neither of them.
- `instance.py`, the launcher: `DefaultRunLauncher._get_grpc_client_for_termination`; `get_current_runs` of
  `DagsterGrpcClient` (test_internals). Without it: `DefaultRunLauncher`, which cannot tell whether a process is gone.
- `instance.py`, the logs: `LocalComputeLogManager.capture_logs`, its paths and the endings of its files
  (test_internals). Without it: `LocalComputeLogManager`, which starts two interpreters in each step.
"""
