"""Runs of jobs on the running stack, launched as a person launches them in the UI."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from http.client import HTTPException

from ingest_project.core.errors import TransientError
from ingest_project.devstack.dagster_processes import LOCATION_NAME, ask

REPOSITORY_NAME = "__repository__"  # what Dagster calls the only one of a code location
POLL_SECONDS = 0.2
ENDS = {"SUCCESS", "FAILURE", "CANCELED"}
NO_ANSWER = (OSError, HTTPException, ValueError, KeyError, TypeError)

_LAUNCH = """mutation ($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, runConfigData: {}, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATUS = "query ($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status } } }"


class JobIncompleteError(TransientError):
    """A run did not come to a good end.

    Args:
        job_name: of the job.
        became: what became of it, without a full stop.
    """

    def __init__(self, job_name: str, became: str) -> None:
        self.what = f"the job {job_name} {became}"
        super().__init__(f"T{self.what[1:]}. Launch it from its page in the Dagster UI.")


def run_jobs(port: int, job_names: Sequence[str], timeout_seconds: float, check: Callable[[], None]) -> None:
    """Launch jobs, all at once, and wait for the end of each. A second time is a second run.

    Args:
        port: the webserver's.
        job_names: jobs that need no configuration.
        timeout_seconds: how long all of it may take, the wait for their turn included.
        check: called again and again; what it raises ends the wait.

    Raises:
        JobIncompleteError: one was not launched, did not succeed, or took longer than that.
    """
    deadline = time.monotonic() + timeout_seconds
    launched = [(job_name, _launch(port, job_name)) for job_name in job_names]
    for job_name, run_id in launched:
        _wait(port, job_name, run_id, deadline, check)


def _wait(port: int, job_name: str, run_id: str, deadline: float, check: Callable[[], None]) -> None:
    while (status := _status(port, run_id)) not in ENDS:
        check()
        if time.monotonic() > deadline:
            raise JobIncompleteError(job_name, f"was not done in time, run {run_id} is {status}")
        time.sleep(POLL_SECONDS)
    if status != "SUCCESS":
        raise JobIncompleteError(job_name, f"ended with {status}, run {run_id}")


def _launch(port: int, job_name: str) -> str:
    selector = {"repositoryLocationName": LOCATION_NAME, "repositoryName": REPOSITORY_NAME, "jobName": job_name}
    try:
        answer = ask(port, _LAUNCH, {"selector": selector})["launchRun"]
        if "run" in answer:
            return str(answer["run"]["runId"])
    except NO_ANSWER as error:
        raise JobIncompleteError(job_name, f"was not launched: {error}") from error
    raise JobIncompleteError(job_name, f"was not launched: {answer.get('message', answer['__typename'])}")


def _status(port: int, run_id: str) -> str:
    try:
        answer = ask(port, _STATUS, {"id": run_id})["runOrError"]
    except NO_ANSWER:
        return "UNKNOWN"  # a busy machine; the next answer will tell
    return str(answer.get("status", answer["__typename"]))
