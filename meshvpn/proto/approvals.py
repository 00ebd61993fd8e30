"""Who may take part in a network with access `approve` or `locked`, as one member knows it.

An approval is signed by the owner or an admin and stands alone: it may come with a member's entry, before it, or from
another member. It is worth something as long as who signed it may sign. What a charter says itself (`approved`, the
owner's list of admins) needs none.
"""

from __future__ import annotations

from collections.abc import Iterable

from .charter import Charter, admins_of, is_banned, may_sign_for_network
from .control import MAX_MEMBERS
from .drops import DropReason
from .errors import MalformedMessage
from .record import Approval, check_approval
from .signed import Signed

MAX_APPROVALS = 2 * MAX_MEMBERS


class Approvals:
    """At most one for each identity."""

    def __init__(self, charter: Charter, known: Iterable[Signed]) -> None:
        self._signed: dict[bytes, Signed] = {}
        self._bodies: dict[bytes, Approval] = {}
        self._waived: frozenset[bytes] = frozenset()
        self._signers: frozenset[bytes] = frozenset()
        self.follow(charter)
        for signed in known:
            try:
                self._keep(signed, check_approval(signed, charter))
            except MalformedMessage:
                continue  # our own disk: by somebody who was an admin then

    def follow(self, charter: Charter) -> None:
        """What approvals are worth depends on the charter."""
        admins = [admin for admin in admins_of(charter) if not is_banned(charter, admin)]
        self._signers = frozenset([charter.owner, *admins])
        self._waived = frozenset([*charter.approved, *admins])

    def add(self, signed: Signed, charter: Charter) -> Approval:
        """Keep it. Raises MalformedMessage: stale if the identity is approved already."""
        approval = check_approval(signed, charter)
        if not may_sign_for_network(charter, signed.signer):
            raise MalformedMessage(DropReason.BAD_SIGNATURE)
        if is_banned(charter, approval.identity):
            raise MalformedMessage(DropReason.NOT_FOR_US)
        if self._is_worth(approval.identity):
            raise MalformedMessage(DropReason.STALE)
        if approval.identity not in self._signed and len(self._signed) >= MAX_APPROVALS:
            raise MalformedMessage(DropReason.OVER_LIMIT)
        self._keep(signed, approval)
        return approval

    def has(self, identity: bytes) -> bool:
        """True if somebody who may approved it."""
        return identity in self._waived or self._is_worth(identity)

    def get(self, identity: bytes) -> Signed | None:
        """The approval itself, if it is worth something."""
        return self._signed[identity] if self._is_worth(identity) else None

    def export(self) -> list[Signed]:
        """For the disk and for other members: those that are worth something."""
        return [signed for identity, signed in self._signed.items() if self._is_worth(identity)]

    def used(self, locator: bytes) -> int:
        """How many were approved because they had an invite."""
        return sum(approval.via == locator for approval in self._bodies.values())

    def _keep(self, signed: Signed, approval: Approval) -> None:
        self._signed[approval.identity], self._bodies[approval.identity] = signed, approval

    def _is_worth(self, identity: bytes) -> bool:
        signed = self._signed.get(identity)
        return signed is not None and signed.signer in self._signers
