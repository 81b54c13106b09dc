"""Unique jobs: drain and enqueue with a key on every job, against plain jobs in turns."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "unique", *sys.argv[1:]], prog_name="python -m benchmarks.unique")
