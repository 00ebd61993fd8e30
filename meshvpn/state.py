"""What a daemon keeps on disk: one directory a network, whole files that are written atomically and checked when read.

    <state dir>/lock                          held by the one daemon that uses the directory
    <state dir>/<network uid, hex>/network    everything about one network (NetworkState), 0600
    <state dir>/<network uid, hex>/audit      who joined, left, was evicted (auditfile.py); audit.1 is its beginning
    <state dir>/<…>.removed                   a network that was left, on its way out

Directories are 0700.

A file is magic(8) ‖ BLAKE2b-32 of the payload ‖ payload (msgpack). One that does not check is kept aside under another
name and reported; it is never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from .proto.errors import MeshError
from .proto.keepalive import INTERVALS
from .proto.roster import RosterState
from .proto.signed import Signed

MAGIC = b"MVSTATE1"
_DIGEST = 32
_FILE = "network"
_REMOVED = ".removed"


class StateError(MeshError):
    """The state directory can't be used; the message says why and what to do."""


class SavedPath(msgspec.Struct, frozen=True, array_like=True):
    """A direct path that worked. `keepalive`: every how many seconds it must be used to be remembered on the way."""

    socket: int
    host: str
    port: int
    keepalive: float = INTERVALS[0]


class NetworkState(msgspec.Struct, kw_only=True):
    """One network. Keys are 32-byte seeds or private keys."""

    name: str
    uid: bytes
    identity: bytes
    tunnel_key: bytes
    owner: bytes | None
    server_url: str
    server_pin: str | None
    nick: str
    interface: str | None
    address: str
    joined_at: int
    roster: RosterState
    own_record: Signed | None = None
    udp_port: int = 0
    is_up: bool = True
    is_pending: bool = False
    """A creation whose outcome is not known: it is asked for again."""
    paths: dict[bytes, SavedPath] = {}

    def __repr__(self) -> str:
        """Without the keys."""
        return f"NetworkState({self.uid.hex()[:8]})"


@dataclass(slots=True)
class Loaded:
    """What was found at start."""

    networks: list[NetworkState] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class StateDir:
    """The directory, locked for this process until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
            if mode & 0o022 and not mode & stat.S_ISVTX:
                problem = (
                    f"can be written by others (mode {stat.S_IMODE(mode):04o}), who could put keys of theirs there"
                )
                raise StateError(f"{path} {problem}; protect it: chmod 700 {path}")
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"{path} cannot be used ({why(error)}); run meshvpnd as root or give another --state-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StateError(
                f"{path} is used by another meshvpnd; stop that one or give another --state-dir"
            ) from error

    def close(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock)

    def of(self, uid: bytes) -> Path:
        """Where a network's files are."""
        return self.path / uid.hex()

    def load(self) -> Loaded:
        """All networks that can be read; damaged files are kept aside and named."""
        loaded = Loaded()
        for directory in sorted(entry for entry in self.path.iterdir() if entry.is_dir()):
            try:
                if directory.suffix == _REMOVED:
                    _delete(directory)
                else:
                    _load_network(directory, loaded)
            except OSError as error:
                what = f"{directory} cannot be used ({why(error)}), so its network stays down"
                loaded.problems.append(f"{what}; mend it, restart meshvpnd")
        return loaded

    def save(self, state: NetworkState) -> None:
        """Write one network; when this returns it is on the disk. Raises StateError; the old file then still stands."""
        directory = self.of(state.uid)
        try:
            is_new = not directory.exists()
            directory.mkdir(mode=0o700, exist_ok=True)
            write_checked(directory / _FILE, msgspec.msgpack.encode(state))
            if is_new:
                sync_directory(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if it is empty
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend it, then try again"
            problem = f"cannot be written ({why(error)})"
            raise StateError(f"{directory} {problem}; what was saved before is intact, {remedy}") from error

    def remove(self, uid: bytes) -> None:
        """Forget a network: after a crash it is there as a whole or gone. Raises StateError."""
        directory = self.of(uid)
        if not directory.exists():
            return
        removed = directory.with_name(directory.name + _REMOVED)
        try:
            if removed.exists():
                _delete(removed)
            directory.rename(removed)
            sync_directory(self.path)
            _delete(removed)
        except OSError as error:
            raise StateError(f"{directory} cannot be removed ({why(error)}); mend it, then restart meshvpnd") from error


def why(error: OSError) -> str:
    """What is wrong, for people."""
    return (error.strerror or str(error)).lower()


def read_checked(file: Path) -> bytes:
    """The payload of a file. Raises StateError if it is not what was written."""
    data = file.read_bytes()
    start = len(MAGIC) + _DIGEST
    payload = data[start:]
    digest = hashlib.blake2b(payload, digest_size=_DIGEST).digest()
    if data[: len(MAGIC)] != MAGIC or not hmac.compare_digest(digest, data[len(MAGIC) : start]):
        raise StateError(f"{file} is damaged")
    return payload


def write_checked(file: Path, payload: bytes) -> None:
    """Replace a file as a whole: after a crash there is the old one or the new one. Raises OSError."""
    temporary = file.with_name(file.name + ".new")
    data = MAGIC + hashlib.blake2b(payload, digest_size=_DIGEST).digest() + payload
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(data)
            output.flush()
            os.fsync(descriptor)
        temporary.rename(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def _load_network(directory: Path, loaded: Loaded) -> None:
    for leftover in directory.glob("*.new"):
        leftover.unlink()
    file = directory / _FILE
    if not file.exists():
        for aside in sorted(directory.glob(f"{_FILE}.damaged-*")):
            loaded.problems.append(
                f"{file} was damaged and is kept as {aside.name}; restore it from a backup or join again"
            )
        return
    for place, mode in ((directory, 0o700), *((found, 0o600) for found in directory.iterdir() if found.is_file())):
        _close(place, mode, loaded)
    try:
        state = msgspec.msgpack.decode(read_checked(file), type=NetworkState)
    except (StateError, msgspec.MsgspecError):
        aside = set_aside(file)
        loaded.problems.append(
            f"{file} is damaged and was kept as {aside.name}; restore it from a backup or join again"
        )
        return
    if directory.name != state.uid.hex():
        loaded.problems.append(f"{directory} is ignored: it is a copy of {state.uid.hex()}; move it elsewhere")
        return
    loaded.networks.append(state)


def _close(place: Path, mode: int, loaded: Loaded) -> None:
    """What is open to others, after a backup was restored for example, is closed: calls go on. Raises OSError."""
    found = stat.S_IMODE(place.lstat().st_mode)
    if found & 0o077 and not place.is_symlink():
        place.chmod(mode)
        what = f"{place} was open to others (mode {found:04o}) and is closed now"
        remedy = "if somebody may have read the keys in it, `meshvpn reidentify` that network"
        loaded.problems.append(f"{what}; {remedy}")


def _delete(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    sync_directory(directory.parent)


def set_aside(file: Path) -> Path:
    """Give a damaged file another name, which nothing else has. Raises OSError."""
    number = 1
    while (aside := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    file.rename(aside)
    sync_directory(file.parent)
    return aside


def sync_directory(directory: Path) -> None:
    """Have names that changed in it survive a crash. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
