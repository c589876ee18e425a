"""Every error this project raises on purpose, by what should happen next.

    IngestError
    ├── PermanentError            trying again cannot help: quarantine, dead-letter or refuse, with the reason
    │   ├── SettingsError         a setting is unknown, malformed or missing
    │   ├── FileRejectedError          a file breaks the contract as a whole
    │   ├── LimitExceededError         an input is larger than a configured limit (a FileRejectedError)
    │   ├── ForbiddenPathError         a path or address outside what this system may read
    │   ├── SourceNotFoundError         the folder, bucket or file that was named does not exist
    │   ├── SourceAccessDeniedError       a source does not let us in, or is not who it should be
    │   ├── UnreadableListingError  a source answered, and the answer is not a listing that can be read
    │   ├── UnknownCredentialsError    a job names a stored credential that is not configured
    │   ├── SchemaConflictError        rows do not fit the table they are for
    │   ├── MessageTooLargeError       the broker refuses a message for its size
    │   ├── QueryRejectedError          Eventhouse refuses a query: not KQL it can run, not allowed, or not to be paged
    │   ├── AddressRejectedError        a web address that this system may not contact
    │   ├── DownloadRejectedError       a web server answered, and will answer the same again: 404, 403, an empty body
    │   ├── SkippedByOperatorError     a person had a message put aside unseen
    │   ├── VersionSupersededError  the source has another version of a file than the one its event announced
    │   └── UnexpectedError     a defect of ours that one file found; the log has its traceback
    ├── TransientError            the same request may succeed later: retried with back-off
    │   ├── SourceUnreachableError     a source cannot be listed or read at this moment
    │   ├── SourceChangedError         a file changed while it was read, or is not yet the version its event announced
    │   ├── BrokerUnavailableError     Kafka does not answer, or refused a write
    │   ├── EventhouseUnavailableError Eventhouse does not answer, throttles, or gave an answer that cannot be trusted
    │   ├── DatabaseUnavailableError   the warehouse does not answer
    │   ├── TransactionConflictError   another transaction was in the way
    │   ├── StoreUnavailableError      the landing or quarantine store does not answer or is full
    │   ├── WorkerExhaustedError  this process ran out of memory, disk or file handles over one file
    │   ├── DownloadFailedError        a web server did not answer, was too slow, was cut short, or asked to come again
    │   └── HostThrottledError              a web host that is left alone for a while; it was not contacted
    └── UnreadableMessageError         a Kafka message that is not the JSON we agreed on: dead letters, stream goes on

Catch the narrowest class that has an answer, and raise `from` what was caught.
"""

from __future__ import annotations

from datetime import timedelta


class IngestError(Exception):
    """Root of the tree. The message is one line: what happened, to what, and what to do about it."""

    @property
    def error_class(self) -> str:
        """The name stored in ledgers, headers and metrics."""
        return type(self).__name__


class PermanentError(IngestError):
    """Trying again cannot help."""


class TransientError(IngestError):
    """The same request may succeed later."""


class UnreadableMessageError(IngestError):
    """A message that is not what its topic's contract says.

    Args:
        reason: what is wrong, naming the field, without quoting more than a few characters of the value.
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
        limit: the setting that holds the limit, e.g. ``INGEST_MAX_ROW_BYTES``.
        detail: what was too large, with both numbers.
    """

    def __init__(self, limit: str, detail: str) -> None:
        self.limit = limit
        super().__init__("limit_exceeded", f"{detail} (limit: {limit})")


class ForbiddenPathError(PermanentError):
    """A path or address outside what this system may read.

    Args:
        path: as it was asked for.
        reason: why it is refused and which setting would allow it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Refused to read {path!r}: {reason}")


class SourceNotFoundError(PermanentError):
    """The folder, bucket or file that was named does not exist."""

    def __init__(self, location: str) -> None:
        self.location = location
        super().__init__(f"{location} does not exist. Check the path and that this host can see it.")


class SourceAccessDeniedError(PermanentError):
    """A source does not let us in, or is not who it should be.

    Args:
        location: of the source or the file.
        reason: who refuses what, and what would change that; starts in lower case, ends without a full stop.
    """

    def __init__(self, location: str, reason: str) -> None:
        self.location = location
        self.reason = reason
        super().__init__(f"No access to {location}: {reason}.")


class UnreadableListingError(PermanentError):
    """A source answered, and the answer is not a listing that can be read: it may hold files, so it is not empty.

    Args:
        location: of the folder or page.
        seen: what was found instead, for a person; starts in lower case, ends without a full stop.
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
    """Rows do not fit the table they are for.

    Args:
        table: its address.
        column: with its path where it is nested, e.g. `client_info.language`.
        reason: what differs.
    """

    def __init__(self, table: str, column: str, reason: str) -> None:
        self.table = table
        self.column = column
        super().__init__(f"Column {column!r} does not fit {table}: {reason}. Nothing was written.")


class MessageTooLargeError(PermanentError):
    """The broker refuses a message for its size.

    Args:
        topic: it was sent to.
        cause: what was said, with the counts of the call it failed in.
    """

    def __init__(self, topic: str, cause: object) -> None:
        self.topic = topic
        super().__init__(f"A message to {topic} is too large: {cause}. Raise max.message.bytes of the topic.")


class QueryRejectedError(PermanentError):
    """Eventhouse refuses a query, or its answer cannot be used however often it is asked.

    Args:
        subject: which query at which cluster.
        cause: what was said, shortened.
        remedy: one sentence.
    """

    def __init__(self, subject: str, cause: object, remedy: str) -> None:
        self.subject = subject
        super().__init__(f"{subject} was refused: {cause}. {remedy}")


