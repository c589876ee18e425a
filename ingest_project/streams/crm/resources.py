"""What CRM uses."""

from ingest_project.streams.resources import StreamResources


class CrmResources(StreamResources):
    """The offset ranges of streams; records are in the warehouse database."""
