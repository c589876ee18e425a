"""One cache of compiled statements for all engines of a test process: hundreds of tests compile the same ones."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

MOST_STATEMENTS = 5_000


class CompiledStatements(UserDict[tuple[object, ...], object]):
    """Statements by the kind of their database, where SQLAlchemy has them by the dialect of each engine."""

    def __getitem__(self, key: tuple[object, ...]) -> object:
        """Return what another engine of the same kind may have compiled."""
        return self.data[_of_any_engine(key)]

    def __contains__(self, key: object) -> bool:
        """Return True if an engine of the same kind has compiled it."""
        return isinstance(key, tuple) and _of_any_engine(key) in self.data

    def __setitem__(self, key: tuple[object, ...], compiled: object) -> None:
        """Keep it for all engines of the same kind."""
        if len(self.data) >= MOST_STATEMENTS:
            self.data.clear()
        self.data[_of_any_engine(key)] = compiled


def _of_any_engine(key: tuple[object, ...]) -> tuple[object, ...]:
    dialect, *statement = key
    assert isinstance(dialect, sa.Dialect)
    return type(dialect), dialect.server_version_info, *statement


@pytest.fixture(scope="session", autouse=True)
def compiled_statements() -> Iterator[None]:
    """Have every connection of this process use the one cache."""
    cache = CompiledStatements()

    def use_cache(connection: sa.Connection) -> None:
        connection.execution_options(compiled_cache=cache)

    sa.event.listen(sa.Engine, "engine_connect", use_cache)
    yield
    sa.event.remove(sa.Engine, "engine_connect", use_cache)
