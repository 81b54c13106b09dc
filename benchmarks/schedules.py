"""What 1,000 schedules cost that tick every minute."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "schedules", *sys.argv[1:]], prog_name="python -m benchmarks.schedules")
