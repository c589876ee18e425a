"""Assess the conditions of a snapshot of the system by the rules of the settings.

A condition is not assessed if its part could not be read; its incidents then stay unchanged.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

from ingest_project.core.console import counted, length_of
from ingest_project.core.errors import SettingsError
from ingest_project.core.items import digest_of
from ingest_project.core.logging import printable
from ingest_project.core.settings import Settings
from ingest_project.core.settings.alerts import Policy
from ingest_project.core.yaml_models import nearest
from ingest_project.file_ingest.tables import asset_of
from ingest_project.file_ingest.warehouse.baselines import WITHIN_BASELINE
from ingest_project.operations import SystemResources
from ingest_project.operations.alerts import plain
from ingest_project.operations.alerts.facts import matching
from ingest_project.operations.alerts.incidents import Finding, History
from ingest_project.operations.monitor import daemon_line, readiness
from ingest_project.operations.snapshot import SENSOR_DAEMON, Sample, SystemSnapshot, Value, consumed_topics
from ingest_project.operations.topics import TopicLag, topics_of_dead_letters

ALERTS_SENSOR = "alerts_sensor"
MAX_NAME = 200
# Length to which a longer name is cut before its hash.
BEGINNING = 170
PARTS = ("broker", "warehouse", "dagster storage")
GROWTH_POINTS = 3


class Assessment(NamedTuple):
    """All findings, and the conditions that could be assessed."""

    findings: tuple[Finding, ...]
    conditions: frozenset[str]


class _Subject(NamedTuple):
    """The subject of a condition.

    Args:
        name: name of its incident.
        condition: name of the condition.
        facets: values that rules match: source, dataset, topic, name.
    """

    name: str
    condition: str
    facets: Mapping[str, str]


@dataclass(frozen=True)
class _View:
    """A snapshot with the history of values and the names of open incidents, as the conditions need them."""

    snapshot: SystemSnapshot
    history: History
    known: Collection[str]

    @property
    def settings(self) -> Settings:
        return self.snapshot.settings

    @property
    def now(self) -> datetime:
        return self.snapshot.at

    def policy(self, subject: _Subject) -> Policy:
        return self.settings.alerts.policy(subject.condition, subject.facets)

    def finding(
        self,
        subject: _Subject,
        summary: str,
        *,
        link: str | None = None,
        value: float | None = None,
        examples: Iterator[str] | tuple[str, ...] = (),
    ) -> Finding:
        """Return a finding with bounded and sanitised texts: names, reasons and keys are untrusted."""
        policy = self.policy(subject)
        return Finding(
            name=_bounded_name(printable(subject.name)),
            condition=subject.condition,
            summary=plain(summary),
            link=self.dashboard if link is None else link,
            policy=policy,
            owner=policy.owner or self._declared_owner(subject.facets),
            value=value,
            examples=tuple(plain(example) for example in examples),
        )

    @property
    def dashboard(self) -> str:
        return (self.settings.monitor.url or self.settings.dagster.webserver_url).rstrip("/") + "/"

    @property
    def dagster(self) -> str:
        return self.settings.dagster.webserver_url.rstrip("/")

    def file(self, dataset: str, key: str) -> str:
        """Return the address of a file's page."""
        if url := self.settings.monitor.url.rstrip("/"):
            return f"{url}/items/file/{quote(key, safe='')}"
        return self.settings.dagster.partition_url(asset_of(dataset), key)

    def _declared_owner(self, facets: Mapping[str, str]) -> str | None:
        """Return the owner of a subject: the first one with an address, of its owners and those of all assets."""
        file_facts = self.snapshot.file_facts.value
        declared = [
            owner for facet in facets.items() for owner in (file_facts.owners.get(facet, ()) if file_facts else ())
        ]
        candidates = [*declared, *self.settings.dagster.asset_owners]
        names = [name for owner in candidates for name in (owner, owner.removeprefix("team:"))]
        return next((name for name in names if name in self.settings.alerts.owners), next(iter(declared), None))


