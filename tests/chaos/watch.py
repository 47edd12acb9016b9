"""Reads a lake over and over while others write it; prints what it found once standard input ends.

    watch.py LAKE

Each look takes the newest version of each table that is there and checks, without a line of the writer's
code, that it can be opened; that the log has no gap; that every file it names exists and has a whole
footer with as many rows as the log says; that no Kafka position of `events` is there twice, and that each
position in the log is one past the highest in the rows. Prints {"looks", "versions", "positions" of
`events` by partition, "broken": [...]}.
"""

import json
import re
import sys
import threading
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent.parent / "it"))

import pyarrow.parquet as pq  # noqa: E402
from deltalake import DeltaTable  # noqa: E402
from leave import leave  # noqa: E402

TABLES = ("communications", "conversations", "events")
# So much is told; after it the lake is broken all the same.
TOLD = 20
# Seconds between two looks: the readers of a lake are not to starve its writers.
PAUSE = 0.2


class Reader:
    """What was read of one table, kept by file, since files never change."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.version = -1
        self.files: dict[str, dict[int, list[int]]] = {}
        # Names of Kafka positions, and the entries of the log that were searched for them.
        self.apps: set[str] = set()
        self.searched = -1
        self.known: dict[int, int] = {}

    def look(self) -> list[str]:
        """What is wrong with the newest version; nothing where it was read before."""
        delta = DeltaTable(str(self.table))
        version = delta.version()
        if version < self.version:
            return [f"went back from version {self.version} to {version}"]
        if version == self.version:
            return []
        self.version = version
        adds = delta.get_add_actions(flatten=True)
        rows = dict(zip(adds.column("path").to_pylist(), adds.column("num_records").to_pylist()))
        found = self.gaps() + [text for path in rows for text in self.file(path, rows[path])]
        for gone in self.files.keys() - rows.keys():
            del self.files[gone]
        if self.table.name == "events":
            found += self.positions(delta)
        return [f"version {version}: {text}" for text in found]

    def gaps(self) -> list[str]:
        """Versions that are missing between the oldest and the newest entry of the log."""
        names = (entry.name for entry in (self.table / "_delta_log").iterdir())
        there = sorted(int(name[:20]) for name in names if re.fullmatch(r"\d{20}\.json", name))
        missing = set(range(there[0], there[-1] + 1)) - set(there)
        return [f"the log lacks version {gap}" for gap in sorted(missing)]

    def file(self, path: str, rows: int | None) -> list[str]:
        """Reads a data file that was not read before."""
        if path in self.files:
            return []
        offsets: dict[int, list[int]] = defaultdict(list)
        try:
            with pq.ParquetFile(self.table / unquote(path)) as file:
                if rows is not None and file.metadata.num_rows != rows:
                    return [f"{path}: {file.metadata.num_rows} rows, the log says {rows}"]
                if self.table.name == "events":
                    data = file.read(columns=["kafka_partition", "kafka_offset"])
                    columns = (column.to_pylist() for column in data.columns)
                    for partition, offset in zip(*columns):
                        offsets[partition].append(offset)
        except (OSError, ValueError) as error:
            return [f"{path}: {error}"]
        self.files[path] = offsets
        return []

    def positions(self, delta: DeltaTable) -> list[str]:
        """Offsets that are there twice, and positions that are not one past the highest offset."""
        offsets: dict[int, list[int]] = defaultdict(list)
        for file in self.files.values():
            for partition, some in file.items():
                offsets[partition] += some
        found = []
        positions = self.known = self.named_positions(delta)
        for partition, some in sorted(offsets.items()):
            twice = len(some) - len(set(some))
            if twice:
                found.append(f"partition {partition}: {twice} offsets are there twice")
            # A dead letter or an idle commit moves the position alone, so it may be higher and never lower.
            position = positions.get(partition)
            if position is None or position <= max(some):
                found.append(f"partition {partition}: position {position}, highest offset {max(some)}")
        return found

    def named_positions(self, delta: DeltaTable) -> dict[int, int]:
        """The positions in the log, by partition."""
        for number in range(self.searched + 1, self.version + 1):
            entry = self.table / "_delta_log" / f"{number:020}.json"
            for line in entry.read_text().splitlines():
                named = json.loads(line).get("txn")
                if named and named["appId"].startswith("convolake/"):
                    self.apps.add(named["appId"])
        self.searched = self.version
        found: dict[int, int] = {}
        for app in self.apps:
            partition = app.rsplit("/", 1)[1]
            if partition.isdecimal():
                version = delta.transaction_version(app)
                found[int(partition)] = max(version, found.get(int(partition), -1))
        return found


def main() -> None:
    lake = Path(sys.argv[1])
    over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    readers: dict[str, Reader] = {}
    looks, broken = 0, []
    last = False
    while True:
        # The end is looked at once more, so that the last version is among those that were read.
        last = over.is_set()
        for name in TABLES:
            first = lake / name / "_delta_log" / f"{0:020}.json"
            if name not in readers and first.exists():
                readers[name] = Reader(lake / name)
        for name, reader in readers.items():
            try:
                found = reader.look()
            except Exception as error:  # noqa: BLE001 - whatever keeps a reader out is a finding
                found = [f"cannot be opened: {error}"]
            broken += [f"{name}: {text}" for text in found]
        looks += 1
        if last:
            break
        over.wait(PAUSE)
    versions = {name: reader.version for name, reader in readers.items()}
    positions = readers["events"].known if "events" in readers else {}
    report = {"looks": looks, "versions": versions, "positions": positions, "broken": broken[:TOLD]}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
    leave()
