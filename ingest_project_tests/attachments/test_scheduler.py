"""Shares of a run's slots, and messages in the middle of an attempt."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.definitions import remove_old_files
from ingest_project.attachments.downloading import Cached, Postponed, attempts, cache_path, download_at, store_at
from ingest_project.attachments.queue import PENDING_QUEUE, AttachmentRecord
from ingest_project.attachments.results import publish_cached
from ingest_project.contracts.attachments import CachedDownload
from ingest_project_tests.attachments.samples import NOW, arrival, record
from ingest_project_tests.attachments.system import AttachmentSystem
from ingest_project_tests.services.http_server import HttpServer


def of(host: str, number: int, trace: str = "trace", domain: str = "claims") -> AttachmentRecord:
    one = record(f"{domain}-{trace}-{host}-{number}", f"http://{host}/{number}")
    return msgspec.structs.replace(one, trace_id=trace, domain=domain)


class Hosts:
    """Hosts of which some never end a download until they are released."""

    def __init__(self, is_slow: Callable[[AttachmentRecord], bool]) -> None:
        self._is_slow = is_slow
        self.purge = threading.Event()
        self.held: Counter[str] = Counter()

    def attempt(self, one: AttachmentRecord) -> Postponed:
        """One download."""
        if self._is_slow(one):
            self.held[one.attachment_url.split("/")[2]] += 1
            self.purge.wait(30)
        return Postponed(one.attachment_key, "", NOW)


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ([of(f"slow{n % 4}", n) for n in range(200)], [of("fast", n) for n in range(50)]),
        ([of(f"slow{n}", n, "flood") for n in range(200)], [of("fast", n, "other") for n in range(50)]),
        (
            [of(f"slow{n}", n, f"flood-{n}", "flood") for n in range(200)],
            [of("fast", n, f"other-{n}", "other") for n in range(50)],
        ),
    ],
    ids=["four hosts", "many hosts of one trace", "many traces of one domain"],
)
def test_slow_hosts_leave_slots_to_all_others(slow: list[AttachmentRecord], fast: list[AttachmentRecord]) -> None:
    hosts = Hosts(lambda one: "slow" in one.attachment_url)
    groups = attempts([*slow, *fast], hosts.attempt, 16)
    ended: list[str] = []
    give_up_at = time.monotonic() + 20
    try:
        while len(ended) < len(fast) and time.monotonic() < give_up_at:
            ended += [one.attachment_key for one in next(groups)]
    finally:
        hosts.purge.set()
        groups.close()
    assert sorted(ended) == sorted(one.attachment_key for one in fast)


def test_a_quick_host_gets_more_slots_up_to_its_limit() -> None:
    most, now_active = 0, 0
    lock = threading.Lock()

    def attempt(one: AttachmentRecord) -> Postponed:
        nonlocal most, now_active
        with lock:
            now_active += 1
            most = max(most, now_active)
        time.sleep(0.01)
        with lock:
            now_active -= 1
        return Postponed(one.attachment_key, "", NOW)

    for _ in attempts([of("one", n) for n in range(200)], attempt, 16, per_host=5):
        pass
    assert most == 5


def test_a_run_begins_nothing_after_its_time_and_requeues_the_rest() -> None:
    hosts = Hosts(lambda _: True)
    threading.Timer(1.5, hosts.purge.set).start()
    records = [of(f"slow{n}", n) for n in range(100)]
    ends = [
        end
        for group in attempts(records, hosts.attempt, 4, begin_within=timedelta(seconds=0.5))
        for end in group
        if isinstance(end, Postponed)
    ]
    assert sorted(end.attachment_key for end in ends) == sorted(one.attachment_key for one in records)
    assert sum(end.reason.startswith("Its run ended") for end in ends) == 96


def test_a_failure_while_results_are_gathered_is_not_lost() -> None:
    def attempt(one: AttachmentRecord) -> Postponed:
        raise MemoryError(one.attachment_key)

    with pytest.raises(MemoryError):
        list(attempts([of("h", 1)], attempt, 2))


def test_due_attachments_are_claimed_in_turns_of_domains_and_traces(attachment_system: AttachmentSystem) -> None:
    queue = attachment_system.services.attachments
    arrivals = []
    for number in range(60):
        one = arrival(f"k-{number:02}", number)
        trace, domain = ("flood", "flood") if number < 50 else (f"t-{number % 2}", f"d-{number % 5}")
        arrivals.append(one._replace(task=msgspec.structs.replace(one.task, trace_id=trace, domain=domain)))
    queue.record(arrivals, NOW)
    due = [one.key for one in queue.due(PENDING_QUEUE, 20, datetime.now(UTC))]
    assert len(due) == 20
    assert sum(int(key[2:]) >= 50 for key in due) == 10
    assert sum(int(key[2:]) < 50 for key in due[:6]) == 1


def test_a_cached_file_is_announced_before_it_is_stored_and_is_there_until_its_end_is_on_record(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system, services = attachment_system, attachment_system.services
    task = {"trace_id": "t-9", "domain": "claims"}
    urls = [http_server.url(f"/files/{number}.pdf?size=5000") for number in range(5)]
    system.send(system.settings.topics.downloads_pending, *({**task, "attachment_url": url} for url in urls))
    system.tick("downloads_pending_sensor")
    keys = [one.attachment_key for one in services.attachments.list()]
    records = services.attachments.begin(keys, "run", datetime.now(UTC))
    announced: dict[str, CachedDownload] = {}

    def announce(cached: Sequence[Cached]) -> None:
        publish_cached(services, cached)
        for message in system.on_topic(system.settings.topics.downloads_cached):
            published = msgspec.json.decode(message.value or b"", type=CachedDownload)
            if published.attachment_url in announced:
                continue
            content = Path(published.local_path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (published.size_bytes, published.sha256)
            assert services.attachment_store("claims").stat(published.destination_path) is None
            announced[published.attachment_url] = published

    groups = attempts(
        records,
        lambda one: download_at(one, services),
        4,
        store=lambda cached: store_at(cached, services),
        announce=announce,
    )
    ends = [end for group in groups for end in group]

    assert len(announced) == len(urls)
    assert all(isinstance(end, AttemptResult) and end.result.onelake_path for end in ends)
    assert all(cache_path(services, key).exists() for key in keys)


def test_an_attempt_that_ended_leaves_nothing_in_the_cache(
    attachment_system: AttachmentSystem, http_server: HttpServer
) -> None:
    system = attachment_system
    system.send_event(http_server.url("/files/a.pdf?size=5000"), http_server.url("/status/404"))
    system.drive_attachments()
    assert list(system.settings.cache_dir.iterdir()) == []
    assert len(system.on_topic(system.settings.topics.downloads_cached)) == 1


def test_cache_files_of_a_killed_run_are_removed_once_they_are_old(tmp_path: Path) -> None:
    (tmp_path / "left").write_bytes(b"half")
    assert remove_old_files(tmp_path, timedelta(days=1)) == 0
    assert remove_old_files(tmp_path, timedelta(seconds=-5)) == 1
    assert remove_old_files(tmp_path / "none", timedelta(0)) == 0
