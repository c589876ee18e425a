"""What an operator sees and does: status, metrics, readiness, alerts, retention, traces."""
