"""Where a password comes from: a prompt without echo, a private file, or standard input. Never an argument.

It is kept in a bytearray and wiped when the keys are derived, and this process ends soon after. What judges a new one
(strength.py) works on copies that Python does not let us wipe.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import stat
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

from .. import ipc
from ..proto.errors import ConfigError
from ..proto.keys import MAX_PASSWORD_BYTES, NetworkKeys, check_password, derive_network_keys
from . import strength
from .client import REFUSED, USAGE, Client, CliError

MAX_LINE = MAX_PASSWORD_BYTES + 16
"""Bytes read of a file: enough to see that a password is too long."""


def join_keys(client: Client, name: str, file: str | None) -> NetworkKeys:
    """The keys of name and password; derived here, so that the password never leaves this process."""
    client.check()  # before anybody types a password in vain
    with reported():
        password = read_secret("password", "Password: ", file)
        try:
            return derive_network_keys(name, password)
        finally:
            wipe(password)


def new_keys(client: Client, name: str, file: str | None, *, force: bool) -> NetworkKeys:
    """The same for a password that is chosen now. Raises CliError for one that is as good as none, without `force`."""
    password = new_secret(client, "password", [name], file, force=force)
    with reported():
        try:
            return derive_network_keys(name, password)
        finally:
            wipe(password)


def new_secret(client: Client, what: str, known: list[str], file: str | None, *, force: bool) -> bytearray:
    """A password, or whatever else it is called, that is chosen now and not easily guessed; the caller wipes it.

    `known`, this host's name and all nicks are what whoever guesses tries first.
    """
    networks = client.get("/v1/networks", list[ipc.NetworkView])
    nicks = [nick for network in networks for nick in (network.nick, *(member.nick for member in network.members))]
    known = [*known, socket.gethostname(), *nicks]
    with reported():
        if file is None:
            return _ask_new(what, known, force=force)
        secret = read_secret(what, "", file)
        try:
            _judge(what, secret, known, force=force)
        except (CliError, ConfigError):
            wipe(secret)
            raise
        return secret


def read_secret(what: str, question: str, file: str | None) -> bytearray:
    """A line: typed without echo, or the first one of a file, - for standard input. Raises CliError."""
    if file is None:
        if not is_terminal(sys.stdin):
            raise CliError(f"no terminal to ask for the {what}; give --{what}-file FILE or --{what}-file -", USAGE)
        return _type(question)
    name = "standard input" if file == "-" else file
    try:
        descriptor = 0 if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if file != "-" and stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                raise CliError(f"{file} can be read by others; protect it: chmod 600 {file}", REFUSED)
            return _read_line(descriptor) or bytearray()
        finally:
            if file != "-":
                os.close(descriptor)
    except OSError as error:
        raise CliError(f"{name} cannot be read ({(error.strerror or str(error)).lower()})", USAGE) from error


def wipe(secret: bytearray) -> None:
    """Overwrite it where it is."""
    secret[:] = bytes(len(secret))


def is_terminal(stream: TextIO | None) -> bool:
    """True if somebody sits there; a stream that was closed before the program started is None."""
    return stream is not None and stream.isatty()


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """What goes wrong with a password, in a line."""
    try:
        yield
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error
    except MemoryError as error:
        raise CliError(f"there is too little memory ({error}); make room, then try again", REFUSED) from error


def _ask_new(what: str, known: list[str], *, force: bool) -> bytearray:
    while True:
        secret = read_secret(what, f"New {what} (Enter: one is made for you): ", None)
        if not secret:
            made = strength.generate()
            print(f"The {what} is {made}", file=sys.stderr)
            print(f"({strength.GENERATED_BITS} random bits; note it down, it is not shown again)", file=sys.stderr)
            return bytearray(made.encode())
        try:
            _judge(what, secret, known, force=force)
        except CliError as error:
            wipe(secret)
            print(f"meshvpn: {error}", file=sys.stderr)
            continue
        again = read_secret(what, "Again: ", None)
        is_same = hmac.compare_digest(secret, again)
        wipe(again)
        if is_same:
            return secret
        wipe(secret)
        raise CliError(f"the two {what}s differ; try again", USAGE)


def _judge(what: str, secret: bytearray, known: list[str], *, force: bool) -> None:
    check_password(secret)
    found = strength.judge(secret.decode(), known)
    if found.is_refused and not force:
        raise CliError(f"that {what} is too weak, {found}; choose a longer one, or give --force", REFUSED)
    if found.is_weak:
        print(f"meshvpn: warning: that {what} is weak, {found}", file=sys.stderr)


def _type(question: str) -> bytearray:
    """A line of the terminal, without echo. The library's getpass gives a str, which nobody can wipe."""
    with contextlib.ExitStack() as stack:
        terminal = sys.stdin.fileno()
        with contextlib.suppress(OSError):  # standard input is a terminal, but not that of our session
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            stack.callback(os.close, terminal)
        before = termios.tcgetattr(terminal)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
        try:
            os.write(terminal, question.encode())
            line = _read_line(terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
            os.write(terminal, b"\n")
    if line is None:
        raise CliError("nothing was typed; try again", USAGE)
    return line


def _read_line(descriptor: int) -> bytearray | None:
    """The first line without its end, or None if there is nothing at all. Raises OSError."""
    buffer = bytearray(MAX_LINE)
    filled = 0
    while filled < MAX_LINE and b"\n" not in buffer:
        with memoryview(buffer) as view:
            count = os.readv(descriptor, [view[filled:]])
        if not count:
            break
        filled += count
    if not filled:
        return None
    end = buffer.find(b"\n")
    line = buffer[: filled if end < 0 else end]
    wipe(buffer)
    while line.endswith(b"\r"):
        line.pop()
    return line
