"""The S3 resource of dagster-aws, with clients that wait no longer than the setting says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
from dagster_aws.s3 import S3Resource

from ingest_project.platform.object_store.locations import S3_MAX_ATTEMPTS, S3_TIMEOUT_SECONDS, s3_config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class BoundedS3Resource(S3Resource):
    """What dagster-aws's resource is told, and a time-out, which it knows nothing of.

    Args:
        timeout_seconds: how long a server may be silent, in each attempt.
        proxied: whether the environment's proxies are used.
    """

    max_attempts: int = S3_MAX_ATTEMPTS
    timeout_seconds: float = S3_TIMEOUT_SECONDS
    proxied: bool = True

    def get_client(self) -> S3Client:
        """A client with the same options as those of the stores."""
        return boto3.Session(profile_name=self.profile_name).client(
            "s3",
            region_name=self.region_name,
            use_ssl=self.use_ssl,
            verify=self.verify,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
            config=s3_config(
                self.endpoint_url,
                self.timeout_seconds,
                self.max_attempts,
                unsigned=self.use_unsigned_session,
                proxied=self.proxied,
            ),
        )
