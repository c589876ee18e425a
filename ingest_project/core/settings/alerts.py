"""Settings of alerts: conditions with their defaults, rules that change them, owners, channels and quiet hours."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from ingest_project.core.secrets import SecretReference, secret_or_reference
from ingest_project.core.yaml_models import AsJson, CommaList, Env, Section, nearest

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
UNITS = {"s": 1.0, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY}
DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h|d)")
INTERVAL = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})(?:\s+([\w+/-]+))?")
SCHEME = re.compile(r"([A-Za-z0-9]{1,20})://\S+")
BETWEEN_URLS = re.compile(r"[,\s]+(?=[A-Za-z0-9-]+://)")
LONGEST_WINDOW_SECONDS = 8 * DAY


class Condition(NamedTuple):
    """A kind of incident, with its defaults.

    Args:
        severity: severity of its incidents.
        unit: unit of value and threshold: `share` of 1, `seconds`, or the noun of the counted things; empty for a
            condition without a value.
        threshold: value from which the condition holds; None if only a rule can set it.
        window_seconds: time over which the value is measured; None for an instantaneous value.
        after_seconds: how long the condition must hold before an alert is sent.
        remedy: one sentence with the remedy; `{subject}` stands for the incident's name without the condition.
        facets: names by which rules select its subjects.
    """

    severity: Severity
    unit: str = ""
    threshold: float | None = None
    window_seconds: float | None = None
    after_seconds: float = 0.0
    remedy: str = ""
    facets: tuple[str, ...] = ("name",)

    def remedy_for(self, incident: str) -> str:
        """Return the remedy for the incident with this name."""
        return self.remedy.replace("{subject}", incident.partition("/")[2])


FASTER = "Allow more runs at a time, or find the slow part."
OF_TOPICS, OF_FILES = ("topic", "name"), ("dataset", "source")
CONDITIONS: Mapping[str, Condition] = {
    "part_away": Condition(
        "critical", after_seconds=30.0, remedy="Start the service again, or correct the setting with its address."
    ),
    "daemon_silent": Condition("critical", "seconds", 90.0, None, 30.0, "Start dagster-daemon again.", ()),
    "disk": Condition("critical", remedy="Free space: `ingest retention --dry-run` lists what may go."),
    "failed_run": Condition(
        "warning", window_seconds=7 * DAY, remedy="Read the reason in the run's log, correct it, run the job again."
    ),
    "failing_ticks": Condition("warning", "failures in a row", None, remedy="Read the reason of the last tick."),
    "topic_stalled": Condition(
        "warning", "seconds", 120.0, None, 0.0, "Look at the sensor that reads the topic and at its runs.", OF_TOPICS
    ),
    "lag": Condition("warning", "messages", 100_000.0, None, 15 * MINUTE, FASTER, OF_TOPICS),
    "lag_growth": Condition("warning", "messages", 1_000.0, 15 * MINUTE, 0.0, FASTER, OF_TOPICS),
    "dead_letters": Condition(
        "warning",
        "messages",
        1.0,
        15 * MINUTE,
        remedy="Read the reasons with `ingest dlq list {subject}`, correct, then redrive.",
        facets=("topic",),
    ),
    "quarantine": Condition(
        "warning",
        "share",
        0.2,
        30 * MINUTE,
        remedy="Read the reasons with `ingest quarantine list`, of single rows with `ingest quarantine show KEY`, "
        "correct, ingest again.",
        facets=OF_FILES,
    ),
    "baseline": Condition(
        "warning",
        "measures",
        1.0,
        DAY,
        remedy="Compare the file with those before it: `ingest baselines` shows every measure of every source.",
        facets=OF_FILES,
    ),
    "failed_check": Condition(
        "warning", "checks", 1.0, HOUR, remedy="Open the check of the asset: its metadata says what did not hold."
    ),
    "freshness": Condition(
        "warning",
        "seconds",
        remedy="Ask the sender; `ingest sources test NAME` shows what a source has.",
        facets=(*OF_FILES, "topic"),
    ),
    "interrupted_action": Condition(
        "warning",
        window_seconds=DAY,
        remedy="Its record says what was done: `ingest audit ID`. Perform it again: nothing is done twice.",
    ),
    "declaration": Condition("warning", remedy="Correct the file that is named, or the stream's first message."),
}


def _seconds(value: object) -> object:
    """Parse a duration: seconds, or a number with s, m, h or d."""
    if isinstance(value, str):
        found = DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError(f"{value[:40]!r} is no duration; write 90s, 15m, 2h or 1d")
        return float(found[1]) * UNITS[found[2]]
    return value


def _amount(value: object) -> object:
    """Parse a threshold: a number, a share such as `20%`, or a duration such as `2h`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"\d{1,3}(\.\d{1,6})?\s*%", text):
        return float(text.rstrip("% ")) / 100
    if re.fullmatch(r"\d{1,15}(\.\d{1,6})?", text):
        return float(text)
    if DURATION.fullmatch(text):
        return _seconds(text)
    raise ValueError(f"{value[:40]!r} is no threshold; write a number, 20%, or 2h")


