"""A pause and another try where the reason may pass: exponential back-off with jitter, within a run."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

from ingest_project.errors import TransientError
from ingest_project.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest_project.settings import RetrySettings

logger = get_logger(__name__)

# A run that waits longer only holds a place that others could use: the ledger asks for it again, minutes later.
PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


def retried(
    action: Callable[[], Result], retries: RetrySettings, sleep: Callable[[float], None] = time.sleep
) -> Result:
    """Do something that may be done twice, again and again while what goes wrong is transient.

    Args:
        action: leaves nothing behind when it fails.
        retries: most attempts, and the pause after each: RETRY_DELAY, doubled each time, with jitter.
        sleep: how to wait.

    Raises:
        TransientError: the last failure, after MAX_RETRIES attempts or a minute of pauses.
    """
    waited = 0.0
    attempt = 1
    while True:
        try:
            return action()
        except TransientError as error:
            pause = jittered(retries.delay(attempt).total_seconds())
            if attempt >= retries.max_attempts or waited + pause > PATIENCE_SECONDS:
                raise
            logger.warning("tried_again", reason=str(error), attempt=attempt, pause_seconds=round(pause, 3))
        sleep(pause)
        waited += pause
        attempt += 1


def jittered(seconds: float) -> float:
    """Between half of a pause and one and a half of it: those who failed together do not come back together."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
