"""The end of a script that has read a lake with pyarrow or DuckDB."""

import os
import sys


def leave(code: int = 0) -> None:
    """Ends the process without the interpreter's teardown, once everything printed is out.

    Threads of pyarrow that are still joinable abort it in the teardown, now and then and after the work is
    done: "terminate called without an active exception" (apache/arrow#34314).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
