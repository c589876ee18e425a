"""Every error that this project raises deliberately, grouped by the reaction to it.

    IngestError
    ├── PermanentError                  a retry cannot help: quarantine, dead-letter or reject, with the reason
    │   ├── SettingsError               a setting is unknown, malformed or missing
    │   ├── FileRejectedError           a file breaks the contract as a whole
    │   │   ├── LimitExceededError      an input exceeds a configured limit
    │   │   └── CheckFailedError        a check of the user's contract raised an error
    │   ├── ForbiddenPathError          a path or address outside what this system may read
    │   ├── AddressRejectedError        a web address that this system may not contact
    │   ├── SourceNotFoundError         the named folder, bucket or file does not exist
    │   ├── SourceAccessDeniedError     a source denies access, or is not the expected one
    │   ├── UnreadableListingError      a source's answer is not a listing that can be read
    │   ├── UnknownCredentialsError     a job names a stored credential that is not configured
    │   ├── VersionSupersededError      the source has another version of a file than its event announced
    │   ├── DownloadRejectedError       a web server's answer will be the same again: 404, 403, an empty body
    │   ├── QueryRejectedError          Eventhouse rejects a query: not KQL it can run, not allowed, or not to be paged
    │   ├── SchemaConflictError         rows do not fit their table
    │   ├── TableUnusableError          a table or column is missing, or the right to write it, or a rule of it refuses
    │   ├── MessageTooLargeError        the broker rejects a message for its size
    │   ├── SkippedByOperatorError      an operator skipped a message
    │   └── UnexpectedError             a defect of ours that one file caused; the log has its traceback
    ├── TransientError                  the same request may succeed later: retried with back-off
    │   ├── SourceUnreachableError      a source cannot be listed or read now
    │   ├── SourceChangedError          a file changed while it was read, or is not yet the announced version
    │   ├── DownloadFailedError         a web server did not answer, was too slow, disconnected, or requested a pause
    │   ├── HostThrottledError          a web host that is not contacted for a while
    │   ├── BrokerUnavailableError      Kafka does not answer, or rejected a write
    │   │   └── BrokerAccessDeniedError Kafka denies this user a topic or the consumer group
    │   ├── EventhouseUnavailableError  Eventhouse does not answer, throttles, or gave an incomplete answer
    │   ├── SchemaRegistryUnavailableError  the schema registry does not answer, or refuses
    │   ├── DatabaseUnavailableError    the warehouse does not answer
    │   ├── TransactionConflictError    another transaction held a lock or wrote the same rows
    │   ├── StoreUnavailableError       an object store does not answer or is full
    │   └── WorkerExhaustedError        this process ran out of memory, disk or file handles over one file
    └── UnreadableMessageError          a Kafka message breaks its contract: it becomes a dead letter

Catch the narrowest class that you can handle, and raise the new error `from` the caught one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any


class IngestError(Exception):
    """Root of the tree. The message is one line: what happened, to what, and the remedy."""

    @property
    def error_class(self) -> str:
        """The name stored in work queues, headers and metrics."""
        return type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error by its state for another process: constructors take other arguments than the message."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class PermanentError(IngestError):
    """A retry cannot help."""


class TransientError(IngestError):
    """The same request may succeed later."""


class UnreadableMessageError(IngestError):
    """A message that breaks its topic's contract.

    Args:
        reason: the problem, with the name of the field, quoting at most a few characters of the value.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SettingsError(PermanentError):
    """A setting is unknown, malformed or missing. The message names it and where it was found."""


class FileRejectedError(PermanentError):
    """A file that breaks the contract as a whole.

    Args:
        rule: short stable name of the broken rule, e.g. ``missing_column``; metrics and reports count by it.
        detail: one sentence for a person.
    """

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        self.detail = detail
        super().__init__(f"{rule}: {detail}")


class LimitExceededError(FileRejectedError):
    """An input is larger than a configured limit.

    Args:
        limit: the setting with the limit, e.g. ``INGEST_MAX_ROW_BYTES``.
        detail: what was too large, with both numbers.
    """

    def __init__(self, limit: str, detail: str) -> None:
        self.limit = limit
        super().__init__("limit_exceeded", f"{detail} (limit: {limit})")


class CheckFailedError(FileRejectedError):
    """A check of the user's contract raised an error, so that it cannot accept or reject any row.

    Args:
        check: name of the check.
        cause: exception of the check.
    """

    def __init__(self, check: str, cause: str) -> None:
        self.check = check
        first_line = next(iter(cause.splitlines()), "")
        super().__init__(
            "check_failed",
            f"The check {check!r} failed with {first_line[:300]}. A check returns True, False, or a LazyFrame with one"
            " boolean per row. Correct it, then process the file again.",
        )


