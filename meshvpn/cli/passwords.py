"""Where a password comes from: a prompt without echo, a private file, or standard input. Never an argument."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from ..proto.errors import ConfigError
from ..proto.keys import NetworkKeys, derive_network_keys
from .client import REFUSED, USAGE, CliError


def read_keys(name: str, file: str | None, *, is_new: bool) -> NetworkKeys:
    """The keys of name and password; derived here, so that the password never leaves this process."""
    try:
        return derive_network_keys(name, _read(file, is_new=is_new))
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error


def _read(file: str | None, *, is_new: bool) -> str:
    if file is None:
        return _prompt(is_new=is_new)
    if file == "-":
        return sys.stdin.readline().rstrip("\r\n")
    path = Path(file)
    try:
        with path.open(encoding="utf-8") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise CliError(f"{path} can be read by others; protect it: chmod 600 {path}", REFUSED)
            return opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read ({error})", USAGE) from error


def _prompt(*, is_new: bool) -> str:
    if not sys.stdin.isatty():
        raise CliError("no terminal to ask for the password; give --password-file FILE or --password-file -", USAGE)
    password = getpass.getpass("Password: ")
    if is_new and getpass.getpass("Again: ") != password:
        raise CliError("the two passwords differ; try again", USAGE)
    return password
