"""The systems of other tests."""

from __future__ import annotations

from ingest_project_tests.file_ingest.datasets.system import weather
from ingest_project_tests.streams.crm.conftest import crm
from ingest_project_tests.streams.user_activity.conftest import activity, environ

__all__ = ["activity", "crm", "environ", "weather"]