def _urls(value: object) -> object:
    """Parse addresses, or references to them, from a list, a JSON list, or text split by spaces, lines or commas."""
    if isinstance(value, SecretReference):
        return [value]
    if isinstance(value, str) and not value.strip().startswith("["):
        # An address may contain commas: a comma separates only if another address follows it.
        value = [part for part in BETWEEN_URLS.split(value.strip()) if part]
    elif isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('it is not JSON; write service://... or ["service://...", ...]') from None
    return secret_or_reference(value)


def _require_addresses(urls: Sequence[SecretStr]) -> None:
    for number, url in enumerate(urls, 1):
        check = _check_of(number)
        if isinstance(url, SecretReference):
            url.require(check)
        else:
            check(url.get_secret_value())


@cache
def _check_of(number: int) -> Callable[[str], None]:
    # Create one object per address: a reference keeps its checks.
    return partial(_require_address, number)


def _require_address(number: int, text: str) -> None:
    # The error does not quote the text, which usually contains a token.
    if not SCHEME.fullmatch(text.strip()):
        raise ValueError(f"address {number} is no URL of Apprise, such as slack://... or mailto://...")


Duration = Annotated[float, BeforeValidator(_seconds)]
Threshold = Annotated[float, BeforeValidator(_amount)]
AlertUrls = Annotated[list[SecretStr], BeforeValidator(_urls)]


class Policy(NamedTuple):
    """The values that apply to one subject of a condition, see `Condition`."""

    threshold: float | None
    window_seconds: float | None
    after_seconds: float
    severity: Severity
    owner: str | None
    enabled: bool


class AlertRule(Section):
    """Values for the conditions and subjects that match; each value comes from the first matching rule that has it.

    Args:
        condition: name or pattern of the conditions.
        source: name or pattern of polled sources; a subject without a source does not match.
        dataset: only these datasets.
        topic: only these topics.
        name: only these jobs, sensors, schedules, checks (asset/check), parts and capabilities.
        threshold: value from which the condition holds: a number, 20%, or 2h.
        window: time over which it is measured.
        after: how long it must hold before anybody is told.
        severity: info, warning or critical.
        owner: who is told, one of INGEST_ALERT_OWNERS.
        enabled: false: no incidents.
    """

    condition: str = "*"
    source: str | None = None
    dataset: str | None = None
    topic: str | None = None
    name: str | None = None
    threshold: Threshold | None = Field(None, ge=0)
    window: Duration | None = Field(None, ge=MINUTE, le=LONGEST_WINDOW_SECONDS)
    after: Duration | None = Field(None, ge=0, le=LONGEST_WINDOW_SECONDS)
    severity: Severity | None = None
    owner: str | None = None
    enabled: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the file contains
        if not isinstance(given, dict):
            raise ValueError("a rule has names and values, such as condition, dataset and threshold")  # noqa: TRY004 - pydantic takes ValueErrors
        for field in given:
            if field not in cls.model_fields:
                raise ValueError(f"{str(field)[:40]} is unknown in a rule{nearest(str(field), cls.model_fields)}")
        if (severity := given.get("severity")) is not None and severity not in SEVERITIES:
            raise ValueError(f"{str(severity)[:40]} is no severity{nearest(str(severity), SEVERITIES)}")
        return given

    @field_validator("condition")
    @classmethod
    def _known_condition(cls, condition: str) -> str:
        if not fnmatch.filter(CONDITIONS, condition):
            raise ValueError(f"there is no condition {condition[:40]!r}{nearest(condition, CONDITIONS)}")
        return condition

    @property
    def patterns(self) -> dict[str, str]:
        """Return the names or patterns of its subjects, by facet."""
        patterns = {"source": self.source, "dataset": self.dataset, "topic": self.topic, "name": self.name}
        return {facet: pattern for facet, pattern in patterns.items() if pattern is not None}

    @model_validator(mode="after")
    def _fitting_names(self) -> Self:
        conditions = fnmatch.filter(CONDITIONS, self.condition)
        if not any(self.patterns.keys() <= {*CONDITIONS[one].facets} for one in conditions):
            facets = " and ".join(CONDITIONS[conditions[0]].facets) or "nothing" if len(conditions) == 1 else "others"
            raise ValueError(f"{self.condition} is not told apart by {' and '.join(self.patterns)}, but by {facets}")
        return self

    @model_validator(mode="after")
    def _fitting_threshold(self) -> Self:
        if self.threshold is None:
            return self
        condition = CONDITIONS.get(self.condition)
        if condition is None:
            raise ValueError("a rule with a threshold needs one condition, as each has its own unit")
        if not condition.unit:
            raise ValueError(f"{self.condition} has no threshold: it holds or not")
        if condition.unit == "share" and self.threshold > 1:
            raise ValueError(f"the threshold of {self.condition} is a share, at most 1 or 100%")
        return self

    def matches(self, condition: str, facets: Mapping[str, str]) -> bool:
        """Return True if the rule applies to a subject.

        Args:
            condition: name of the condition.
            facets: values of the subject by the names of the patterns: source, dataset, topic, name.
        """
        return fnmatch.fnmatchcase(condition, self.condition) and all(
            facet in facets and fnmatch.fnmatchcase(facets[facet], pattern) for facet, pattern in self.patterns.items()
        )


