"""What a host starts from that the server has let in: the charter, opened by password, invite or owner's key. Pure.

All raise MalformedMessage for a charter that is not genuine and MembershipError for one that what the user has does not
open: the server then shows another network than the one that was meant.
"""

from __future__ import annotations

from . import keys as key_rules
from .charter import Charter, check_charter
from .epochs import EpochKey, open_grant
from .errors import MembershipError
from .invites import InviteKeys, find_invite
from .keys import Identity, NetworkKeys
from .roster import Roster, RosterState
from .signed import Signed


def by_password(signed: Signed, keys: NetworkKeys) -> RosterState:
    """By name and password."""
    charter = check_charter(signed, None)
    plaintext = None if charter.wrap is None else key_rules.open_secret(keys.wrap_key, charter.wrap)
    if charter.locator != keys.locator:
        plaintext = None
    return _opened(signed, charter, plaintext, "password")


def by_invite(signed: Signed, keys: InviteKeys) -> RosterState:
    """By an invite's code; the network's name is in its settings."""
    charter = check_charter(signed, None)
    invite = find_invite(charter, keys.locator)
    plaintext = None if invite is None else key_rules.open_secret(keys.wrap_key, invite.wrap)
    return _opened(signed, charter, plaintext, "invite")


def by_owner(signed: Signed, owner: Identity) -> RosterState:
    """By the owner's key, which every epoch key is sealed to."""
    charter = check_charter(signed, None)
    plaintext = owner.open_sealed(charter.grants.get(owner.public, b""))
    if charter.owner != owner.public:
        plaintext = None
    return _opened(signed, charter, plaintext, "owner's key")


def rejoin_keys(roster: Roster) -> NetworkKeys:
    """For a member that wants to join again under another identity. Raises MembershipError."""
    locator, wrap_key = roster.charter.locator, roster.settings.wrap_key
    if locator is None or wrap_key is None:
        raise MembershipError("the network has no password at the moment; ask its owner for an invite, then join by it")
    return NetworkKeys(locator, wrap_key)


def _opened(signed: Signed, charter: Charter, plaintext: bytes | None, by: str) -> RosterState:
    key = None if plaintext is None else open_grant(plaintext, key_rules.network_uid(charter.owner), charter.epoch)
    if key is None:
        raise MembershipError(f"the server's answer does not fit the {by}; do not trust this server")
    return RosterState(signed, [EpochKey(charter.epoch, key)], [], {})
