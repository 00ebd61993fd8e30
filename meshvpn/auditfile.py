"""A network's audit list on disk: `audit` in the network's directory, and `audit.1`, where it went on from.

Links are appended and never changed (proto/audit.py says what a link is). What cannot be written waits in memory and is
written with the next one. A list that is damaged is kept aside under another name and reported; the new one begins with
what happens next. The last link is cut off if a crash tore it: what it told is told again, since the state that knows
of it was not saved.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .proto.audit import GENESIS, AuditError, Chain, Entry, read
from .state import set_aside, sync_directory, why

MAX_FILE = 1 << 20
"""Bytes, about 2,000 entries; then the file becomes `audit.1`, in the place of the one before."""
MAX_WAITING = 1 << 18
"""Bytes that wait while the disk is full."""


class AuditFile:
    """Of one network. Appending never raises: `problem` says what is wrong, if something is."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "audit"
        self._older = directory / "audit.1"
        self._damage: str | None = None
        self._failure: str | None = None
        self._waiting = bytearray()
        self._lost = 0
        older, head, _ = self._recover(self._older, None)
        newer, head, size = self._recover(self._file, head or GENESIS)
        self._cut(size)
        self._chain = Chain(head or GENESIS, [*older, *newer])
        self.count = len(older) + len(newer)
        """How many entries there are, those included that a rotation put away since this program started."""

    @property
    def problem(self) -> str | None:
        """One sentence if something needs attention."""
        if self._failure is None:
            return self._damage
        lost = f", {self._lost} entries were lost" if self._lost else ", what happens is kept in memory"
        return f"the audit list cannot be written ({self._failure}){lost}; make room, or mend it"

    def append(self, entry: Entry) -> bool:
        """Keep an entry; when this returns it is on the disk, if that is possible. False: it was there already."""
        self.flush()
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return True
        link = self._chain.link(entry)
        self._waiting += link
        self.count += bool(link)
        self.flush()
        return bool(link)

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        try:
            self._rotate()
            self._write()
            self._failure = None
        except OSError as error:
            self._failure = why(error)

    def entries(self) -> list[Entry]:
        """All that is kept, oldest first; the last one is number `count`. Raises AuditError, OSError."""
        older, head, _ = _read(self._older, None)
        newer, head, _ = _read(self._file, head or GENESIS)
        return [*older, *newer, *read(bytes(self._waiting), head)[0]]

    def _recover(self, file: Path, head: bytes | None) -> tuple[list[Entry], bytes | None, int]:
        try:
            return _read(file, head)
        except (AuditError, OSError) as error:
            problem = why(error) if isinstance(error, OSError) else str(error)
        try:
            self._damage = f"{file} is damaged ({problem}) and was kept as {set_aside(file).name}; a new list was begun"
        except OSError:
            self._damage = f"{file} cannot be used ({problem}); mend it, restart meshvpnd"
        return [], head, 0

    def _cut(self, size: int) -> None:
        """Take off what a crash left of a link: it would hide all that follow."""
        with contextlib.suppress(OSError):  # of a file that is not there, or that no write will succeed on either
            if self._file.stat().st_size > size:
                os.truncate(self._file, size)

    def _rotate(self) -> None:
        if self._file.exists() and self._file.stat().st_size + len(self._waiting) > MAX_FILE:
            self._file.replace(self._older)
            sync_directory(self._file.parent)

    def _write(self) -> None:
        is_new = not self._file.exists()
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(self._waiting):
                    written += os.write(descriptor, self._waiting[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self._file.parent)
        self._waiting.clear()


def _read(file: Path, head: bytes | None) -> tuple[list[Entry], bytes | None, int]:
    """Its entries, the hash of the last link, and how many bytes they take. Raises AuditError, OSError."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return [], head, 0
    return read(data, head) if data else ([], head, 0)
