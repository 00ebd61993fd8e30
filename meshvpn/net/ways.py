"""The ways into a network: its password, an invite's code, the owner's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..proto import admission
from ..proto.control_session import Opening, approved_opening, invited_opening, join_opening
from ..proto.invites import InviteKeys
from ..proto.keys import Identity, NetworkKeys, network_uid
from ..proto.owner import approval_by
from ..proto.roster import RosterState
from ..proto.signed import Signed


class Way(Protocol):
    """How the server lets an identity in, and how the charter opens that it then shows."""

    def opening(self, identity: Identity, instance: bytes, *, wall: int) -> Opening:
        """The first request."""

    def open(self, charter: Signed) -> RosterState:
        """Raises MalformedMessage, MembershipError."""


@dataclass(frozen=True, slots=True)
class ByPassword:
    """Whoever knows name and password."""

    keys: NetworkKeys

    def opening(self, identity: Identity, instance: bytes, *, wall: int) -> Opening:
        """See Way."""
        return join_opening(identity, self.keys.locator, instance=instance)

    def open(self, charter: Signed) -> RosterState:
        """See Way."""
        return admission.by_password(charter, self.keys)


@dataclass(frozen=True, slots=True)
class ByInvite:
    """Whoever has the code."""

    keys: InviteKeys

    def opening(self, identity: Identity, instance: bytes, *, wall: int) -> Opening:
        """See Way."""
        return invited_opening(identity, self.keys, instance=instance)

    def open(self, charter: Signed) -> RosterState:
        """See Way."""
        return admission.by_invite(charter, self.keys)


@dataclass(frozen=True, slots=True)
class ByOwner:
    """Whoever holds the network's own key approves itself."""

    owner: Identity

    def opening(self, identity: Identity, instance: bytes, *, wall: int) -> Opening:
        """See Way."""
        uid = network_uid(self.owner.public)
        return approved_opening(
            identity, uid, approval_by(self.owner, uid, identity.public, wall=wall), instance=instance
        )

    def open(self, charter: Signed) -> RosterState:
        """See Way."""
        return admission.by_owner(charter, self.owner)
