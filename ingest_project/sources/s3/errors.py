"""What S3 and its SDK raise, told in the terms of a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import ClientError

from ingest_project.core.errors import (
    IngestError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)

SERVER_ERRORS = 500
REQUEST_TIMEOUT, TOO_MANY_REQUESTS, PRECONDITION_FAILED, REDIRECTED = 408, 429, 412, 301
CALLED_OFF = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchVersion"})
OTHER_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
LONGEST_CAUSE = 200


@contextmanager
def s3_errors(location: str) -> Iterator[None]:
    """Tell a failure inside the block as a source's.

    Args:
        location: of the bucket or object, for messages.

    Raises:
        SourceNotFoundError: no such bucket or object.
        SourceAccessDeniedError: no credentials, wrong ones, no right, an archived object, another region.
        SourceChangedError: the object is not the version that was asked for.
        SourceUnreachableError: no answer, a cut one, or one that may be another later.
        UnreadableListingError: an answer with a number or a time that is none.
    """
    from botocore.exceptions import (  # noqa: PLC0415 - loaded already where S3 is used
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        raise _failure_of_answer(error, location) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise SourceAccessDeniedError(
            location, "there are no S3 credentials; set INGEST_S3_ACCESS_KEY_ID, or name stored ones in the job"
        ) from error
    except ParamValidationError as error:
        raise SourceNotFoundError(location) from error
    except (BotoCoreError, OSError) as error:
        raise SourceUnreachableError(location, _sentence(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # The SDK reads numbers and times without a guard.
        raise UnreadableListingError(location, f"S3 answered with an impossible value ({_sentence(error)})") from error


def _failure_of_answer(error: ClientError, location: str) -> IngestError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"S3 answered {status} {code}".rstrip()
    if code in NOT_THERE:
        return SourceNotFoundError(location)
    if code in CALLED_OFF or status >= SERVER_ERRORS or status in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
        return SourceUnreachableError(location, said)
    if status == PRECONDITION_FAILED:
        return SourceChangedError(location, "it is not the version any more that was asked for")
    if code in OTHER_REGION or status == REDIRECTED:
        return SourceAccessDeniedError(location, f"{said}; say 'region' in source_config or set INGEST_S3_REGION")
    if code == "InvalidObjectState":
        return SourceAccessDeniedError(location, "it is archived (Glacier); restore it first")
    return SourceAccessDeniedError(location, f"{said}; check the credentials and their rights on this bucket")


def _sentence(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:LONGEST_CAUSE]
