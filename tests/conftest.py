"""What all tests may ask for; see ``tests/fixtures``."""

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.commands",
    "tests.fixtures.forked_child",
]
