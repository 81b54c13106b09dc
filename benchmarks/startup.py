"""Start-up: spawn to first job, idle memory, import time."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "startup", *sys.argv[1:]], prog_name="python -m benchmarks.startup")
