"""Dashboards, alert rules and the table of metrics, generated from the definitions of the metrics, and their tests."""
