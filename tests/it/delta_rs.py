"""A table as delta-rs, an implementation that is not ours, reads and writes it; prints JSON.

    delta_rs.py TABLE read APP       version, rows, the position of APP, columns that may be null
    delta_rs.py TABLE append DATE    writes one event, with a column of its own and without one of ours
    delta_rs.py TABLE compact        rewrites small files into larger ones
    delta_rs.py TABLE at VERSION     rows of an older version
"""

import json
import sys
from datetime import date, datetime, timezone

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from leave import leave


def read(table: str, app: str) -> dict:
    delta = DeltaTable(table)
    return {
        "version": delta.version(),
        "rows": len(delta.to_pyarrow_table()),
        "position": delta.transaction_version(app),
        "nullable": [field.name for field in delta.schema().fields if field.nullable],
    }


def append(table: str, day: str) -> dict:
    now = datetime(2026, 9, 1, tzinfo=timezone.utc)
    ours = DeltaTable(table).to_pyarrow_table().schema
    row = {
        "event_id": "theirs",
        "event_type": "CONVERSATION_UPDATED",
        "conversation_id": "c-theirs",
        "received_at": now,
        "body": "{}",
        "kafka_partition": 0,
        "kafka_offset": 0,
        "date": date.fromisoformat(day),
    }
    fields = [ours.field(name).remove_metadata() for name in row] + [
        pa.field("their_note", pa.string())
    ]
    columns = {name: [value] for name, value in row.items()} | {
        "their_note": ["kept"]
    }
    data = pa.table(columns, schema=pa.schema(fields))
    # Two conversations in one file, so that removing one leaves the other to be kept.
    other = data.set_column(2, fields[2], pa.array(["c-other"]))
    write_deltalake(
        table, pa.concat_tables([data, other]), mode="append", schema_mode="merge"
    )
    return {"version": DeltaTable(table).version()}


def compact(table: str) -> dict:
    return DeltaTable(table).optimize.compact()


def at(table: str, version: str) -> dict:
    return {"rows": len(DeltaTable(table, version=int(version)).to_pyarrow_table())}


if __name__ == "__main__":
    path, action, *rest = sys.argv[1:]
    answer = {"read": read, "append": append, "compact": compact, "at": at}[action](path, *rest)
    json.dump(answer, sys.stdout, default=str)
    leave()
