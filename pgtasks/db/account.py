"""Who runs the server's programs: we ourselves, or as root an account that is not root.

PostgreSQL refuses to run as root. Nobody's permissions are widened for it: what the account cannot
reach is put elsewhere (see ``pgtasks.db.embedded``) or copied (``pgtasks.db.binaries``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgtasks.errors import EmbeddedError

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform != "win32":
    import pwd

# A program that takes longer hangs: initdb needs 1 s here, the end of a crash recovery some more.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user id that runs the server's programs; another one than ours only if we are root."""

    uid: int
    gid: int

    @classmethod
    def ours(cls) -> Account:
        return cls(uid=os.geteuid(), gid=os.getegid())

    @classmethod
    def choose(cls) -> Account:
        """Return the account for a new server: ours; as root postgres, or else nobody."""
        if os.geteuid() != 0:
            return cls.ours()
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(uid=entry.pw_uid, gid=entry.pw_gid)
        raise EmbeddedError(
            "expected an account named 'postgres' or 'nobody', found neither: PostgreSQL does not "
            "run as root, create one with 'useradd --system postgres'"
        )

    @classmethod
    def owner_of(cls, folder: Path) -> Account:
        """Return the account of an existing server, which is the owner of its folder."""
        found = folder.stat()
        if found.st_uid == 0:
            raise EmbeddedError(
                f"folder {str(folder)!r} belongs to root, and PostgreSQL does not run as root: "
                "give it to the account that made it, or remove it"
            )
        if os.geteuid() not in (0, found.st_uid):
            raise EmbeddedError(
                f"folder {str(folder)!r} belongs to uid {found.st_uid}, this process is uid "
                f"{os.geteuid()}: use another folder, 'embedded:///absolute/folder'"
            )
        return cls(uid=found.st_uid, gid=found.st_gid)

    @property
    def is_ours(self) -> bool:
        return self.uid == os.geteuid()

    def check_entry(self) -> None:
        """Refuse a uid without an entry in the password database: initdb fails on it."""
        try:
            pwd.getpwuid(self.uid)
        except KeyError:
            raise EmbeddedError(
                f"uid {self.uid} has no account entry, which initdb needs: add one to /etc/passwd, "
                "or name the DSN of another server"
            ) from None

    def own(self, folder: Path) -> None:
        """Hand over a folder that we have just made."""
        if not self.is_ours:
            os.chown(folder, self.uid, self.gid, follow_symlinks=False)

    def owns_alone(self, folder: Path) -> bool:
        """Tell whether it is a folder, no link, of this account, and closed to all others."""
        found = folder.lstat()
        # 0o040000 is a folder, 0o077 what group and others may do.
        return found.st_uid == self.uid and found.st_mode & 0o170077 == 0o040000

    def can_enter(self, folder: Path) -> bool:
        """Ask the kernel: only it knows of access lists and of all the folders above."""
        if self.is_ours:
            return os.access(folder, os.X_OK)
        return self.run("/bin/sh", "-c", 'test -x "$1"', "sh", folder).returncode == 0

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program as this account and return its exit code and output."""
        # PGDATA, PGPORT and so on are meant for other servers. The output is English, for the log.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_"))}
        # A file, not a pipe: the server inherits it from pg_ctl, and a pipe would not end.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            try:
                done = subprocess.run(
                    [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",  # ours may be closed to the account
                    env=environment | {"LC_ALL": "C"},
                    umask=0o077,
                    timeout=PATIENCE + 5,
                    check=False,
                    user=None if self.is_ours else self.uid,
                    group=None if self.is_ours else self.gid,
                    extra_groups=None if self.is_ours else [],
                )
            except subprocess.TimeoutExpired:
                raise EmbeddedError(
                    f"{str(command[0])!r} has not ended in {PATIENCE + 5:.0f} s"
                ) from None
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read())
