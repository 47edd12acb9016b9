"""Runs SQL over the views that `convolake sql` prints; prints, as JSON, the rows of each statement.

    views.py VIEWS_FILE SQL...

VIEWS_FILE holds what the command printed. The packaged Delta extension is loaded, so that both kinds run.
"""

import json
import sys
from pathlib import Path

from leave import leave
from query import connect


def main() -> None:
    views, *statements = sys.argv[1:]
    connection = connect()
    connection.execute(Path(views).read_text())
    answers = []
    for sql in statements:
        result = connection.execute(sql)
        names = [column[0] for column in result.description]
        answers.append([dict(zip(names, row)) for row in result.fetchall()])
    json.dump(answers, sys.stdout, default=str)


if __name__ == "__main__":
    main()
    leave()
