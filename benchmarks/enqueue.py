"""Enqueue: one by one, many, in the caller's transaction, against bare statements."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "enqueue", *sys.argv[1:]], prog_name="python -m benchmarks.enqueue")
