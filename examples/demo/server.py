"""A small web server on this machine that serves the files of a folder, and of some says at first that it has none."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Collection
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

HOST = "127.0.0.1"


class FileServer:
    """Serves the files of a folder on a free port of the loopback interface, from `with` to its end.

    Args:
        folder: its files are served, not those of folders below.
        withheld: names that are answered with 404 until they are published.
    """

    def __init__(self, folder: Path, withheld: Collection[str] = ()) -> None:
        self._withheld = set(withheld)
        self._server = ThreadingHTTPServer((HOST, 0), self._handler)
        self._server.daemon_threads = True
        self._folder = folder

    def __enter__(self) -> Self:
        """Serve in a thread of its own."""
        threading.Thread(target=self._server.serve_forever, name="demo-web-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def host_and_port(self) -> str:
        """The address in the form of host rules."""
        return f"{HOST}:{self._server.server_port}"

    def url(self, name: str) -> str:
        """Address of one of the files."""
        return f"http://{self.host_and_port}/{quote(name)}"

    def publish(self, name: str) -> None:
        """Serve a withheld file from now on."""
        self._withheld.discard(name)

    def has(self, name: str) -> bool:
        """Return whether the server has a file of this name and does not withhold it."""
        return name not in self._withheld and os.sep not in name and (self._folder / name).is_file()

    def _handler(self, *arguments: Any) -> _Handler:  # noqa: ANN401 - as the server calls it
        return _Handler(*arguments, files=self, directory=str(self._folder))


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, files: FileServer, **options: Any) -> None:  # noqa: ANN401 - as above
        self._files = files
        super().__init__(*arguments, **options)

    def send_head(self) -> io.BytesIO | Any:  # noqa: ANN401 - as the class above has it
        """The file's headers, or 404."""
        if not self._files.has(Path(self.translate_path(self.path)).name):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        """Say nothing: stdout and stderr belong to the demo."""
