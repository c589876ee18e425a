"""The warehouse database: engine, locks, errors, column types, migrations."""
