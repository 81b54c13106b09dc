"""Flow: the drain under a limit on 1,000 keys, and how long a tenant waits beside one with a backlog."""

import sys

from pgtasks_cli.bench import command

if __name__ == "__main__":
    command.main(["--only", "flow", *sys.argv[1:]], prog_name="python -m benchmarks.flow")
