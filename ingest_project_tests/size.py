"""Print the files, code lines and modules of each folder of the package: `make size`."""

from __future__ import annotations

import ast
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ingest_project"


@dataclass(frozen=True)
class Folder:
    """The size of one folder, without its subfolders.

    Args:
        name: relative to the package's parent.
        modules: names of its Python files, `__init__` left out.
        files: number of its Python files, `__init__.py` included.
        lines: code lines in them.
    """

    name: str
    modules: tuple[str, ...]
    files: int
    lines: int


def code_lines(source: str) -> int:
    """Count the lines of a module that hold code: no blank lines, comments or docstrings."""
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if (text := line.strip()) and not text.startswith("#")
    }
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            # What is blank or begins with "#" inside of a text is part of it.
            if node.end_lineno != node.lineno:
                lines |= _lines_of(node)
        elif isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as docstring, *_]:
                    docstrings |= _lines_of(docstring)
    return len(lines - docstrings)


def _lines_of(node: ast.expr | ast.stmt) -> set[int]:
    return {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}


@functools.cache
def folders(package: Path = PACKAGE) -> list[Folder]:
    """Measure every folder of a package that has Python files, in the order of their names."""
    found = []
    for folder in [package, *sorted(path for path in package.rglob("*") if path.is_dir())]:
        if sources := sorted(folder.glob("*.py")):
            modules = tuple(path.stem for path in sources if path.stem != "__init__")
            lines = sum(code_lines(path.read_text("utf-8")) for path in sources)
            found.append(Folder(str(folder.relative_to(package.parent)), modules, len(sources), lines))
    return found


def main() -> None:
    """Print a table of the folders and the sum of them."""
    found = folders()
    width = max(len(folder.name) for folder in found)
    sys.stdout.write(f"{'Folder':<{width}}  {'Files':>6}  {'Modules':>7}  {'Lines':>7}\n")
    for one in found:
        sys.stdout.write(f"{one.name:<{width}}  {one.files:>6}  {len(one.modules):>7}  {one.lines:>7,}\n")
    files, modules = sum(one.files for one in found), sum(len(one.modules) for one in found)
    sys.stdout.write(f"{'Total':<{width}}  {files:>6}  {modules:>7}  {sum(one.lines for one in found):>7,}\n")


if __name__ == "__main__":
    main()
