"""Whom people mean by a nickname, an address or the start of an identity. All raise MembershipError."""

from __future__ import annotations

from collections.abc import Iterable

from .charter import Invite
from .errors import MembershipError
from .member import Member
from .roster import Roster

MIN_PREFIX = 4
"""Hexadecimal digits of an identity that are enough to name it."""


def find_member(roster: Roster, text: str, own: Iterable[str]) -> Member:
    """A member; `own` is what we are called ourselves."""
    wanted = text.casefold()
    found = [
        member
        for member in roster.members.values()
        if wanted in (member.nick.casefold(), member.address, member.address6) or _is_start(wanted, member.identity)
    ]
    if not found and wanted in {name.casefold() for name in own}:
        raise MembershipError(f"{text} is this host itself; see `meshvpn list` for the others")
    if len(found) != 1:
        problem = "is not a member" if not found else f"fits {len(found)} members"
        raise MembershipError(f"{text} {problem}; see `meshvpn list` for nicknames and addresses")
    return found[0]


def find_banned(roster: Roster, text: str) -> bytes:
    """A banned identity, by its last nick or by identity."""
    wanted = text.casefold()
    found = [
        identity
        for identity, nick in roster.former_nicks().items()
        if wanted == nick.casefold() or _is_start(wanted, identity)
    ]
    if len(found) != 1:
        problem = "is not evicted" if not found else f"fits {len(found)} evicted members; give its identity"
        raise MembershipError(f"{text} {problem}")
    return found[0]


def find_admin(roster: Roster, text: str) -> bytes:
    """An admin, who need not be a member any more."""
    wanted = text.casefold()
    found = [
        identity
        for identity in roster.admins
        if wanted == roster.nick_of(identity).casefold()
        or _is_start(wanted, identity)
        or (identity in roster.members and wanted in _addresses(roster.members[identity]))
    ]
    if len(found) != 1:
        problem = "is no admin" if not found else f"fits {len(found)} admins; give the identity"
        raise MembershipError(f"{text} {problem}")
    return found[0]


def find_invite(roster: Roster, text: str) -> Invite:
    """An invite by the start of its locator."""
    wanted = text.casefold()
    found = [entry for entry in roster.invites if _is_start(wanted, entry.locator)]
    if len(found) != 1:
        problem = "is no open invite" if not found else f"fits {len(found)} invites; give more of it"
        raise MembershipError(f"{text} {problem}")
    return found[0]


def _addresses(member: Member) -> tuple[str, str]:
    return member.address, member.address6


def _is_start(wanted: str, identity: bytes) -> bool:
    return len(wanted) >= MIN_PREFIX and identity.hex().startswith(wanted)
