"""Attachments in OneLake, through Microsoft's own SDK, also when the service fails in the middle."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from pydantic import SecretStr

from ingest_project.attachments.tables import AttachmentState
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.services.dfs_calls import SAS
from ingest_project_tests.services.dfs_server import DfsServer
from ingest_project_tests.services.http_server import HttpServer, content_of

pytestmark = pytest.mark.long

# More than one append.
LARGE = 20 * 1024**2


@pytest.fixture
def system(attachment_system: AttachmentSystem, dfs: DfsServer, dfs_url: str) -> AttachmentSystem:
    """Files of the domain `claims` go to a folder of their own, all others below the domain's name."""
    settings = changed(
        attachment_system.settings,
        "attachments",
        store_url=f"{dfs_url}/all",
        destinations={"claims": f"{dfs_url}/of-claims"},
        destination_template="{domain}/{yyyy}/{trace_id}/{file_name}",
    )
    attachment_system.settings = changed(settings, "onelake", endpoint=dfs.url, sas_token=SecretStr(SAS))
    attachment_system.restart()
    return attachment_system


@pytest.fixture
def below(dfs_url: str) -> str:
    """The folder of this test, as the service names it."""
    return dfs_url.partition("/analytics/")[2]


def stored_files(dfs: DfsServer, below: str) -> list[str]:
    return [path.removeprefix(f"{below}/") for path in dfs.paths() if path.startswith(f"{below}/")]


def test_each_domain_has_its_own_folder_by_one_template(
    system: AttachmentSystem, http_server: HttpServer, dfs: DfsServer, below: str
) -> None:
    more = {"occurred_at": "2025-12-31T23:00:00Z"}
    system.send_event(http_server.url("/files/a.pdf?size=3000"), trace_id="t-1", **more)
    system.send_event(http_server.url("/files/b.pdf?size=3000"), trace_id="t-2", domain="Légal/../x", **more)
    system.drive_attachments()

    ours, others = stored_files(dfs, below)[::-1]
    assert re.fullmatch(r"of-claims/2025/t-1/attachment-[0-9a-f]{32}/a\.pdf", ours)
    assert others.startswith("all/Légal_~")
    assert re.search(r"/2025/t-2/attachment-[0-9a-f]{32}/b\.pdf$", others)
    assert system.stored_bytes("a.pdf") == dfs.content(f"{below}/{ours}") == content_of("a.pdf", 3000)
    assert dfs.entry(f"{below}/{ours}").metadata["trace_id"]
    assert all(row["onelake_path"].startswith(dfs.url) for row in system.results())
    assert not any(SAS in str(row) for row in system.results())
    for name in ("a.pdf", "b.pdf"):
        assert system.check("attachment_stored", system.attachment(name).attachment_key).passed
    dfs.remove(f"{below}/{ours}")
    assert not system.check("attachment_stored", system.attachment("a.pdf").attachment_key).passed


@pytest.mark.parametrize(
    ("size", "operation", "fault"),
    [
        (LARGE, "append", {"kind": "cut", "after": 1}),
        (LARGE, "append", {"kind": "refuse", "status": 429, "retry_after": 3600}),
        (3_000, "put", {"kind": "refuse", "status": 503, "retry_after": 3600}),
    ],
    ids=["cut in the middle of an append", "too many requests", "server busy"],
)
def test_a_store_that_fails_for_a_while_is_tried_again_and_then_holds_the_whole_file_alone(  # noqa: PLR0913, PLR0917 - fixtures
    system: AttachmentSystem,
    http_server: HttpServer,
    dfs: DfsServer,
    below: str,
    size: int,
    operation: str,
    fault: dict[str, object],
) -> None:
    dfs.fail(operation, times=1_000, **fault)
    system.send_event(http_server.url(f"/files/a.pdf?size={size}"))
    system.drive_events_once()
    waiting = system.attachment("a.pdf")
    assert (waiting.state, waiting.attempt) == (AttachmentState.PENDING, 2)
    assert waiting.error_class in {"StoreUnavailableError", "StoreThrottledError"}
    assert stored_files(dfs, below) == [], "no half file, and no temporary one"
    if "retry_after" in fault:
        assert waiting.next_attempt_at - waiting.updated_at > timedelta(minutes=59), "the pause of the service"
        system.services.attachments.postpone([waiting.attachment_key], "", waiting.created_at, waiting.updated_at)

    dfs.faults.clear()
    system.drive_attachments(until_retries_are_over=True)
    (path,) = stored_files(dfs, below)
    assert dfs.content(f"{below}/{path}") == content_of("a.pdf", size)
    assert [(row["attempt"], row["status"]) for row in system.results()] == [(1, "failed_transient"), (2, "success")]


def test_a_store_that_never_comes_back_leaves_a_dead_letter_and_a_replay_stores_the_file(
    system: AttachmentSystem, http_server: HttpServer, dfs: DfsServer, below: str
) -> None:
    dfs.fail("put", status=403, code="AuthorizationPermissionMismatch", times=1_000)
    system.send_event(http_server.url("/files/a.pdf?size=3000"))
    system.drive_attachments(until_retries_are_over=True)
    dead = system.attachment("a.pdf")
    assert (dead.state, dead.attempt) == (AttachmentState.FAILED, 5)
    assert "AuthorizationPermissionMismatch" in str(dead.reason)
    assert stored_files(dfs, below) == []

    dfs.faults.clear()
    system.services.attachments.replay([dead.attachment_key], "a test", 5, 100.0, dead.updated_at)
    system.drive_attachments()
    assert len(stored_files(dfs, below)) == 1
    assert [row["status"] for row in system.results()][-1] == "success"
