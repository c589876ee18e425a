"""What Dagster loads of all streams."""

from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import DagsterParts
from ingest_project.streams.crm.definitions import parts_of_crm
from ingest_project.streams.declaration import load_streams
from ingest_project.streams.declared import parts_of_stream
from ingest_project.streams.user_activity.definitions import parts_of_user_activity


def dagster_parts(settings: Settings) -> dict[str, DagsterParts]:
    """Return what Dagster loads of each stream; a declared one that is broken is left out."""
    return {
        "user_activity": parts_of_user_activity(settings),
        "crm": parts_of_crm(settings),
        **{one.name: parts_of_stream(one) for one in load_streams(settings).usable},
    }
