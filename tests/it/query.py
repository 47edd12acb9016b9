"""Runs one SQL statement over a lake with DuckDB and its own Delta extension; prints rows as JSON.

    query.py LAKE SQL

The statement sees `communications`, `conversations` and `events`, those of them that exist. Times come as
ISO 8601 text, and whatever else JSON has no type for as text too.
"""

import json
import sys
from pathlib import Path

import duckdb
import duckdb_extension_delta

from leave import leave

TABLES = ("communications", "conversations", "events")


def connect() -> duckdb.DuckDBPyConnection:
    """A connection with the packaged extension; DuckDB would fetch it otherwise."""
    package = Path(duckdb_extension_delta.__file__).parent
    (extension,) = package.glob("extensions/*/delta.duckdb_extension")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"LOAD '{extension}'")
    return connection


def open_lake(lake: str) -> duckdb.DuckDBPyConnection:
    """A connection with a view for each table of the lake."""
    connection = connect()
    for table in TABLES:
        if (Path(lake) / table / "_delta_log").is_dir():
            location = str(Path(lake) / table).replace("'", "''")
            connection.execute(f"CREATE VIEW {table} AS FROM delta_scan('{location}')")
    return connection


def main() -> None:
    lake, sql = sys.argv[1:]
    result = open_lake(lake).execute(sql)
    names = [column[0] for column in result.description]
    rows = [dict(zip(names, row)) for row in result.fetchall()]
    json.dump(rows, sys.stdout, default=str)


if __name__ == "__main__":
    main()
    leave()
