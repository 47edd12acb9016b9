"""What is in a lake, against what is true, read by DuckDB and pyarrow; prints JSON.

    audit.py LAKE TRUTH HASHES [COLUMN…]

Conversations and communications that differ in COLUMNs alone count as `changed`. TRUTH is the answer of `GET /emulator/truth`. Writes the SHA-256 of every archived body to HASHES, one a
line. Prints counts: rows of `events` and repeats of one Kafka position among them (`dup_raw`);
conversations; keys of conversations or communications that are there twice (`dup_view`), that nobody sent
(`invented`), that are missing, that differ from the truth (`torn`); data files that no version ever named
(`orphans`) and that were named and are no more (`replaced`); files of the largest commits that one process can have
under way (`commit_files`).
"""

import json
import sys
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent.parent / "it"))

from compare import TABLES, differences, expected, read_duckdb  # noqa: E402
from deltalake import DeltaTable  # noqa: E402
from leave import leave  # noqa: E402
from query import open_lake  # noqa: E402

# So many differences are shown; the rest is counted.
SHOWN = 5


def unnamed(table: Path) -> tuple[int, int, int]:
    """Data files that no version named, that only older ones name; most files of one version. Nobody cleans the log."""
    live = {unquote(path) for path in DeltaTable(str(table)).get_add_actions(flatten=True).column("path").to_pylist()}
    named, most = set(live), 0
    for entry in (table / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines() if line]
        adds = {unquote(action["add"]["path"]) for action in actions if "add" in action}
        named |= adds
        most = max(most, len(adds))
    files = {str(path.relative_to(table)) for path in table.rglob("*.parquet")}
    files = {name for name in files if not name.startswith("_delta_log")}
    return len(files - named), len(files & named - live), most


def main() -> None:
    lake, truth_file, hashes, *uncompared = sys.argv[1:]
    connection = open_lake(lake)
    report = {}
    events, positions = connection.execute(
        "SELECT count(*), count(DISTINCT (kafka_partition, kafka_offset)) FROM events"
    ).fetchone()
    report |= {"events": events, "dup_raw": events - positions}
    bodies = connection.execute("SELECT DISTINCT sha256(body) FROM events").fetchall()
    Path(hashes).write_text("".join(f"{hash}\n" for (hash,) in bodies))
    wanted = expected(json.loads(Path(truth_file).read_text()))
    counts = dict.fromkeys(("dup_view", "missing", "invented", "torn", "changed"), 0)
    shown = []
    for table in TABLES:
        rows = read_duckdb(connection, table)
        report[table] = len(rows)
        for found in differences(table, rows, wanted[table]):
            if found.get("lake and truth") and found["lake and truth"].keys() <= set(uncompared):
                counts["changed"] += 1
                continue
            kind = {"missing": "missing", "invented": "invented", "different": "torn"}
            counts[kind.get(found["is"], "dup_view")] += 1
            shown.append({"table": table} | found)
    report |= counts | {"first": shown[:SHOWN]}
    tables = [Path(lake) / name for name in ("communications", "conversations", "events")]
    of_communications, of_conversations, of_events = (unnamed(table) for table in tables)
    both = (of_communications, of_conversations, of_events)
    report |= {"orphans": sum(of[0] for of in both), "replaced": sum(of[1] for of in both)}
    # The enricher commits to one table after the other, the archive beside it.
    report["commit_files"] = of_events[2] + max(of_communications[2], of_conversations[2])
    json.dump(report, sys.stdout, default=str)


if __name__ == "__main__":
    main()
    leave()
