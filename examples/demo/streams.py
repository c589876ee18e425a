"""The demo's streams: user activity and CRM messages, from two files that come with the project.

Ids and times in the files are fixed. A second demo finds their messages stored, and does not send them again.
"""

from __future__ import annotations

import msgspec

from examples.demo.activity import ActivitySample, DemoActivity, show_activity
from examples.demo.crm import CrmSample, DemoCrm, show_crm
from ingest_project.core.console import complain, counted
from ingest_project.core.settings import LoadedSettings
from ingest_project.devstack.state_folder import is_chosen, with_addresses
from ingest_project.operations.resources import SystemResources

FOLDER = "streams"
ACTIVITY_FILE, CRM_FILE = "user_activity_events.jsonl", "sales_events.jsonl"
HOURLY_PAUSE = "user_activity.hourly_refresh_seconds"


class StreamsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Stored data of both streams."""

    user_activity: DemoActivity
    crm: DemoCrm

    @property
    def missing(self) -> list[str]:
        """Describe what is not stored."""
        return [*self.user_activity.missing, *self.crm.missing]

    @property
    def earlier(self) -> list[str]:
        """The streams that an earlier demo had stored."""
        both = {"the events of users": self.user_activity.earlier, "the CRM messages": self.crm.earlier}
        return [name for name, earlier in both.items() if earlier]


class DemoStreams:
    """The messages of one demo.

    Args:
        activity: for `user-activity-events`.
        crm: for `sales_events`.
    """

    def __init__(self, activity: ActivitySample, crm: CrmSample) -> None:
        self._activity = activity
        self._crm = crm
        self._earlier = {"activity": False, "crm": False}

    def send(self, services: SystemResources) -> None:
        """Put on their topics what no earlier demo has stored."""
        self._earlier = {"activity": self._activity.is_stored(services), "crm": self._crm.is_stored(services)}
        sent = []
        if not self._earlier["activity"]:
            self._activity.send(services)
            sent.append(counted(len(self._activity), "event of users", "events of users"))
        if not self._earlier["crm"]:
            self._crm.send(services)
            sent.append(counted(len(self._crm), "CRM message"))
        if sent:
            complain(f"Sent {' and '.join(sent)}.")

    def report(self, services: SystemResources) -> StreamsReport:
        """Query what is stored."""
        return StreamsReport(
            user_activity=self._activity.report(services, earlier=self._earlier["activity"]),
            crm=self._crm.report(services, earlier=self._earlier["crm"]),
        )


def streaming(loaded: LoadedSettings) -> tuple[LoadedSettings, DemoStreams | None]:
    """The demo's streams, and settings by which figures of an hour are made as soon as its events have changed.

    The streams are None where they cannot be shown, which is said.
    """
    folder = loaded.settings.polling.dummy_root / FOLDER
    try:
        streams = DemoStreams(ActivitySample(folder / ACTIVITY_FILE), CrmSample(folder / CRM_FILE))
    except FileNotFoundError as error:
        complain(f"Streams are left out: there is no file {error.filename}.")
        return loaded, None
    return (loaded if is_chosen(loaded, HOURLY_PAUSE) else with_addresses(loaded, {HOURLY_PAUSE: 0})), streams


def show_streams(report: StreamsReport) -> None:
    """Print the tables for a person."""
    show_activity(report.user_activity)
    show_crm(report.crm)
