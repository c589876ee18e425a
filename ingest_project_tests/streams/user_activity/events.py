"""EnrichedEvents to send, and the same as messages that were read."""

from __future__ import annotations

import json
from typing import Any

from ingest_project.platform.kafka.consumer import ConsumerRecord

HOUR = "2026-01-15T10"


def event(event_id: str = "e1", **more: object) -> dict[str, Any]:
    """A valid event; `None` takes a field away."""
    found: dict[str, Any] = {
        "event_id": event_id,
        "request_id": "r1",
        "event_type": "page_view",
        "timestamp": f"{HOUR}:30:45Z",
        "user_id": "user-123",
        "session_id": "session-456",
        "page_url": "https://example.com",
        "event_data": {"button_clicked": "submit", "form_data": {"field1": "value1"}},
        "client_info": {"user_agent": "Mozilla/5.0", "screen_resolution": "1920x1080", "language": "en-US"},
        "service_info": {"service_name": "ingestion-service", "service_version": "1.0.0", "environment": "development"},
        "processing_info": {
            "received_at": f"{HOUR}:30:45.100Z",
            "processed_at": f"{HOUR}:30:45.105Z",
            "processing_ms": 5,
        },
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def encoded(message: object) -> bytes:
    """As JSON."""
    return json.dumps(message).encode()


def received(*payloads: bytes | None) -> list[ConsumerRecord]:
    """As if read from the first offsets of a partition."""
    return [
        ConsumerRecord("user-activity-events", 0, offset, 1_768_473_045_000, None, payload, ())
        for offset, payload in enumerate(payloads)
    ]
