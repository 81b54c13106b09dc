"""The command line: ``pgtasks``, also ``python -m pgtasks_cli``."""


def main() -> None:
    """Run the command that the arguments of this process name; never returns."""
    from pgtasks_cli.root import cli  # click is loaded by those who run a command

    cli(prog_name="pgtasks")
