"""Faults for checks to find, and the results of the checks."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
from dagster import AssetCheckEvaluation

from ingest_project_tests.journeys.system import System


def behind_its_back(system: System, statement: str, *values: object) -> None:
    """Change the system's tables as the system never would."""
    url = system.settings.warehouse.database_url.get_secret_value()
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, values)


def numbers(evaluation: AssetCheckEvaluation) -> dict[str, Any]:
    """The metadata of a result."""
    return {name: value.value for name, value in evaluation.metadata.items()}
