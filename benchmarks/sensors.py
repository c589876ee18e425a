"""A sensor of Dagster turned on and off as a person does it in the UI: through the webserver's API."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

ANSWER_SECONDS = 60.0
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "ingest_project"}

_SENSORS = """query($repository: RepositorySelector!) {
  sensorsOrError(repositorySelector: $repository) { ... on Sensors { results { id name } } } }"""
_START = """mutation($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message }
    ... on SensorNotFoundError { message } ... on UnauthorizedError { message } } }"""
_STOP = """mutation($id: String!) {
  stopSensor(id: $id) { __typename ... on PythonError { message } ... on UnauthorizedError { message } } }"""


def switch_sensor(webserver_url: str, name: str, *, on: bool) -> None:
    """Turn one sensor on or off: for as long as it takes to turn on others, nothing could be measured.

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


def _graphql(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    # A proxy from the environment must not be asked for an address of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_SECONDS) as response:
        answer = json.load(response)
    if "errors" in answer:
        raise RuntimeError(answer["errors"][0]["message"])
    data: dict[str, Any] = answer["data"]
    return data
