"""Read secrets from Azure Key Vault and AWS Secrets Manager, with the identity of this host.

The SDKs take a second to import, so this module is loaded when the first reference to a vault is read.
"""

from __future__ import annotations

import logging

from ingest_project.core.errors import PermanentError, TransientError

PUBLIC_VAULTS = ".vault.azure.net"
CONNECT_SECONDS, ANSWER_SECONDS, ATTEMPTS = 5, 10, 3
MAX_REASON_LENGTH = 300


class SecretUnavailableError(TransientError):
    """A vault did not answer, or refused a secret for a transient reason."""


def read_key_vault(location: str) -> str:
    """Return a secret of Azure Key Vault.

    Args:
        location: `vault/secret` or `vault/secret/version`; outside the public cloud with the vault's host name.

    Raises:
        PermanentError: the secret does not exist, or has no value.
        SecretUnavailableError: the vault does not answer, or refuses this host's identity.
    """
    from azure.core.exceptions import AzureError, ResourceNotFoundError  # see the module's docstring
    from azure.keyvault.secrets import SecretClient

    from ingest_project.platform.azure.identity import default_credential

    # At INFO, the SDK logs the headers of every request.
    logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
    vault, name, *version = location.split("/")
    host = vault if set(vault) & set(".:") else f"{vault}{PUBLIC_VAULTS}"
    timeouts = {"connection_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
    try:
        with SecretClient(f"https://{host}", default_credential(), **timeouts, retry_total=ATTEMPTS - 1) as client:
            value = client.get_secret(name, *version).value
    except ResourceNotFoundError as error:
        raise PermanentError(f"the vault {vault} has no such secret ({_sentence(error)})") from error
    except (AzureError, ValueError) as error:
        raise SecretUnavailableError(f"the vault {vault} did not give it: {_sentence(error)}") from error
    if not value:
        raise PermanentError("it is empty")
    return value


def read_secrets_manager(secret_id: str) -> str:
    """Return the current version of a secret of AWS Secrets Manager, with boto3's own configuration.

    Args:
        secret_id: name or ARN; an ARN also determines the region.

    Raises:
        PermanentError: the secret does not exist, or is binary.
        SecretUnavailableError: the service does not answer, or refuses this host's identity.
    """
    import boto3  # see the module's docstring
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        connect_timeout=CONNECT_SECONDS, read_timeout=ANSWER_SECONDS, retries={"total_max_attempts": ATTEMPTS}
    )
    region = secret_id.split(":")[3] if secret_id.startswith("arn:") and secret_id.count(":") > 3 else None  # noqa: PLR2004
    try:
        found = (
            boto3.Session(region_name=region)
            .client("secretsmanager", config=config)
            .get_secret_value(SecretId=secret_id)
        )
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        kind = PermanentError if code == "ResourceNotFoundException" else SecretUnavailableError
        raise kind(f"Secrets Manager answered {code}") from error
    except BotoCoreError as error:
        raise SecretUnavailableError(f"Secrets Manager did not give it: {_sentence(error)}") from error
    if not found.get("SecretString"):
        raise PermanentError("it is empty or binary")
    return str(found["SecretString"])


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON_LENGTH].rstrip(". ") or type(error).__name__
