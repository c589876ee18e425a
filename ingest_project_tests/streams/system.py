"""A stream, driven as the daemon would drive it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import dagster as dg
from dagster import ExecuteInProcessResult

from ingest_project.platform.capability import Metric
from ingest_project.streams.positions import StreamPositions
from ingest_project_tests.journeys.system import System


class StreamNames(NamedTuple):
    """Names in Dagster."""

    sensor: str
    job: str
    op: str


class StreamSystem(System, ABC):
    """Sensors, runs and stores of one test."""

    names: StreamNames

    @property
    @abstractmethod
    def positions(self) -> StreamPositions:
        """Positions of the stream."""

    @property
    def topic(self) -> str:
        """The topic of the messages."""
        return self.positions.topic

    def execute(self, job_name: str, request: dg.RunRequest) -> ExecuteInProcessResult:
        """Do one run that a sensor requested, in this process."""
        return self.run(job_name, dict(request.run_config), dict(request.tags))

    def run(
        self, job_name: str, run_config: dict[str, Any] | None = None, tags: dict[str, str] | None = None
    ) -> ExecuteInProcessResult:
        """Do a run as a person starts one."""
        job = self.definitions.resolve_job_def(job_name)
        return job.execute_in_process(
            instance=self.instance, run_config=run_config or {}, tags=tags or {}, raise_on_error=False
        )

    def ends_in(self, request: dg.RunRequest) -> dict[int, int]:
        """Return up to which offset of each partition a run was requested."""
        config = request.run_config["ops"][self.names.op]["config"]["end_offsets"]
        return {int(partition): end for partition, end in config.items()}

    @property
    def is_idle(self) -> bool:
        """Return whether everything on the topic is stored and no run holds a partition."""
        ends = self.services.reader.end_offsets(self.topic)
        current = self.positions.current()
        behind = [partition for partition, end in ends.items() if current[partition].next_offset < end]
        return not behind and not any(one.attempts for one in current.values())

    @property
    def next_offsets(self) -> dict[int, int]:
        """Return up to which offset each partition is stored."""
        return {partition: one.next_offset for partition, one in self.positions.current().items()}

    @property
    def outcome(self) -> dict[str, int]:
        """Return the number of messages by outcome, those that never happened left out."""
        counts: dict[str, int] = {}
        for one in self.positions.all():
            for name, number in one.outcome.items():
                counts[name] = counts.get(name, 0) + number
        return {name: number for name, number in counts.items() if number}

    def observed(self, metric: Metric) -> tuple[int, float]:
        """Return how many observations a histogram has, and their sum in seconds."""
        series = [entry for one in self.positions.all() for entry in one.seconds.items()]
        counts = [number for name, number in series if name.startswith(f"{metric.bucket}/")]
        return int(sum(counts)), sum(value for name, value in series if name == metric.sum)

    @property
    def reasons(self) -> str:
        """Return why the last runs failed."""
        return " ".join(one.reason or "" for one in self.positions.all())

    @property
    def partitions_with_messages(self) -> list[int]:
        """Return the partitions of the topic that have messages."""
        return [partition for partition, end in self.services.reader.end_offsets(self.topic).items() if end]