class SkippedByOperatorError(PermanentError):
    """A person had a message put aside unseen.

    Args:
        asked_by: who.
        reason: why.
    """

    def __init__(self, asked_by: str, reason: str) -> None:
        super().__init__(f"Skipped by {asked_by}: {reason}")


class VersionSupersededError(PermanentError):
    """The source has another version of a file than the one its event announced; that one can be had no more.

    Args:
        location: of the file.
        detail: the two versions.
    """

    def __init__(self, location: str, detail: str) -> None:
        self.location = location
        super().__init__(f"{location} changed before it was read: {detail}. A new file event brings the new version.")


class UnexpectedError(PermanentError):
    """A defect of ours that one file found.

    Args:
        doing: what was being done, e.g. "Reading the file".
        cause: the exception; the log has its traceback.
    """

    def __init__(self, doing: str, cause: BaseException) -> None:
        first_line = next(iter(str(cause).splitlines()), "")
        super().__init__(f"{doing} failed unforeseen: {type(cause).__name__}: {first_line[:200]}. See the run's log.")


class SourceUnreachableError(TransientError):
    """A source cannot be listed or read at this moment."""

    def __init__(self, location: str, cause: object) -> None:
        self.location = location
        super().__init__(f"Cannot read {location}: {cause}. Check that it is reachable from this host.")


class SourceChangedError(TransientError):
    """A file changed while it was read, or its source does not yet show the version that was announced."""

    def __init__(self, location: str, detail: str) -> None:
        self.location = location
        super().__init__(f"{location} changed: {detail}. A new file event brings the new version.")


class BrokerUnavailableError(TransientError):
    """Kafka does not answer, or refused a write.

    Args:
        servers: where it should be.
        cause: what was said.
        remedy: one sentence.
    """

    def __init__(
        self, servers: str, cause: object, remedy: str = "Start it (ingest dev) or set KAFKA_BOOTSTRAP_SERVERS."
    ) -> None:
        self.servers = servers
        super().__init__(f"Kafka at {servers or '(not configured)'} does not answer: {cause}. {remedy}")


class EventhouseUnavailableError(TransientError):
    """Eventhouse does not answer, throttles, or gave an answer that cannot be trusted.

    Args:
        cluster: its address.
        cause: what was said, shortened.
    """

    def __init__(self, cluster: str, cause: object) -> None:
        self.cluster = cluster
        super().__init__(f"Eventhouse at {cluster} cannot be asked: {cause}. Asked again by itself.")


class DatabaseUnavailableError(TransientError):
    """The warehouse cannot be used at this moment.

    Args:
        address: of the database, without password.
        cause: what was said.
        remedy: one sentence.
        state: what it does or does not do, e.g. `does not answer`.
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
    """Another transaction was in the way; the same transaction may succeed when it is run again.

    Args:
        address: of the database, without password.
        cause: what the database said.
    """

    def __init__(self, address: str, cause: object) -> None:
        self.address = address
        super().__init__(f"Another writer of {address} was in the way: {cause}. Tried again by itself.")


class StoreUnavailableError(TransientError):
    """The store of bytes does not answer or cannot be written: unreachable, refused, or full.

    Args:
        address: of the store.
        cause: what was said.
    """

    def __init__(self, address: str, cause: object) -> None:
        self.address = address
        super().__init__(
            f"The store at {address} cannot be used: {cause}. Check that it exists, has room and lets us in."
        )


class WorkerExhaustedError(TransientError):
    """This process ran out of memory, disk or file handles; alone, or later, there may be enough.

    Args:
        doing: what was being done, e.g. "Reading the file".
        cause: what was said.
    """

    def __init__(self, doing: str, cause: BaseException) -> None:
        said = next(iter(str(cause).splitlines()), "") or type(cause).__name__
        super().__init__(f"{doing} took more memory, disk or file handles than this worker has: {said[:200]}.")


class AddressRejectedError(PermanentError):
    """A web address that this system may not contact.

    Args:
        url: as it may be printed, see `web.urls.printable_url`.
        rule: why it is refused.
        setting: the setting that would allow it; None when none does.
    """

    def __init__(self, url: str, rule: str, setting: str | None = None) -> None:
        self.url = url
        self.rule = rule
        self.setting = setting
        remedy = f" {setting} would allow it." if setting else ""
        super().__init__(f"Refused to contact {url}: {rule}.{remedy}")


class DownloadRejectedError(PermanentError):
    """A web server answered, and there is no reason to expect another answer later.

    Args:
        url: as it may be printed.
        reason: what it answered.
        http_status: of the answer; None when the answer was not HTTP.
    """

    def __init__(self, url: str, reason: str, http_status: int | None = None) -> None:
        self.url = url
        self.http_status = http_status
        super().__init__(f"Cannot download {url}: {reason}.")


class DownloadFailedError(TransientError):
    """A web server did not answer, was too slow, was cut short, or asked to come again later.

    Args:
        url: as it may be printed.
        cause: what went wrong.
        http_status: of the answer, where there was one.
        retry_after: how long the server asked to be left alone, where it did.
        cut: the connection broke; what came before is good, and asking again at once is worth it.
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
    """A web host that is left alone for a while: it asked for that, keeps failing, or has no free place.

    Args:
        host: host and port.
        reason: which of these.
        retry_after: when to come again.
    """

    def __init__(self, host: str, reason: str, retry_after: timedelta) -> None:
        self.host = host
        self.retry_after = retry_after
        super().__init__(f"{host} is left alone for {retry_after.total_seconds():.0f} s: {reason}.")
