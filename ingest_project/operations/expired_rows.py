"""What of the ledgers is long done, and letting go of it.

Long done is only what ended well: what failed, is in quarantine, waits or is in a run's hands stays for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_events, attachments
from ingest_project.file_ingest.tables import files
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.kafka.outbox import SENT, outbox
from ingest_project.platform.work_queue.sql_helpers import in_parts
from ingest_project.platform.work_queue.states import AttachmentState, FileState, JobState
from ingest_project.polling.job_queue import polling_jobs


class RetentionPolicy(NamedTuple):
    """A kind of ledger entry that is a partition in Dagster.

    Args:
        partitions: name of the partition set.
        table: of the ledger.
        key: its primary key.
        ended_well: states in which nothing is left to do or to see to.
    """

    partitions: str
    table: sa.Table
    key: sa.Column[str]
    ended_well: tuple[str, ...]


KINDS = (
    RetentionPolicy(
        "files",
        files,
        files.c.file_key,
        (FileState.INGESTED, FileState.DUPLICATE, FileState.REPLACED, FileState.SUPERSEDED),
    ),
    RetentionPolicy("polling_jobs", polling_jobs, polling_jobs.c.job_key, (JobState.DONE,)),
    RetentionPolicy("attachments", attachments, attachments.c.attachment_key, (AttachmentState.STORED,)),
)


class RetentionLedger:
    """Looks for what is long done, over all ledgers. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def long_done(self, kind: RetentionPolicy, keys: Sequence[str], before: datetime) -> list[str]:
        """Those of the keys whose entries ended well before then and were reported, in order."""
        found: set[str] = set()
        with reading(self._engine) as connection:
            for part in in_parts(keys):
                query = sa.select(kind.key).where(kind.key.in_(part), _is_long_done(kind, before))
                found.update(connection.execute(query).scalars())
        return [key for key in keys if key in found]

    def needed_runs(self, run_ids: Sequence[str], before: datetime) -> set[str]:
        """Those of the runs that are the last to have worked on something that is not long done."""
        needed: set[str] = set()
        with reading(self._engine) as connection:
            for kind in KINDS:
                run_id = kind.table.c.run_id
                for part in in_parts(run_ids):
                    query = sa.select(run_id).where(run_id.in_(part), ~_is_long_done(kind, before)).distinct()
                    needed.update(connection.execute(query).scalars())
        return needed

    def unneeded_contents(self, before: datetime, limit: int) -> list[str]:
        """SHA-256 of landed contents all of whose files ended well before then."""
        kind = KINDS[0]
        ended = sa.func.count().filter(_is_long_done(kind, before))
        query = (
            sa.select(files.c.sha256)
            .where(files.c.sha256.is_not(None))
            .group_by(files.c.sha256)
            .having(ended == sa.func.count(), sa.func.max(files.c.landed_bytes).is_not(None))
            .order_by(files.c.sha256)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def forget_contents(self, sha256s: Sequence[str]) -> None:
        """The bytes of these contents are not in the landing store any more."""
        with writing(self._engine) as connection:
            for part in in_parts(sha256s):
                connection.execute(sa.update(files).where(files.c.sha256.in_(part)).values(landed_bytes=None))

    def old_bodies(self, before: datetime) -> int:
        """How many finished attachment events from before then still have their bodies."""
        query = sa.select(sa.func.count()).where(_has_old_body(before))
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def drop_bodies(self, before: datetime) -> int:
        """Empty the bodies of finished attachment events from before then; what was counted of them stays."""
        statement = sa.update(attachment_events).where(_has_old_body(before)).values(body="")
        with writing(self._engine) as connection:
            return int(connection.execute(statement).rowcount)

    def old_messages(self, before: datetime) -> int:
        """How many ids of messages sent before then are remembered."""
        query = sa.select(sa.func.count()).where(outbox.c.state == SENT, outbox.c.created_at < before)
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def drop_messages(self, before: datetime) -> int:
        """Forget the ids of messages sent before then: sent once more, they would be on their topic twice."""
        statement = sa.delete(outbox).where(outbox.c.state == SENT, outbox.c.created_at < before)
        with writing(self._engine) as connection:
            return int(connection.execute(statement).rowcount)


def _is_long_done(kind: RetentionPolicy, before: datetime) -> sa.ColumnElement[bool]:
    columns = kind.table.c
    return sa.and_(
        columns.state.in_(kind.ended_well),
        columns.reported_at.is_not(None),
        sa.func.coalesce(columns.finished_at < before, sa.false()),
    )


def _has_old_body(before: datetime) -> sa.ColumnElement[bool]:
    columns = attachment_events.c
    return sa.and_(columns.state == JobState.DONE, columns.finished_at < before, columns.body != "")
