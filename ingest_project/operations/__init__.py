"""Operations: status, metrics, readiness, alerts, retention, dashboard."""