def assess(snapshot: SystemSnapshot, history: History, known: Collection[str] = ()) -> Assessment:
    """Find all subjects for which a condition holds.

    Args:
        snapshot: snapshot of the system.
        history: history of the values of `gauges`.
        known: names of open incidents.
    """
    view = _View(snapshot, history, known)
    findings: list[Finding] = []
    assessed: set[str] = set()
    for condition, find in _CONDITIONS.items():
        with suppress(_UnknownError):
            findings += [one for one in find(view) if one.policy.enabled]
            assessed.add(condition)
    return Assessment(tuple(findings), frozenset(assessed))


def require_known_names(services: SystemResources) -> None:
    """Refuse a rule whose dataset or topic does not exist if one with a similar name exists.

    Any other name may belong to a dataset or topic that is declared later.

    Raises:
        SettingsError: a name is probably misspelt; proposes the similar name.
    """
    named = [rule for rule in services.settings.alerts.rules if rule.dataset or rule.topic]
    if not named:
        return
    topics, datasets = consumed_topics(services), services.datasets
    known = {
        "dataset": {*datasets, *(one.name for one in datasets.broken)},
        "topic": {*(one.topic for one in topics), *topics_of_dead_letters(services, topics)},
    }
    for rule in named:
        for facet, names in known.items():
            pattern = rule.patterns.get(facet, "*")
            if not fnmatch.filter(names, pattern) and (guess := nearest(pattern, names)):
                raise SettingsError(f"INGEST_ALERT_RULES: there is no {facet} {pattern[:100]!r}{guess}")


def gauges(snapshot: SystemSnapshot) -> dict[str, float]:
    """Return the values of which the conditions need the history, by series."""
    values: dict[str, float] = {}
    if broker := snapshot.broker.present:
        values |= {f"lag/{lag.topic}": lag.waiting for lag in broker.topics if lag.waiting is not None}
        values |= {
            f"end/{lag.topic}": lag.waiting + sum(lag.next_offsets.values())
            for lag in broker.topics
            if lag.waiting is not None
        }
        values |= {f"dead/{letters.topic}": letters.written for letters in broker.dead_letters}
    for rule in snapshot.settings.alerts.rules_for("freshness"):
        # Time since which a file has been expected that has not arrived yet.
        values[f"expected/{rule.dataset or ''}/{rule.source or ''}"] = 0
    return values


def history_seconds(settings: Settings) -> float:
    """Return the time for which the history must be kept, in seconds."""
    alerts = settings.alerts
    windows = [*alerts.windows("lag_growth"), *alerts.windows("dead_letters")]
    return max([*windows, *(rule.threshold or 0 for rule in alerts.rules_for("freshness"))])


class _UnknownError(Exception):
    """A condition needs a part of the snapshot that could not be read."""


def _present(sample: Sample[Value]) -> Value:
    if sample.present is None:
        raise _UnknownError
    return sample.present


def _parts(view: _View) -> Iterator[Finding]:
    addresses = {
        "broker": view.settings.kafka.bootstrap_servers,
        "warehouse": view.settings.warehouse.database_url.get_secret_value(),
        "dagster storage": "always somewhere",
    }
    for line in readiness(view.snapshot):
        if line.name in PARTS and not line.ok and addresses[line.name]:
            name = line.name.replace(" ", "_")
            summary = f"The {line.name} does not answer: {line.detail}"
            yield view.finding(_Subject(f"part_away/{name}", "part_away", {"name": name}), summary)


def _daemon(view: _View) -> Iterator[Finding]:
    beat = _present(view.snapshot.dagster).heartbeats.get(SENSOR_DAEMON)
    silence = (view.now - beat).total_seconds() if beat else None
    subject = _Subject("daemon_silent", "daemon_silent", {})
    line = daemon_line(view.snapshot.dagster, view.now)
    is_well = line.ok if silence is None or silence < 0 else silence < (view.policy(subject).threshold or 0)
    if not is_well:
        summary = f"Dagster's daemon is silent: {line.detail}. Nothing is ingested until it runs."
        yield view.finding(subject, summary, value=silence)


