"""The capabilities of this system: the one list of them, and the resources of all in one object per process."""

from __future__ import annotations

from ingest_project.attachments.capability import Attachments
from ingest_project.attachments.resources import AttachmentResources
from ingest_project.file_ingest.capability import FileIngest
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.platform.capability import Capability
from ingest_project.polling.capability import Polling
from ingest_project.polling.job_queue import PollingResources
from ingest_project.streams.capability import Streams
from ingest_project.streams.resources import DeclaredStreamResources


class SystemResources(PollingResources, FileIngestResources, AttachmentResources, DeclaredStreamResources):
    """The resources of all capabilities, which share one engine and one set of Kafka clients."""


# In the order in which data flows: work moves on to a later capability, never to an earlier one.
CAPABILITIES: tuple[Capability[SystemResources], ...] = (Polling(), FileIngest(), Attachments(), Streams())