class QuietHours(Section):
    """Hours of each day in which only critical alerts are sent; `22:00-06:00 Europe/Oslo` as text.

    Args:
        start: local time at which they begin.
        end: local time at which they end; before `start` it is one of the next day.
        zone: time zone.
    """

    start: time
    end: time
    zone: str = "UTC"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the file contains
        if not isinstance(given, str):
            return given
        found = INTERVAL.fullmatch(given.strip())
        if found is None:
            raise ValueError(f"{given[:40]!r} are no quiet hours; write 22:00-06:00 Europe/Oslo")
        try:
            start, end = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
        except ValueError:
            raise ValueError(f"{given[:40]!r} has a time that does not exist") from None
        return {"start": start, "end": end, "zone": found[5] or "UTC"}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.zone not in available_timezones():
            raise ValueError(f"there is no time zone {self.zone[:40]!r}{nearest(self.zone, available_timezones())}")
        if self.start == self.end:
            raise ValueError("quiet hours that begin when they end would last the whole day")
        return self

    def __repr__(self) -> str:
        """Return the quiet hours in the form of the setting."""
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone}"

    def end_of(self, now: datetime) -> datetime | None:
        """Return the end (UTC) of the quiet hours that contain `now`; None outside of them."""
        zone = ZoneInfo(self.zone)
        local = now.astimezone(zone)
        for day in (local.date() - timedelta(days=1), local.date()):
            # Compute in local time: a night with a clock change is an hour shorter or longer.
            begins = datetime.combine(day, self.start)
            ends = datetime.combine(day + timedelta(days=self.end < self.start), self.end)
            if begins <= local.replace(tzinfo=None) < ends:
                return ends.replace(tzinfo=zone, fold=local.fold).astimezone(UTC)
        return None


