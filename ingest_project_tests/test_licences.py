"""Every installed package has a reviewed licence, and the list of licences is correct."""

from __future__ import annotations

import re
from pathlib import Path

from ingest_project_tests.licences import INTRODUCTION, licences, locked_packages

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "PSF-2.0", "Zlib"}
# They ask for the source of changes to the package itself, which nobody here makes.
FOR_THE_PACKAGE_ALONE = {"MPL-2.0": None, "LGPL-2.1": {"paramiko"}, "LGPL-3.0-or-later": {"psycopg2-binary"}}


def listed() -> dict[str, str]:
    """Licence by package, as the page says."""
    return dict(re.findall(r"^\| ([a-z0-9][^ ]*) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE))


def test_every_installed_package_has_a_licence_that_is_allowed() -> None:
    found = licences()
    assert len(found) > 100
    for package, licence in found.items():
        for name in re.split(r" (?:AND|OR) |[() ]+", licence):
            packages = FOR_THE_PACKAGE_ALONE.get(name, set())
            allowed = name in PERMISSIVE or packages is None or package in packages
            assert allowed, f"{package} is under {licence!r}: look at it, then allow it here."


def test_the_page_names_every_package_with_its_licence() -> None:
    assert PAGE.read_text("utf-8").startswith(INTRODUCTION)
    page, installed = listed(), licences()
    assert {name: page.get(name) for name in installed} == installed, "make licences"
    assert set(page) <= set(locked_packages()), "make licences"


def test_every_pinned_package_is_pinned_by_its_hashes() -> None:
    for lock in ("runtime.txt", "dev.txt", "kubernetes.txt", "audit.txt", "lock.txt"):
        text = (PAGE.parents[1] / "requirements" / lock).read_text("utf-8")
        pinned = re.findall(
            r"^[a-z0-9][^\n]*==[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
        )
        assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE)), lock


def test_nothing_is_installed_that_is_not_pinned_by_its_hashes() -> None:
    makefile = (PAGE.parents[1] / "Makefile").read_text("utf-8").replace("\\\n", " ")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert len(installs) >= 4
    for line in installs:
        assert "--require-hashes -r requirements/" in line or "--no-deps --no-build-isolation --editable ." in line
    for requirements in (PAGE.parents[1] / "requirements").glob("*.txt"):
        assert "index-url" not in requirements.read_text("utf-8")