def _disk(view: _View) -> Iterator[Finding]:
    disk = _present(view.snapshot.disk)
    if disk.is_nearly_full:
        yield view.finding(_Subject("disk", "disk", {"name": str(disk.folder)}), str(disk))


def _failed_runs(view: _View) -> Iterator[Finding]:
    failures = _present(view.snapshot.failures)
    for run in failures.runs:
        subject = _Subject(f"job/{run.job}", "failed_run", {"name": run.job})
        if (view.now - run.at).total_seconds() <= (view.policy(subject).window_seconds or 0):
            link = f"{view.dagster}/runs/{quote(run.run_id)}"
            yield view.finding(subject, f"The last run of {run.job} failed.", link=link)


def _failing_ticks(view: _View) -> Iterator[Finding]:
    dagster, failures = _present(view.snapshot.dagster), _present(view.snapshot.failures)
    for name, ticks in {**failures.schedules, **dagster.failing}.items():
        subject = _Subject(f"{ticks.kind}/{name}", "failing_ticks", {"name": name})
        # This sensor fails if a channel does not accept its alerts.
        if name != ALERTS_SENSOR and ticks.in_a_row >= (view.policy(subject).threshold or 0):
            summary = f"The {ticks.kind} {name} failed {ticks.in_a_row} times in a row: {ticks.reason}"
            link = f"{view.dagster}/overview/{ticks.kind}s"
            yield view.finding(subject, summary, link=link, value=ticks.in_a_row)


def _stalled_topics(view: _View) -> Iterator[Finding]:
    broker, dagster = _present(view.snapshot.broker), view.snapshot.dagster.present
    stopped = {sensor.name for sensor in dagster.sensors.values() if sensor.stopped} if dagster else set()
    for one in broker.stalled:
        name = f"topic_stalled/{one.topic}"
        subject = _Subject(name, "topic_stalled", {"topic": one.topic, "name": one.sensor})
        # A process that has just started does not know for how long a topic has already been stalled.
        is_long = one.seconds >= (view.policy(subject).threshold or 0) or name in view.known
        if is_long and one.sensor not in stopped:
            yield view.finding(subject, f"{one}, read by {one.sensor}.", value=one.seconds)


def _lag(view: _View) -> Iterator[Finding]:
    for lag in _lags(view):
        subject, waiting = _Subject(f"lag/{lag.topic}", "lag", _facets(lag)), lag.waiting or 0
        if waiting >= (view.policy(subject).threshold or 0):
            summary = f"{counted(waiting, 'message')} wait on {lag.topic}, read by {lag.sensor}."
            yield view.finding(subject, summary, value=waiting)


def _lag_growth(view: _View) -> Iterator[Finding]:
    for lag in _lags(view):
        subject, waiting = _Subject(f"lag_growth/{lag.topic}", "lag_growth", _facets(lag)), lag.waiting or 0
        policy = view.policy(subject)
        window = timedelta(seconds=policy.window_seconds or 0)
        moments = [view.now - window * (GROWTH_POINTS - point) / GROWTH_POINTS for point in range(GROWTH_POINTS)]
        values = [view.history.value_at(f"lag/{lag.topic}", moment) for moment in moments]
        known = [value for value in values if value is not None]
        grows = len(known) == len(values) and all(a < b for a, b in zip(known, [*known[1:], waiting], strict=True))
        if grows and waiting >= (policy.threshold or 0):
            summary = (
                f"The lag of {lag.topic} has been growing for {_span(window)}: "
                f"from {known[0]:,.0f} to {counted(waiting, 'message')}."
            )
            yield view.finding(subject, summary, value=waiting)


def _facets(lag: TopicLag) -> dict[str, str]:
    return {"topic": lag.topic, "name": lag.sensor}


