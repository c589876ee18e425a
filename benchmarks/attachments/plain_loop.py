"""The minimum that a custom script does: download and store by the same SDK, several files in parallel.

    python -m benchmarks.attachments.plain_loop < {"addresses": […], "folder": "/kept", "store": "http://…", "sas": "…"}

prints the seconds. Nothing is hashed, recorded, published, tried again or kept from replacing something else.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from azure.storage.filedatalake import DataLakeServiceClient

AT_A_TIME = 8
PIECE_BYTES = 1024**2


def measure_loop(folder: Path, addresses: Sequence[str], store: Mapping[str, str]) -> float:
    """Return the seconds that such a script takes in its own process.

    Args:
        folder: where it keeps files on the way, and for good where there is no store; created.
        addresses: of the files.
        store: settings of the attachment store; empty for a folder.
    """
    folder.mkdir()
    task = {
        "addresses": addresses,
        "folder": str(folder),
        "store": store.get("INGEST_ATTACHMENTS_URL"),
        "sas": store.get("INGEST_ONELAKE_SAS_TOKEN"),
    }
    command = [sys.executable, "-m", __name__]
    ended = subprocess.run(command, input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True)
    return float(ended.stdout.splitlines()[-1])


def main() -> None:
    """Run the loop with the arguments on standard input."""
    task = json.load(sys.stdin)
    folder = Path(task["folder"])
    keep = _uploading(task["store"], task["sas"]) if task["store"] else _moving(folder / "kept")
    with requests.Session() as session, ThreadPoolExecutor(AT_A_TIME) as pool:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=AT_A_TIME))

        def one(address: str) -> None:
            path = folder / address.rpartition("/")[2]
            with session.get(address, stream=True, timeout=60) as answer, path.open("wb") as file:
                answer.raise_for_status()
                for piece in answer.iter_content(PIECE_BYTES):
                    file.write(piece)
            keep(path)

        began = time.monotonic()
        list(pool.map(one, task["addresses"]))
        print(time.monotonic() - began)


def _moving(kept: Path) -> Callable[[Path], None]:
    kept.mkdir()

    def move(path: Path) -> None:
        shutil.copy(path, kept)
        path.unlink()

    return move


def _uploading(store: str, sas: str) -> Callable[[Path], None]:
    account, _, rest = store.partition("://")
    host, system, root = rest.split("/", 2)
    service = DataLakeServiceClient(f"{account}://{host}", credential=sas)
    files = service.get_file_system_client(system)

    def upload(path: Path) -> None:
        with path.open("rb") as content:
            files.get_file_client(f"{root}/loop/{path.name}").upload_data(content, overwrite=True)
        path.unlink()

    return upload


if __name__ == "__main__":
    main()