class ForbiddenPathError(PermanentError):
    """A path or address outside what this system may read.

    Args:
        path: requested path.
        reason: why it is rejected, and which setting would allow it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Refused to read {path!r}: {reason}")


class SourceNotFoundError(PermanentError):
    """The named folder, bucket or file does not exist."""

    def __init__(self, location: str) -> None:
        self.location = location
        super().__init__(f"{location} does not exist. Check the path and that this host can see it.")


class SourceAccessDeniedError(PermanentError):
    """A source denies access, or is not the expected one.

    Args:
        location: location of the source or the file.
        reason: who denies access, and the remedy; starts in lower case, ends without a full stop.
    """

    def __init__(self, location: str, reason: str) -> None:
        self.location = location
        self.reason = reason
        super().__init__(f"No access to {location}: {reason}.")


class UnreadableListingError(PermanentError):
    """A source's answer is not a readable listing; the source may have files, so it does not count as empty.

    Args:
        location: location of the folder or page.
        seen: description of the answer for people; starts in lower case, ends without a full stop.
    """

    def __init__(self, location: str, seen: str) -> None:
        self.location = location
        self.seen = seen
        super().__init__(f"{location} cannot be listed: {seen}. Nothing is known about its files.")


class UnknownCredentialsError(PermanentError):
    """A job names a stored credential that is not configured."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"No credentials named {name!r} are configured. Add them under 'credentials' in the settings.")


class SchemaConflictError(PermanentError):
    """Rows do not fit their table.

    Args:
        table: address of the table.
        column: column, with the path of a nested one, e.g. `client_info.language`.
        reason: the difference.
    """

    def __init__(self, table: str, column: str, reason: str) -> None:
        self.table = table
        self.column = column
        super().__init__(f"Column {column!r} does not fit {table}: {reason}. Nothing was written.")


class TableUnusableError(PermanentError):
    """A table or column is missing in the database, or the privilege to write it, or a rule there refuses the rows.

    Args:
        cause: the database's reason.
    """

    def __init__(self, cause: object) -> None:
        reason = " ".join(str(cause).split())[:300]
        super().__init__(
            f"The database refuses to store: {reason}. Correct its tables (columns, constraints, triggers), or the"
            " rights of our user there."
        )


class MessageTooLargeError(PermanentError):
    """The broker rejects a message for its size.

    Args:
        topic: topic of the message.
        cause: the broker's reason, with the counts of the call.
    """

    def __init__(self, topic: str, cause: object) -> None:
        self.topic = topic
        super().__init__(f"A message to {topic} is too large: {cause}. Raise max.message.bytes of the topic.")


class QueryRejectedError(PermanentError):
    """Eventhouse rejects a query, or its answer can never be used.

    Args:
        subject: the query and its cluster.
        cause: Eventhouse's reason, shortened.
        remedy: one sentence.
    """

    def __init__(self, subject: str, cause: object, remedy: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} was refused: {cause}. {remedy}")


class SkippedByOperatorError(PermanentError):
    """An operator skipped a message.

    Args:
        asked_by: the operator.
        reason: the operator's reason.
    """

    def __init__(self, asked_by: str, reason: str) -> None:
        super().__init__(f"Skipped by {asked_by}: {reason}")


class VersionSupersededError(PermanentError):
    """The source has a version of a file other than the announced one, which no longer exists.

    Args:
        location: location of the file.
        detail: the two versions.
    """

    def __init__(self, location: str, detail: str) -> None:
        self.location = location
        super().__init__(f"{location} changed before it was read: {detail}. A new file event brings the new version.")


class UnexpectedError(PermanentError):
    """A defect of ours that one file caused.

    Args:
        doing: the action, e.g. "Reading the file".
        cause: the exception; the log has its traceback.
    """

    def __init__(self, doing: str, cause: BaseException) -> None:
        first_line = next(iter(str(cause).splitlines()), "")
        super().__init__(f"{doing} failed unexpectedly: {type(cause).__name__}: {first_line[:200]}. See the run's log.")


class SourceUnreachableError(TransientError):
    """A source cannot be listed or read now."""

    def __init__(self, location: str, cause: object) -> None:
        self.location = location
        super().__init__(f"Cannot read {location}: {cause}. Check that it is reachable from this host.")


class SourceChangedError(TransientError):
    """A file changed while it was read, or its source does not yet have the announced version."""

    def __init__(self, location: str, detail: str) -> None:
        self.location = location
        super().__init__(f"{location} changed: {detail}. A new file event brings the new version.")


class BrokerUnavailableError(TransientError):
    """Kafka does not answer, or rejected a write.

    Args:
        servers: addresses of the brokers.
        cause: the client's reason.
        remedy: one sentence.
    """

    says = "does not answer"

    def __init__(
        self, servers: str, cause: object, remedy: str = "Start it (ingest dev) or set KAFKA_BOOTSTRAP_SERVERS."
    ) -> None:
        self.servers = servers
        super().__init__(f"Kafka at {servers or '(not configured)'} {self.says}: {cause}. {remedy}")


