"""Where a password comes from: a prompt without echo, a private file, or standard input. Never an argument."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from typing import TextIO

from ..proto.errors import ConfigError
from ..proto.keys import MAX_PASSWORD_BYTES, NetworkKeys, derive_network_keys
from .client import REFUSED, USAGE, Client, CliError

MAX_LINE = MAX_PASSWORD_BYTES + 16
"""Bytes read of a file: enough to see that a password is too long."""


def read_keys(client: Client, name: str, file: str | None, *, is_new: bool) -> NetworkKeys:
    """The keys of name and password; derived here, so that the password never leaves this process."""
    client.check()  # before anybody types a password in vain
    try:
        return derive_network_keys(name, _read(file, is_new=is_new))
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error


def is_terminal(stream: TextIO | None) -> bool:
    """True if somebody sits there; a stream that was closed before the program started is None."""
    return stream is not None and stream.isatty()


def _read(file: str | None, *, is_new: bool) -> str:
    if file is None:
        return _prompt(is_new=is_new)
    name = "standard input" if file == "-" else file
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as opened:
            if file != "-" and stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise CliError(f"{file} can be read by others; protect it: chmod 600 {file}", REFUSED)
            return opened.readline(MAX_LINE).decode().rstrip("\r\n")
    except OSError as error:
        raise CliError(f"{name} cannot be read ({(error.strerror or str(error)).lower()})", USAGE) from error
    except UnicodeDecodeError:  # `from None`: the error carries the password
        raise CliError(f"{name} is not valid UTF-8; check its encoding", USAGE) from None


def _prompt(*, is_new: bool) -> str:
    if not is_terminal(sys.stdin):
        raise CliError("no terminal to ask for the password; give --password-file FILE or --password-file -", USAGE)
    try:
        password = getpass.getpass("Password: ")
        if is_new and getpass.getpass("Again: ") != password:
            raise CliError("the two passwords differ; try again", USAGE)
    except EOFError as error:
        raise CliError("no password was given; try again", USAGE) from error
    return password
