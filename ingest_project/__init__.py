"""Dagster-orchestrated ingestion: files, attachments and events from Kafka into tables, OneLake and Delta."""
