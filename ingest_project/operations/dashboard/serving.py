"""Serves the monitor until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings
from ingest_project.operations.dashboard.app import monitor_app
from ingest_project.operations.dashboard.auth import is_loopback

# Requests that go on when it is told to stop.
GRACE_SECONDS = 3


def serve(settings: Settings, host: str, port: int, started: Callable[[str], None], *, insecure: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C, then end in order.

    Args:
        settings: where everything is, and the token.
        host: address to listen on.
        port: 0 picks a free one.
        started: told the address once it listens.
        insecure: listen beyond this machine although nobody is asked for a token.

    Raises:
        SettingsError: it would be open to others without a token, or the port is taken.
    """
    import uvicorn  # noqa: PLC0415 - only this command serves

    require_protection(settings, host, insecure=insecure)
    app = monitor_app(settings, local_only=is_loopback(host) and not settings.monitor.token)
    listener = _listen(host, port)
    # Its own log would be the one place with another format, and a line for every look.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False
    )
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{listener.getsockname()[1]}/")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def require_protection(settings: Settings, host: str, *, insecure: bool) -> None:
    """Raise SettingsError where everybody on the network could look."""
    if is_loopback(host) or settings.monitor.token or insecure:
        return
    raise SettingsError(
        f"The monitor would be open to everybody who reaches {host}. "
        "Set INGEST_MONITOR_TOKEN, or say --insecure where something else protects it."
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Before the address is told: whoever connects at once waits for the server instead of being refused.
        listener.listen()
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"The monitor cannot listen on {host}:{port}: {error.strerror or error}. "
            "Set INGEST_MONITOR_PORT to another port, or to 0 for a free one."
        ) from error
    return listener
