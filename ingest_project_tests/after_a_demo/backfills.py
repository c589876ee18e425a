"""Backfills launched as the UI launches them, through GraphQL, and how they ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ingest_project.devstack.dagster_processes import query_webserver

LAUNCH = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  ... on PartitionKeysNotFoundError { message } ... on UnauthorizedError { message } } }"""
STATUS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message }
    assetBackfillData { assetBackfillStatuses {
      ... on AssetPartitionsStatusCounts { assetKey { path }
        numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed } } } }
  ... on PythonError { message } } }"""
PARTITIONS = """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
  ... on AssetNode { partitionKeysByDimension { partitionKeys } } } }"""
GOING_ON = {"REQUESTED", "CANCELING", "FAILING"}


@dataclass(frozen=True)
class EndedBackfill:
    """How a backfill ended.

    Args:
        status: as Dagster names it.
        counts: by asset: partitions that were asked for, materialised, failed.
        error: what it says where it failed as a whole.
    """

    status: str
    counts: Mapping[str, tuple[int, int, int]]
    error: str | None = None


def launch(site: str, assets: Sequence[str], partitions: Sequence[str]) -> str:
    """Launch a backfill and return its id.

    Args:
        site: address of the UI.
        assets: names of the assets.
        partitions: that are asked for.
    """
    params = {
        "assetSelection": [{"path": name.split("/")} for name in assets],
        "partitionNames": list(partitions),
        "fromFailure": False,
    }
    answer = query(site, LAUNCH, {"params": params})["launchPartitionBackfill"]
    assert "backfillId" in answer, answer
    return str(answer["backfillId"])


def wait_for(site: str, backfill_id: str, timeout_seconds: float = 240) -> EndedBackfill:
    """Wait for the end of a backfill."""
    deadline = time.monotonic() + timeout_seconds
    while (seen := query(site, STATUS, {"id": backfill_id})["partitionBackfillOrError"])["status"] in GOING_ON:
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)
    statuses = (seen["assetBackfillData"] or {}).get("assetBackfillStatuses", [])
    counts = {
        "/".join(one["assetKey"]["path"]): (
            one["numPartitionsTargeted"],
            one["numPartitionsMaterialized"],
            one["numPartitionsFailed"],
        )
        for one in statuses
        if one
    }
    return EndedBackfill(seen["status"], counts, (seen["error"] or {}).get("message"))


def partitions_of(site: str, asset: str) -> list[str]:
    """List the partitions of an asset."""
    (dimension,) = query(site, PARTITIONS, {"key": {"path": [asset]}})["assetNodeOrError"]["partitionKeysByDimension"]
    return list(dimension["partitionKeys"])


def query(site: str, text: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the webserver, which answers as it answers its own pages."""
    port = urlsplit(site).port
    assert port is not None
    return query_webserver(port, text, variables)