class BrokerAccessDeniedError(BrokerUnavailableError):
    """Kafka answers, and denies this user a topic or the consumer group."""

    says = "denies access"


class EventhouseUnavailableError(TransientError):
    """Eventhouse does not answer, throttles, or gave an incomplete answer.

    Args:
        cluster: address of the cluster.
        cause: the reason, shortened.
    """

    def __init__(self, cluster: str, cause: object) -> None:
        self.cluster = cluster
        super().__init__(f"Eventhouse at {cluster} does not answer: {cause}. Retried automatically.")


class SchemaRegistryUnavailableError(TransientError):
    """The schema registry does not answer, or refuses.

    Args:
        url: address of the registry.
        cause: the reason, shortened.
    """

    def __init__(self, url: str, cause: object) -> None:
        self.url = url
        reason = " ".join(str(cause).split())[:300]
        super().__init__(
            f"The schema registry at {url} cannot be used: {reason}. Check INGEST_SCHEMA_REGISTRY_URL and its"
            " credentials. Retried automatically."
        )


class DatabaseUnavailableError(TransientError):
    """The warehouse cannot be used now.

    Args:
        address: address of the database, without password.
        cause: the driver's message.
        remedy: one sentence.
        state: state of the database, e.g. `does not answer`.
    """

    def __init__(
        self,
        address: str,
        cause: object,
        remedy: str = "Start it (ingest dev) or set DATABASE_URL.",
        state: str = "does not answer",
    ) -> None:
        self.address = address
        super().__init__(f"The database at {address or '(not configured)'} {state}: {cause}. {remedy}")


class TransactionConflictError(TransientError):
    """Another transaction held a lock or wrote the same rows; a retry of the transaction may succeed.

    Args:
        address: address of the database, without password.
        cause: the database's message.
    """

    def __init__(self, address: str, cause: object) -> None:
        self.address = address
        super().__init__(f"Another writer of {address} conflicted: {cause}. Retried automatically.")


class StoreUnavailableError(TransientError):
    """An object store does not answer or cannot be written: unreachable, access denied, or full.

    Args:
        address: address of the store.
        cause: the reason.
    """

    def __init__(self, address: str, cause: object) -> None:
        self.address = address
        super().__init__(
            f"The store at {address} cannot be used: {cause}. Check that it exists, has free space and grants access."
        )


class WorkerExhaustedError(TransientError):
    """This process ran out of memory, disk space or file handles; later, or with one file alone, there may be enough.

    Args:
        doing: the action, e.g. "Reading the file".
        cause: the exception.
    """

    def __init__(self, doing: str, cause: BaseException) -> None:
        said = next(iter(str(cause).splitlines()), "") or type(cause).__name__
        super().__init__(f"{doing} took more memory, disk or file handles than this worker has: {said[:200]}.")


class AddressRejectedError(PermanentError):
    """A web address that this system may not contact.

    Args:
        url: address without secrets, see `redacted_url`.
        rule: why it is rejected.
        setting: setting that could allow it; None if there is none.
    """

    def __init__(self, url: str, rule: str, setting: str | None = None) -> None:
        self.url = url
        self.rule = rule
        self.setting = setting
        remedy = f" {setting} would allow it." if setting else ""
        super().__init__(f"Refused to contact {url}: {rule}.{remedy}")


class DownloadRejectedError(PermanentError):
    """A web server refused a download for a reason that a retry cannot change.

    Args:
        url: address without secrets.
        reason: the server's answer.
        http_status: status of the answer; None if it was not HTTP.
    """

    def __init__(self, url: str, reason: str, http_status: int | None = None) -> None:
        self.url = url
        self.reason = reason
        self.http_status = http_status
        super().__init__(f"Cannot download {url}: {reason}.")


class DownloadFailedError(TransientError):
    """A web server did not answer, was too slow, disconnected, or requested a pause.

    Args:
        url: address without secrets.
        cause: the failure.
        http_status: status of the answer, if there was one.
        retry_after: pause that the server requested, if any.
        cut: True if the connection broke: the received part is valid, and an immediate retry may succeed.
    """

    def __init__(
        self,
        url: str,
        cause: object,
        http_status: int | None = None,
        retry_after: timedelta | None = None,
        *,
        cut: bool = False,
    ) -> None:
        self.url = url
        self.http_status = http_status
        self.retry_after = retry_after
        self.cut = cut
        super().__init__(f"Downloading {url} failed: {cause}.")


class HostThrottledError(TransientError):
    """A web host is not contacted for a while, because it throttles, keeps failing, or has no free connection.

    Args:
        host: host and port.
        reason: which of these applies.
        retry_after: time until the next attempt.
    """

    def __init__(self, host: str, reason: str, retry_after: timedelta) -> None:
        self.host = host
        self.retry_after = retry_after
        super().__init__(f"{host} is not contacted for {retry_after.total_seconds():.0f} s: {reason}.")
