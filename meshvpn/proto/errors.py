"""The exception tree.

    MeshError
    ├── ConfigError         the user's input or file; the message ends with what to write instead
    ├── StateError          our own misuse: an event that the state does not allow
    ├── MalformedMessage    inside proto only: caught at one place a machine, becomes a drop
    ├── MembershipError     a membership action that may not be done (not owner, no such peer, …)
    └── RendezvousError     the server refused, with a code of `control.RefusalCode`

Secrets never appear in an exception.
"""

from __future__ import annotations

from .drops import DropReason


class MeshError(Exception):
    """Base of everything meshvpn raises on purpose."""


class ConfigError(MeshError):
    """A value that the user gave is not usable."""

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        super().__init__(what, problem, remedy)
        self.what = what
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"


class StateError(MeshError):
    """A call that the machine's state does not allow: a bug of ours, never of a peer."""


class MalformedMessage(MeshError):
    """Bytes from the network that do not parse; carries the drop's name."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.value


class MembershipError(MeshError):
    """A membership action that cannot be done; the message is one clear sentence for the user."""


class RendezvousError(MeshError):
    """The rendezvous refused a request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message
