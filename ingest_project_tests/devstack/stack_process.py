"""A stack in a process of its own, for tests that kill that process.

`python -m ingest_project_tests.devstack.stack_process [DEFINITIONS_MODULE]` prints one JSON line when everything runs,
with the addresses, and stays. Settings come from the environment, as for `ingest dev`.
"""

from __future__ import annotations

import json
import sys

from ingest_project.core.settings import load_settings
from ingest_project.devstack.supervisor import StepState, running_stack


def main() -> int:
    """Run until a stop signal; 130 then, as the command does."""
    definitions_module = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        with running_stack(
            load_settings(), _report, dagster=bool(definitions_module), definitions_module=definitions_module
        ) as stack:
            addresses = {
                "kafka": stack.settings.kafka.bootstrap_servers,
                "database": stack.settings.warehouse.database_url.get_secret_value(),
                "dagster": stack.settings.dagster.postgres_url.get_secret_value(),
                "webserver": stack.webserver_url,
            }
            sys.stdout.write(json.dumps(addresses) + "\n")
            sys.stdout.flush()
            stack.wait()
    except KeyboardInterrupt:
        return 130
    return 0


def _report(step: str, state: StepState) -> None:
    sys.stderr.write(f"{state}: {step}\n")


if __name__ == "__main__":
    sys.exit(main())
