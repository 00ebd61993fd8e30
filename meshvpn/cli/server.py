"""Which rendezvous is meant: --server or the environment, and --server-pin."""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

import typer

from .. import ipc
from .client import USAGE, CliError

Server = Annotated[str | None, typer.Option("--server", help="rendezvous: HOST, HOST:PORT or a URL")]
ServerPin = Annotated[str | None, typer.Option("--server-pin", help="sha256:… of the server's certificate")]

DEFAULT_PORT = 7770
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_NO_PLACE = re.compile(r"[\s@?#\\\x00-\x1f]")
"""Nothing that names a server: a user, a query, a fragment would be dropped without a word."""


def parse_server(text: str | None, pin: str | None) -> ipc.ServerOptions:
    """The server's URL and pin, checked. Raises CliError; what was given is not repeated, it may hold a password."""
    source = "--server" if text else ipc.SERVER_ENVIRONMENT
    text = text or os.environ.get(ipc.SERVER_ENVIRONMENT)
    if not text:
        raise CliError(f"no server; give --server HOST or set {ipc.SERVER_ENVIRONMENT}", USAGE)
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        not host
        or port == 0
        or _NO_PLACE.search(text)
        or parts.scheme not in ("http", "https")
        or parts.path.strip("/")
    ):
        raise CliError(f"{source} is no server; write HOST, HOST:PORT, [IPv6]:PORT or https://HOST:PORT", USAGE)
    if pin is not None and not _PIN.fullmatch(pin.lower()):
        raise CliError(
            "--server-pin is no pin; it is sha256: and 64 hexadecimal digits, as `meshvpn-rendezvous pin` prints it",
            USAGE,
        )
    if pin is not None and parts.scheme == "http":
        raise CliError(
            "--server-pin is of no use with http://, which has no certificate; leave one of them away", USAGE
        )
    shown = f"[{host}]" if ":" in host else host
    return ipc.ServerOptions(
        url=f"{parts.scheme}://{shown}:{port or DEFAULT_PORT}", pin=None if pin is None else pin.lower()
    )
