"""What users ask of a node about membership. Each gives the number that its ActionFinished will have, and raises
MembershipError at once for what may not be done."""

from __future__ import annotations

from collections.abc import Callable

from .keys import Identity, NetworkKeys
from .membership import Membership
from .owner import PasswordRule


class Verbs:
    """The part of a Node that these are."""

    membership: Membership

    def _act(self, action: Callable[..., int], *arguments: object, now: float, wall_ns: int) -> int:
        """Carry out a verb of `membership` that gives a request's number. Raises MembershipError."""
        rid = action(*arguments, now=now, wall=wall_ns // 1_000_000_000)
        self._settle(now, wall_ns)
        return rid

    def _settle(self, now: float, wall_ns: int) -> None:
        raise NotImplementedError

    def evict(self, peer: str, password: PasswordRule | NetworkKeys, *, now: float, wall_ns: int) -> int:
        """Put a member out."""
        return self._act(self.membership.evict, peer, password, now=now, wall_ns=wall_ns)

    def unban(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Let an evicted identity join again."""
        return self._act(self.membership.unban, peer, now=now, wall_ns=wall_ns)

    def change_password(self, keys: NetworkKeys, *, now: float, wall_ns: int) -> int:
        """Set a new password."""
        return self._act(self.membership.change_password, keys, now=now, wall_ns=wall_ns)

    def set_access(self, mode: str, *, now: float, wall_ns: int) -> int:
        """Say who may join: open, approve, locked."""
        return self._act(self.membership.set_access, mode, now=now, wall_ns=wall_ns)

    def approve(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Let in who waits for it."""
        return self._act(self.membership.approve, peer, now=now, wall_ns=wall_ns)

    def reject(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Send it away."""
        return self._act(self.membership.reject, peer, now=now, wall_ns=wall_ns)

    def add_admin(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Delegate to a member."""
        return self._act(self.membership.add_admin, peer, now=now, wall_ns=wall_ns)

    def remove_admin(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Take that back."""
        return self._act(self.membership.remove_admin, peer, now=now, wall_ns=wall_ns)

    def invite(self, secret: bytes, uses: int, ttl: int, *, now: float, wall_ns: int) -> int:
        """Let in who has the code of these 16 random bytes, so many times and for so many seconds."""
        return self._act(self.membership.invite, secret, uses, ttl, now=now, wall_ns=wall_ns)

    def revoke_invite(self, text: str, *, now: float, wall_ns: int) -> int:
        """Let nobody in by it any more."""
        return self._act(self.membership.revoke_invite, text, now=now, wall_ns=wall_ns)

    def delete(self, *, now: float, wall_ns: int) -> int:
        """End the network."""
        return self._act(self.membership.delete, now=now, wall_ns=wall_ns)

    def leave(self, *, now: float, wall_ns: int) -> int:
        """Leave for good."""
        return self._act(self.membership.leave, now=now, wall_ns=wall_ns)

    def import_owner(self, key: Identity) -> None:
        """From now on this host may do what the owner may. Raises MembershipError."""
        self.membership.import_owner(key)
