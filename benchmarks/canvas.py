"""A large chord: how long it takes to write, and what its counting costs."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "canvas", *sys.argv[1:]], prog_name="python -m benchmarks.canvas")
