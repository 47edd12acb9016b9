"""Compares a lake with the truth, field by field, as three readers that are not ours see it.

    compare.py LAKE TRUTH VIEWS

TRUTH is the answer of `GET /emulator/truth`; VIEWS is what `convolake sql` printed for the lake. Prints a
JSON report: rows by reader, and the first differences. Exits 1 where there is any: a conversation or
communication that is missing, invented or there twice, or a field that differs.
"""

import json
import re
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow
from deltalake import DeltaTable

from leave import leave
from query import open_lake

TIMES = {"occurred_at", "created_at", "updated_at"}
COMMUNICATION = [
    "conversation_id",
    "communication_id",
    "account_id",
    "position",
    "channel",
    "author_participant_id",
    "author_type",
    "author_address",
    "author_channel",
    "content_type",
    "text",
    "channel_id",
    "resource_id",
    "occurred_at",
    "created_at",
    "updated_at",
]
CONVERSATION = [
    "conversation_id",
    "account_id",
    "status",
    "completeness",
    "communications",
    "created_at",
    "updated_at",
]
TABLES = {
    "communications": (COMMUNICATION, ("conversation_id", "communication_id")),
    "conversations": (CONVERSATION, ("conversation_id",)),
}
# So many differences are shown; the rest is counted.
SHOWN = 20


def micros(text: str | None) -> int | None:
    """RFC 3339 in UTC as microseconds; finer digits are cut off, as the columns cut them."""
    if text is None:
        return None
    match = re.fullmatch(r"([^.Z]+)(?:\.(\d+))?Z", text)
    assert match, f"not a time in UTC: {text}"
    seconds = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc).timestamp()
    return int(seconds) * 1_000_000 + int((match[2] or "").ljust(6, "0")[:6])


def channel(communication: dict, participants: dict) -> str:
    """The rule: its own, its author's, a recipient's, the author's only address, speech is VOICE."""
    author = communication.get("author") or {}
    recipients = communication.get("recipients") or []
    participant = participants.get(author.get("participantId")) or {}
    addresses = participant.get("addresses") or []
    content = communication.get("content") or {}
    candidates = [
        communication.get("channel"),
        author.get("channel"),
        *(recipient.get("channel") for recipient in recipients),
        addresses[0].get("channel") if len(addresses) == 1 else None,
        "VOICE" if content.get("type") == "TRANSCRIPTION" else None,
    ]
    found = next((name for name in candidates if name), "UNKNOWN")
    return found if re.fullmatch(r"[A-Z0-9_]{1,32}", found) else "UNKNOWN"


def expected(truth: dict) -> dict[str, list[dict]]:
    """The rows that the truth calls for, by table."""
    rows = {"communications": [], "conversations": []}
    for conversation in truth["conversations"]:
        communications = conversation["communications"]
        rows["conversations"].append(
            {
                "conversation_id": conversation["id"],
                "account_id": conversation["accountId"],
                "status": "CLOSED",
                "completeness": "COMPLETE",
                "communications": len(communications),
                "created_at": micros(conversation["createdAt"]),
                "updated_at": micros(conversation["updatedAt"]),
            }
        )
        participants = {p["id"]: p for p in conversation.get("participants") or []}
        made = [communication_row(c, participants) for c in communications]
        made.sort(key=lambda r: (r["occurred_at"], r["created_at"], r["communication_id"]))
        rows["communications"] += [row | {"position": n} for n, row in enumerate(made)]
    return rows


def communication_row(communication: dict, participants: dict) -> dict:
    """One row, but for its position."""
    author = communication.get("author") or {}
    content = communication.get("content") or {}
    participant = participants.get(author.get("participantId")) or {}
    return {
        "conversation_id": communication["conversationId"],
        "communication_id": communication["id"],
        "account_id": communication["accountId"],
        "channel": channel(communication, participants),
        "author_participant_id": author.get("participantId"),
        "author_type": participant.get("type"),
        "author_address": author.get("address"),
        "author_channel": author.get("channel"),
        "content_type": content.get("type"),
        "text": content.get("text", communication.get("body")),
        "channel_id": communication.get("channelId"),
        "resource_id": communication.get("resourceId"),
        "occurred_at": micros(communication.get("occurredAt")),
        "created_at": micros(communication.get("createdAt")),
        "updated_at": micros(communication.get("updatedAt")),
    }


def read_duckdb(connection: duckdb.DuckDBPyConnection, table: str) -> list[dict]:
    """The table's rows by the view of its name."""
    names = TABLES[table][0]
    columns = [f"epoch_us({name})" if name in TIMES else name for name in names]
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
    return [dict(zip(names, row)) for row in rows]


def read_deltalake(lake: str, table: str) -> list[dict]:
    """The table's rows by delta-rs and pyarrow."""
    names = TABLES[table][0]
    data = DeltaTable(str(Path(lake) / table)).to_pyarrow_table(columns=names)
    for name in TIMES.intersection(names):
        column = data.column(name).cast(pyarrow.timestamp("us", "UTC")).cast(pyarrow.int64())
        data = data.set_column(data.column_names.index(name), name, column)
    return data.to_pylist()


def differences(table: str, rows: list[dict], wanted: list[dict]) -> list[dict]:
    """Every way in which the rows are not the wanted ones."""
    names, key = TABLES[table]
    count = Counter(tuple(row[part] for part in key) for row in rows)
    have = {tuple(row[part] for part in key): row for row in rows}
    want = {tuple(row[part] for part in key): row for row in wanted}
    found = [{"key": k, "is": f"there {n} times"} for k, n in count.items() if n > 1]
    found += [{"key": k, "is": "missing"} for k in want.keys() - have.keys()]
    found += [{"key": k, "is": "invented"} for k in have.keys() - want.keys()]
    for k in sorted(want.keys() & have.keys()):
        fields = {n: [have[k][n], want[k][n]] for n in names if have[k][n] != want[k][n]}
        if fields:
            found.append({"key": k, "is": "different", "lake and truth": fields})
    return found


def main() -> None:
    lake, truth_file, views_file = sys.argv[1:]
    truth = json.loads(Path(truth_file).read_text())
    wanted = expected(truth)
    with_extension = open_lake(lake)
    # Nothing but DuckDB itself: the views are for those who have no Delta extension.
    with_views = duckdb.connect()
    with_views.execute("SET autoinstall_known_extensions = false")
    with_views.execute(Path(views_file).read_text())
    readers = {
        "delta_scan": lambda table: read_duckdb(with_extension, table),
        "views": lambda table: read_duckdb(with_views, table),
        "deltalake": lambda table: read_deltalake(lake, table),
    }
    report = {"conversations": len(truth["conversations"]), "readers": {}}
    failed = False
    for name, read in readers.items():
        report["readers"][name] = {}
        for table in TABLES:
            rows = read(table)
            found = differences(table, rows, wanted[table])
            failed = failed or bool(found)
            report["readers"][name][table] = {
                "rows": len(rows),
                "wanted": len(wanted[table]),
                "differences": len(found),
                "first": found[:SHOWN],
            }
    json.dump(report, sys.stdout, indent=1)
    leave(1 if failed else 0)


if __name__ == "__main__":
    main()
