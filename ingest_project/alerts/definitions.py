"""Alerts, as Dagster sees them."""

from __future__ import annotations

import dagster as dg

from ingest_project.alerts.sensor import alerts_sensor

alerts = dg.Definitions(sensors=[alerts_sensor])
