"""Dead attachments whose addresses answer again."""

from __future__ import annotations

from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.send import deliver
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import DownloadTask, attachment_key
from ingest_project.operations import SystemResources
from ingest_project_tests.after_a_demo.finished_demo import settle
from ingest_project_tests.services.http_server import HttpServer, content_of

COUNT = 10


def ten_dead(services: SystemResources, server: HttpServer, trace_id: str) -> list[str]:
    """Let ten downloads fail for good, then mend their addresses; return the keys of the attachments.

    Args:
        services: of a demo that is up.
        server: that has none of the files at first.
        trace_id: of the downloads, which names the files as well.
    """
    names = [f"{trace_id}-{number}.pdf" for number in range(COUNT)]
    addresses = [server.url(f"/published/{name}") for name in names]
    keys = [attachment_key(trace_id, address) for address in addresses]
    for key, address in zip(keys, addresses, strict=True):
        task = DownloadTask(trace_id=trace_id, domain="claims", attachment_url=address)
        deliver(services, services.settings.topics.downloads_pending, key, encode(task), trace_id)
    settle(services)
    assert queue_states_of(services, keys) == {(AttachmentState.FAILED, 0)}

    for name in names:
        server.publish(f"/published/{name}", content_of(name, 1_000))
    return keys


def queue_states_of(services: SystemResources, keys: list[str]) -> set[tuple[AttachmentState, int]]:
    """Return the states of attachments, each with its number of replays."""
    return {(record.state, record.replays) for record in services.attachments.get_many(keys)}
