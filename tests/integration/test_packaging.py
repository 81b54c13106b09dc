"""The built wheel works without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import psycopg
import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run(*build, CHECKOUT, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel alone in a fresh venv, and return the venv's bin folder."""
    root = tmp_path_factory.mktemp("venv")
    venv.create(root, with_pip=False)
    install = ["install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", root / "bin/python", *install, wheel, cwd=root)
    # Its dependencies are ours. The .pth comes after pip, who would take our editable pgtasks for
    # an older one to remove; and .pth files that lie in this folder are not read, so the checkout
    # stays out of sight.
    [packages] = root.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return root / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PGTASKS_"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def migration_names() -> list[str]:
    return sorted(path.name for path in (CHECKOUT / "schema/migrations").glob("*.sql"))


def test_wheel_contains_all_sql_and_the_type_marker(wheel):
    sql = {
        f"pgtasks/schema/{path.relative_to(CHECKOUT / 'schema')}"
        for path in (CHECKOUT / "schema").rglob("*.sql")
    }

    contents = set(zipfile.ZipFile(wheel).namelist())

    assert {"pgtasks/py.typed", "pgtasks_cli/__init__.py", "pgtasks/schema/pgtasks.sql"} <= contents
    assert sql <= contents
    assert any(name.startswith("pgtasks/schema/migrations/") for name in contents)
    assert any(name.startswith("pgtasks/schema/statements/") for name in contents)


def test_wheel_contains_nothing_but_the_two_packages(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"pgtasks", "pgtasks_cli"}


def test_installed_packages_are_not_the_checkout(installed, tmp_path):
    code = "import pgtasks, pgtasks_cli; print(pgtasks.__file__); print(pgtasks_cli.__file__)"

    files = run(installed / "python", "-c", code, cwd=tmp_path).split()

    assert all(Path(file).is_relative_to(installed.parent) for file in files), files


def test_migrating_from_the_wheel_twice_is_the_same_as_once(installed, fresh_dsn, tmp_path):
    migrate = [installed / "pgtasks", "migrate", "--dsn", fresh_dsn]

    run(*migrate, cwd=tmp_path)
    with psycopg.connect(fresh_dsn) as connection:
        first = connection.execute("select * from pgtasks.migrations").fetchall()
    run(*migrate, cwd=tmp_path)
    with psycopg.connect(fresh_dsn) as connection:
        second = connection.execute("select * from pgtasks.migrations").fetchall()

    assert len(first) == len(migration_names())
    assert sorted(second) == sorted(first)
