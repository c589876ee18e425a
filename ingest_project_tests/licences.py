"""The licences of everything that is installed with the project, from the packages' own metadata.

python -m ingest_project_tests.licences > docs/licences.md
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements" / "runtime.txt"
LONGEST_NAME = 40
# Other words for the same, as package authors write them.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 3-Clause OR Apache-2.0": "Apache-2.0 OR BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",
    "ISC License": "ISC",
    "LGPL with exceptions": "LGPL-3.0-or-later",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
INTRODUCTION = """# Licences

What is installed with the project, by `requirements/runtime.txt`, under which licence, as each package says itself. A
test holds this list against what is installed, and every licence against those that are allowed: permissive ones, and
with MPL and LGPL such that ask only for changes to the package itself. `make licences` writes it again.

| Package | Licence |
|---|---|
"""


def locked_packages() -> list[str]:
    """Names in the lock file, those for other platforms too."""
    return sorted(set(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[.*\])?==", LOCK.read_text("utf-8"), re.MULTILINE)))


def licence_of(package: str) -> str | None:
    """Its licence as an SPDX expression, or as the package spells it; None where it is not installed."""
    try:
        said = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if expression := said.get_all("License-Expression"):
        return str(expression[0])
    name = str((said.get_all("License") or [""])[0]).strip()
    if not name or len(name) > LONGEST_NAME or "\n" in name:
        classifiers = [line.split(" :: ") for line in said.get_all("Classifier") or []]
        name = " OR ".join(SPELLINGS.get(parts[-1], parts[-1]) for parts in classifiers if parts[0] == "License")
    return SPELLINGS.get(name, name)


def licences() -> dict[str, str]:
    """Licence by package, of all that are installed here."""
    return {package: licence for package in locked_packages() if (licence := licence_of(package)) is not None}


if __name__ == "__main__":
    sys.stdout.write(INTRODUCTION + "".join(f"| {name} | {licence} |\n" for name, licence in licences().items()))
