"""Drain throughput: a real worker, a no-op task; --against raw for the limit."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "drain", *sys.argv[1:]], prog_name="python -m benchmarks.drain")
