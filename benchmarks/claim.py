"""Claim throughput: SQL alone, no children."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "claim", *sys.argv[1:]], prog_name="python -m benchmarks.claim")