def _lags(view: _View) -> Sequence[TopicLag]:
    """Return the lag of every topic; raise _UnknownError if that of one is unknown."""
    topics = _present(view.snapshot.broker).topics
    if any(lag.waiting is None for lag in topics):
        raise _UnknownError
    return topics


def _dead_letters(view: _View) -> Iterator[Finding]:
    broker = _present(view.snapshot.broker)
    for letters in broker.dead_letters:
        subject = _Subject(f"dead_letters/{letters.topic}", "dead_letters", {"topic": letters.topic})
        policy, series = view.policy(subject), f"dead/{letters.topic}"
        window = timedelta(seconds=policy.window_seconds or 0)
        before = view.history.value_at(series, view.now - window)
        if before is None:
            # A stream declared after its first dead letters: they are not in the history, but within the window.
            known = (view.history.first(series), letters.older)
            before = min((one for one in known if one is not None), default=None)
        # The count of a recreated topic starts at zero.
        new = letters.written - (before if before is not None and before <= letters.written else 0)
        if new and new >= (policy.threshold or 0):
            summary = f"{counted(round(new), 'new dead letter')} on {letters.topic} in {_span(window)}."
            yield view.finding(subject, summary, value=new)


def _quarantine(view: _View) -> Iterator[Finding]:
    file_facts = _present(view.snapshot.file_facts)
    for dataset, source in {origin for by_origin in file_facts.refusals.values() for origin in by_origin}:
        subject = _of_files("quarantine", dataset=dataset, source=source)
        policy = view.policy(subject)
        refusals = file_facts.refusals.get(policy.window_seconds or 0, {}).get((dataset, source))
        if refusals is None or not refusals.share or refusals.share < (policy.threshold or 0):
            continue
        summary = (
            f"{refusals.share:.0%} of {_source_name(dataset, source)} were refused in "
            f"{_span(timedelta(seconds=policy.window_seconds or 0))}: "
            f"{refusals.refused_files:,} of {counted(refusals.files, 'file')}, "
            f"{refusals.quarantined_rows:,} of {counted(refusals.rows, 'row')} of the others."
        )
        examples = (f"{key}: {plain(reason, 200)} {view.file(dataset, key)}" for key, reason in refusals.examples)
        yield view.finding(subject, summary, value=refusals.share, examples=examples)


def _baseline(view: _View) -> Iterator[Finding]:
    sources = _present(view.snapshot.sources)
    for one in sources:
        subject, unusual = _of_files("baseline", dataset=one.dataset, source=one.source), len(one.verdict.outside)
        policy = view.policy(subject)
        is_recent = (view.now - one.at).total_seconds() <= (policy.window_seconds or 0)
        if is_recent and unusual and unusual >= (policy.threshold or 0):
            summary = f"The last file of {_source_name(one.dataset, one.source)} deviates: {one.verdict}"
            example = f"{one.file} {view.file(one.dataset, one.file)}"
            link = view.file(one.dataset, one.file)
            yield view.finding(subject, summary, link=link, value=unusual, examples=(example,))


def _failed_checks(view: _View) -> Iterator[Finding]:
    failures = _present(view.snapshot.failures)
    each = {(one.asset, one.check) for checks in failures.checks.values() for one in checks}
    for asset, check in sorted(each):
        subject = _Subject(f"failed_check/{asset}/{check}", "failed_check", {"name": f"{asset}/{check}"})
        policy = view.policy(subject)
        checks = failures.checks.get(policy.window_seconds or 0, ())
        one = next((one for one in checks if (one.asset, one.check) == (asset, check)), None)
        # Unusual files have their own condition.
        if one is None or one.failed < (policy.threshold or 0) or check == WITHIN_BASELINE:
            continue
        of = f" for {counted(one.failed, 'partition')}" if one.partitions else ""
        where = f"{view.dagster}/assets/{quote(asset)}"
        yield view.finding(
            subject,
            f"The check {check} of {asset} failed{of}.",
            link=f"{where}?view=checks",
            value=one.failed,
            examples=(f"{key} {view.settings.dagster.partition_url(asset, key)}" for key in one.partitions),
        )


