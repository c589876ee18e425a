"""The package stays small enough to navigate. `make size` prints the measured numbers."""

from __future__ import annotations

from pathlib import Path

from ingest_project_tests.size import code_lines, folders

# Lower them with every change that removes files or lines; only a new feature raises them.
MAX_FILES = 285
MAX_LINES = 50_265
# A folder that fits on one screen.
MAX_MODULES = 20


def test_no_folder_has_more_modules_than_fit_on_one_screen() -> None:
    too_many = {folder.name: len(folder.modules) for folder in folders() if len(folder.modules) > MAX_MODULES}
    assert too_many == {}


def test_the_package_has_no_loose_modules() -> None:
    assert folders()[0].modules == ("definitions",)


def test_the_package_does_not_grow() -> None:
    found = folders()
    assert sum(folder.files for folder in found) <= MAX_FILES
    assert sum(folder.lines for folder in found) <= MAX_LINES


def test_blank_lines_comments_and_docstrings_do_not_count_as_code() -> None:
    source = """'Doc'

# Comment
x = 1  # why


def f() -> str:
    '''Doc
    string.'''
    return '''a

b'''
"""
    assert code_lines(source) == 5


def test_the_modules_of_a_folder_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "p" / "inner").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "inner/b.py"):
        (tmp_path / "p" / name).write_text("x = 1\n")
    assert [(f.name, f.modules, f.files, f.lines) for f in folders(tmp_path / "p")] == [
        ("p", ("a",), 2, 2),
        ("p/inner", ("b",), 1, 1),
    ]
