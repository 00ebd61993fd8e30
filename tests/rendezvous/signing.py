"""A network as its members sign it: the requests that a server gets. All randomness comes from a seed.

The sealed parts are noise: a server reads none of them.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from meshvpn.proto.charter import AdminSet, Charter
from meshvpn.proto.control import Attach, Create, Join, PutCharter, PutLeave, PutRecord
from meshvpn.proto.invites import InviteKeys, make_invitation, make_invite
from meshvpn.proto.keys import Identity, network_uid
from meshvpn.proto.owner import approval_by, make_leave
from meshvpn.proto.record import Envelope
from meshvpn.proto.signed import DOMAIN_ADMINS, DOMAIN_CHARTER, DOMAIN_ENVELOPE, DOMAIN_SESSION, Signed


def identity(seed: int | str) -> Identity:
    return Identity(random.Random(seed).randbytes(32))


class Network:
    """Its owner's view: the charter that is in force once the server took it."""

    def __init__(self, seed: int = 1, *, pool: str = "10.7.5.0/24", locator: bytes | None = None) -> None:
        self.noise = random.Random(f"network {seed}")
        self.owner = Identity(self.noise.randbytes(32))
        self.founder = Identity(self.noise.randbytes(32))
        self.uid = network_uid(self.owner.public)
        self.charter = Charter(
            format=1,
            owner=self.owner.public,
            version=1,
            issued_at=0,
            locator=locator or self.noise.randbytes(32),
            pool=pool,
            access="open",
            epoch=1,
            evicted={},
            unbanned={},
            admins=None,
            sealed=self.noise.randbytes(60),
            wrap=self.noise.randbytes(120),
            grants={},
        )

    def sign(self, signer: Identity | None = None, **changes: Any) -> Signed:
        """The charter with these changes, which are not kept."""
        changed = msgspec.structs.replace(self.charter, **changes)
        return (signer or self.owner).sign(DOMAIN_CHARTER, msgspec.msgpack.encode(changed))

    def change(self, signer: Identity | None = None, **changes: Any) -> Signed:
        """The next version."""
        self.charter = msgspec.structs.replace(self.charter, **{"version": self.charter.version + 1, **changes})
        return self.sign(signer)

    def evict(self, target: bytes, signer: Identity | None = None) -> Signed:
        """The next version, without this identity and in a new epoch."""
        evicted = {**self.charter.evicted, target: self.charter.version + 1}
        return self.change(signer, evicted=evicted, epoch=self.charter.epoch + 1)

    def unban(self, target: bytes) -> Signed:
        return self.change(unbanned={**self.charter.unbanned, target: self.charter.version + 1})

    def delete(self) -> Signed:
        return self.change(is_deleted=True, locator=None, wrap=None)

    def appoint(self, *admins: bytes, serial: int = 1) -> Signed:
        body = msgspec.msgpack.encode(AdminSet(self.uid, serial, list(admins)))
        return self.change(admins=self.owner.sign(DOMAIN_ADMINS, body))

    def envelope(
        self, member: Identity, address: str, *, signer: Identity | None = None, epoch: int | None = None
    ) -> Signed:
        envelope = Envelope(
            uid=self.uid,
            identity=member.public,
            address=address,
            epoch=self.charter.epoch if epoch is None else epoch,
            sealed=self.noise.randbytes(200),
        )
        return (signer or member).sign(DOMAIN_ENVELOPE, msgspec.msgpack.encode(envelope))

    def create(self, *, nonce: bytes = b"", rid: int = 1, founder: Identity | None = None) -> Create:
        sender = founder or self.founder
        return Create(rid=rid, charter=self.sign(), identity=sender.public, proof=prove(sender, nonce, self.uid))

    def join(self, member: Identity, *, nonce: bytes = b"", rid: int = 1) -> Join:
        locator = self.charter.locator or b""
        return Join(rid=rid, locator=locator, identity=member.public, proof=prove(member, nonce, locator))

    def invite(self, keys: InviteKeys, *, uses: int, expires_at: int) -> Signed:
        """The next version, with this invite beside those that there are."""
        made = make_invite(keys, b"grant", self.noise.randbytes, uses=uses, expires_at=expires_at)
        others = [entry for entry in self.charter.invites if entry.locator != keys.locator]
        return self.change(invites=[*others, made])

    def join_invited(self, member: Identity, keys: InviteKeys, *, invitation: Signed | None = None) -> Join:
        return Join(
            rid=1,
            locator=keys.locator,
            identity=member.public,
            proof=prove(member, b"", keys.locator),
            invitation=invitation or make_invitation(keys, member.public),
        )

    def join_approved(
        self, member: Identity, signer: Identity | None = None, *, approved: Identity | None = None
    ) -> Join:
        approval = approval_by(signer or self.owner, self.uid, (approved or member).public, wall=0)
        proof = prove(member, b"", self.uid)
        return Join(rid=1, locator=self.uid, identity=member.public, proof=proof, approval=approval)

    def attach(self, member: Identity, *, nonce: bytes = b"", rid: int = 1, instance: bytes = b"") -> Attach:
        proof = prove(member, nonce, self.uid)
        return Attach(rid=rid, uid=self.uid, identity=member.public, proof=proof, instance=instance)

    def put_record(self, member: Identity, address: str, *, rid: int = 2) -> PutRecord:
        return PutRecord(rid=rid, envelope=self.envelope(member, address))

    def put_charter(self, charter: Signed, *envelopes: Signed, rid: int = 2) -> PutCharter:
        return PutCharter(rid=rid, charter=charter, envelopes=list(envelopes))

    def put_leave(self, member: Identity, *, rid: int = 2) -> PutLeave:
        return PutLeave(rid=rid, leave=make_leave(self.uid, member, wall=0))


def prove(sender: Identity, nonce: bytes, subject: bytes) -> bytes:
    return sender.sign(DOMAIN_SESSION, nonce + subject).signature
