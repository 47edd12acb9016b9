"""Checks records of the events topic with the published schemas.

    validate.py SCHEMAS RECORDS

RECORDS has one JSON object a line: {key, value, headers}. Prints {"records": n}, or exits 1 with the first
record that a schema refuses.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator


def main() -> None:
    folder, records = (Path(argument) for argument in sys.argv[1:])
    event = json.loads((folder / "callback-event.schema.json").read_text())
    headers = json.loads((folder / "record-headers.schema.json").read_text())
    # A record of this topic is an event, neither of the two other kinds.
    headers["anyOf"] = [{"$ref": "#/$defs/event"}]
    value_check, header_check = Draft202012Validator(event), Draft202012Validator(headers)
    count = 0
    for line in filter(None, records.read_text().split("\n")):
        record = json.loads(line)
        problems = [
            *value_check.iter_errors(record["value"]),
            *header_check.iter_errors(record["headers"]),
        ]
        data = record["value"]["data"]
        key = data.get("conversationId", data["id"])
        if problems or record["key"] != key or record["headers"]["ce_subject"] != key:
            sys.exit(f"{line}\n{problems}\nkey and ce_subject should be {key}")
        count += 1
    json.dump({"records": count}, sys.stdout)


if __name__ == "__main__":
    main()
