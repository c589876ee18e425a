"""Turn a Dagster sensor on and off as the UI does: through the webserver's API."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import psycopg2

ANSWER_SECONDS = 60.0
POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "ingest_project"}

_TICKING = "SELECT 1 FROM job_ticks WHERE status = 'STARTED' AND tick_body LIKE %s LIMIT 1"
_SENSORS = """query($repository: RepositorySelector!) {
  sensorsOrError(repositorySelector: $repository) { ... on Sensors { results { id name } } } }"""
_START = """mutation($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message }
    ... on SensorNotFoundError { message } ... on UnauthorizedError { message } } }"""
_STOP = """mutation($id: String!) {
  stopSensor(id: $id) { __typename ... on PythonError { message } ... on UnauthorizedError { message } } }"""
_ASSET_PAGE = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { __typename ... on AssetNode {
  partitionStats { numMaterialized numFailed }
  partitionKeyConnection(limit: 100, ascending: false) { results }
  assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } } } } }"""


def read_asset_page(webserver_url: str, asset: str) -> dict[str, Any]:
    """Query the partitions of an asset as the UI does."""
    answer = _graphql(f"{webserver_url}/graphql", _ASSET_PAGE, {"key": {"path": [asset]}})["assetNodeOrError"]
    if answer["__typename"] != "AssetNode":
        raise RuntimeError(f"Dagster has no asset {asset}.")
    return dict(answer)


def switch_sensor(webserver_url: str, name: str, *, on: bool) -> None:
    """Turn one sensor on or off, and no other: that would take time from the measurement.

    Raises:
        RuntimeError: Dagster says no.
    """
    url = f"{webserver_url}/graphql"
    if on:
        answer = _graphql(url, _START, {"sensor": {**REPOSITORY, "sensorName": name}})["startSensor"]
    else:
        sensors = _graphql(url, _SENSORS, {"repository": REPOSITORY})["sensorsOrError"]["results"]
        (identity,) = (sensor["id"] for sensor in sensors if sensor["name"] == name)
        answer = _graphql(url, _STOP, {"id": identity})["stopSensor"]
    if "message" in answer:
        raise RuntimeError(answer["message"])


def wait_for_tick(dagster: psycopg2.extensions.connection, name: str, seconds: float) -> None:
    """Wait until a sensor that was turned off has ended its last tick.

    Args:
        dagster: a connection to Dagster's database.
        name: of the sensor.
        seconds: to wait at most.

    Raises:
        TimeoutError: its tick does not end.
    """
    deadline = time.monotonic() + seconds
    with dagster.cursor() as cursor:
        while True:
            cursor.execute(_TICKING, [f'%"{name}"%'])
            if cursor.fetchone() is None:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"A tick of {name} does not end.")
            time.sleep(POLL_SECONDS)
    # After the tick the daemon writes the sensor's state as it had read it, and would turn it off again.
    time.sleep(SETTLE_SECONDS)


def _graphql(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    # Addresses of this machine must not go through a proxy of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_SECONDS) as response:
        answer = json.load(response)
    if "errors" in answer:
        raise RuntimeError(answer["errors"][0]["message"])
    data: dict[str, Any] = answer["data"]
    return data