def _freshness(view: _View) -> Iterator[Finding]:
    last: dict[tuple[str, str, str], datetime | None] = {}
    for rule in view.settings.alerts.rules_for("freshness"):
        if rule.topic:
            topics = [lag.topic for lag in _present(view.snapshot.broker).topics]
            last |= {("", "", one): view.history.changed_at(f"end/{one}") for one in matching(topics, rule.topic)}
            continue
        arrivals = _present(view.snapshot.file_facts).arrivals
        for dataset in matching({one for one, _ in arrivals}, rule.dataset) or [""]:
            for source in matching({one for _, one in arrivals if one}, rule.source) or [""]:
                times = [
                    at
                    for (of_dataset, of_source), at in arrivals.items()
                    if dataset in {"", of_dataset} and source in {"", of_source}
                ]
                never = view.history.changed_at(f"expected/{rule.dataset or ''}/{rule.source or ''}")
                last[dataset, source, ""] = max(times, default=never)
    yield from (one for key, at in last.items() if at and (one := _stale(view, *key, at)))


def _stale(view: _View, dataset: str, source: str, topic: str, at: datetime) -> Finding | None:
    subject = _of_files("freshness", dataset=dataset, source=source, topic=topic)
    threshold, silence = view.policy(subject).threshold, (view.now - at).total_seconds()
    if threshold is None or silence < threshold:
        return None
    what = topic or _source_name(dataset, source)
    return view.finding(subject, f"Nothing of {what} has arrived for {length_of(view.now - at)}.", value=silence)


def _of_files(condition: str, **facets: str) -> _Subject:
    known = {facet: name for facet, name in facets.items() if name}
    return _Subject("/".join([condition, *known.values()]), condition, known)


def _declarations(view: _View) -> Iterator[Finding]:
    warehouse = _present(view.snapshot.warehouse)
    for name, work in warehouse.work.items():
        if work.problems:
            subject = _Subject(f"declaration/{name}", "declaration", {"name": name})
            summary = f"{counted(len(work.problems), 'problem')} of {name.replace('_', ' ')}: {work.problems[0]}"
            yield view.finding(subject, summary, examples=work.problems[1:])


def _interrupted(view: _View) -> Iterator[Finding]:
    warehouse = _present(view.snapshot.warehouse)
    for one in warehouse.interrupted:
        name = f"interrupted_action/{one.action_id}"
        subject = _Subject(name, "interrupted_action", {"name": one.action})
        if (view.now - one.started_at).total_seconds() <= (view.policy(subject).window_seconds or 0):
            link = f"{view.dashboard}audit/{one.action_id}"
            yield view.finding(subject, f"{one.action} by {one.who} was interrupted. {one.detail}", link=link)


def _bounded_name(name: str) -> str:
    """Return a name that is short enough and still unique."""
    return name if len(name) <= MAX_NAME else f"{name[:BEGINNING]}~{digest_of(name)}"


def _span(window: timedelta) -> str:
    return length_of(window).removesuffix(" 0 s")


def _source_name(dataset: str, source: str) -> str:
    of_source = f"the source {source}" if source else ""
    return " from ".join(filter(None, (f"the dataset {dataset}" if dataset else "", of_source))) or "all datasets"


_CONDITIONS: Mapping[str, Callable[[_View], Iterator[Finding]]] = {
    "part_away": _parts,
    "daemon_silent": _daemon,
    "disk": _disk,
    "failed_run": _failed_runs,
    "failing_ticks": _failing_ticks,
    "topic_stalled": _stalled_topics,
    "lag": _lag,
    "lag_growth": _lag_growth,
    "dead_letters": _dead_letters,
    "quarantine": _quarantine,
    "baseline": _baseline,
    "failed_check": _failed_checks,
    "freshness": _freshness,
    "interrupted_action": _interrupted,
    "declaration": _declarations,
}
