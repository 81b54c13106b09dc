"""Latency of an idle worker: commit to start, and delay().get()."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "latency", *sys.argv[1:]], prog_name="python -m benchmarks.latency")