def _by_severity(value: object) -> object:
    """Parse quiet hours by severity; a single text applies to all severities but critical."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return dict.fromkeys(("info", "warning"), value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('it is not JSON; write 22:00-06:00 Europe/Oslo or {"warning": "..."}') from None
    for severity in value if isinstance(value, Mapping) else ():
        if severity == "critical":
            raise ValueError("critical alerts are always sent; quiet hours are for info and warning")
        if severity not in SEVERITIES:
            raise ValueError(f"{str(severity)[:40]} is no severity{nearest(str(severity), SEVERITIES)}")
    return value


class AlertSettings(Section):
    """Alerts: one message when an incident begins, and one when it is over.

    Args:
        channels: how alerts are sent: webhook, and those that other packages bring, by name.
        webhook_url: address that receives a POST for each incident, and another when it is over.
        urls: Apprise addresses (slack://..., mailto://...) that receive the alerts without an owner of their own.
        owners: Apprise addresses by owner, who receives the alerts of what is theirs; in a variable as JSON.
        rules: thresholds, windows, severities and owners for some conditions, sources, datasets or topics, the first
            matching one first; in a variable as JSON.
        quiet_hours: hours such as 22:00-06:00 Europe/Oslo in which only critical alerts are sent; by severity as a
            mapping, in a variable as JSON.
        reminder_hours: hours after which the message of an open incident is repeated; empty: never.
        resolve_after_seconds: how long an incident must be gone before it is over; longer for one that comes back.
        every_seconds: how often conditions are assessed.
        failures_in_a_row: consecutive failed ticks of a sensor or schedule that make an incident.
    """

    channels: Annotated[CommaList, Env("INGEST_ALERT_CHANNELS")] = Field(default_factory=lambda: ["webhook"])
    webhook_url: Annotated[SecretStr | None, Env("INGEST_ALERT_WEBHOOK_URL")] = None
    urls: Annotated[AlertUrls, Env("INGEST_ALERT_URLS")] = Field(default_factory=list)
    owners: Annotated[dict[str, AlertUrls], AsJson, Env("INGEST_ALERT_OWNERS")] = Field(default_factory=dict)
    rules: Annotated[list[AlertRule], AsJson, Env("INGEST_ALERT_RULES")] = Field(default_factory=list)
    quiet_hours: Annotated[
        dict[Severity, QuietHours], BeforeValidator(_by_severity), Env("INGEST_ALERT_QUIET_HOURS")
    ] = Field(default_factory=dict)
    reminder_hours: Annotated[float | None, Env("INGEST_ALERT_REMINDER_HOURS")] = Field(None, gt=0)
    resolve_after_seconds: Annotated[float, Env("INGEST_ALERT_RESOLVE_AFTER_SECONDS")] = Field(30.0, ge=0)
    every_seconds: Annotated[float, Env("INGEST_ALERT_EVERY_SECONDS")] = Field(10.0, ge=1, le=300)
    failures_in_a_row: Annotated[int, Env("INGEST_ALERT_FAILURES_IN_A_ROW")] = Field(3, gt=0)

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: Sequence[SecretStr]) -> Sequence[SecretStr]:
        _require_addresses(urls)
        return urls

    @field_validator("owners")
    @classmethod
    def _addresses_of_owners(cls, owners: Mapping[str, Sequence[SecretStr]]) -> Mapping[str, Sequence[SecretStr]]:
        for owner, urls in owners.items():
            if not urls:
                raise ValueError(f"the owner {owner[:40]!r} has no address")
            _require_addresses(urls)
        return owners

    @field_validator("rules")
    @classmethod
    def _known_owners(cls, rules: Sequence[AlertRule], info: ValidationInfo) -> Sequence[AlertRule]:
        owners = info.data.get("owners", {})
        for rule in rules:
            if rule.owner is not None and rule.owner not in owners:
                guess = nearest(rule.owner, owners) or "; name it in INGEST_ALERT_OWNERS"
                raise ValueError(f"a rule names the owner {rule.owner[:40]!r}, who has no address{guess}")
        return rules

    def policy(self, condition: str, facets: Mapping[str, str]) -> Policy:
        """Return the values that apply to one subject: from the rules, then from the defaults of the condition."""
        default, rules = CONDITIONS[condition], [rule for rule in self.rules if rule.matches(condition, facets)]

        def first(field: str, otherwise: Any) -> Any:  # noqa: ANN401 - fields have different types
            return next((value for rule in rules if (value := getattr(rule, field)) is not None), otherwise)

        threshold = self.failures_in_a_row if condition == "failing_ticks" else default.threshold
        return Policy(
            threshold=first("threshold", threshold),
            window_seconds=first("window", default.window_seconds),
            after_seconds=first("after", default.after_seconds),
            severity=first("severity", default.severity),
            owner=first("owner", None),
            enabled=first("enabled", True),
        )

    def windows(self, condition: str) -> tuple[float, ...]:
        """Return all windows over which a condition may be measured, in seconds."""
        windows = {rule.window for rule in self.rules if rule.window and fnmatch.fnmatchcase(condition, rule.condition)}
        default = CONDITIONS[condition].window_seconds
        return tuple(sorted(windows | ({default} if default else set())))

    def rules_for(self, condition: str) -> Iterator[AlertRule]:
        """Yield the rules that set a threshold for a condition."""
        yield from (rule for rule in self.rules if rule.condition == condition and rule.threshold is not None)
