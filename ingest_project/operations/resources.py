"""The resources of every capability, in one object per process."""

from ingest_project.attachments.resources import AttachmentResources
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.polling.job_queue import PollingResources
from ingest_project.streams.user_activity.resources import UserActivityResources


class SystemResources(PollingResources, FileIngestResources, AttachmentResources, UserActivityResources):
    """What all capabilities use: they share one engine and one set of Kafka clients."""
