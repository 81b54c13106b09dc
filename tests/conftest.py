"""What all tests may ask for; see ``tests/fixtures``."""

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.roles",
    "tests.fixtures.commands",
    "tests.fixtures.forked_child",
    "tests.fixtures.waiting",
]
