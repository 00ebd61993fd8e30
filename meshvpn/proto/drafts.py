"""How charters are changed: the parts that all changes have in common. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from . import keys as key_rules
from .acts import Kind, make_act, merge_acts
from .charter import MAX_APPROVED, Charter, EpochGrant, Invite, Settings, is_banned, needs_approval
from .errors import MembershipError
from .keys import Entropy, Identity
from .record import Envelope, record_of
from .roster import Roster
from .signed import DOMAIN_CHARTER, DOMAIN_ENVELOPE, Signed


@dataclass(frozen=True, slots=True)
class CharterUpdate:
    """What to publish: the charter and, after a change of epoch, all known records sealed anew."""

    charter: Signed
    envelopes: list[Signed]


def writable(roster: Roster, signer: Identity) -> Charter:
    """What may be changed by this signer. Raises MembershipError."""
    if roster.role(signer) == "member":
        raise MembershipError("you are not the owner of this network; ask the owner to do it")
    if roster.charter.is_deleted:
        raise MembershipError("the network was deleted; `meshvpn leave` removes it here")
    return roster.charter


def current_key(roster: Roster) -> bytes:
    """The epoch's key. Raises MembershipError if we don't have it."""
    roster.settings  # noqa: B018  raises if we don't have it
    return roster.epoch_key


def open_invites(charter: Charter, wall: int) -> list[Invite]:
    """Those that have not expired."""
    return [entry for entry in charter.invites if entry.expires_at > wall]


def next_version(charter: Charter) -> int:
    """Above everything that was merged into the charter, so that what is done now is what came last."""
    return max(charter.version, *charter.evicted.values(), *charter.unbanned.values(), 0) + 1


def rotate(
    roster: Roster,
    signer: Identity,
    founder: Identity,
    own_record: Signed | None,
    charter: Charter,
    secrets: tuple[bytes | None, bytes | None],
    epoch_key: bytes,
    *,
    entropy: Entropy,
    wall: int,
    **changes: Any,
) -> CharterUpdate:
    """A new epoch for everybody whom the charter does not ban and who is not pending."""
    name, epoch, (locator, wrap_key) = roster.settings.name, charter.epoch + 1, secrets
    records = {who: record for who, record in roster.records().items() if not is_banned(charter, who)}
    if own_record is not None:
        records[founder.public] = own_record
    pending = {entry.identity for entry in roster.pending}
    staying = dict.fromkeys(who for who in (founder.public, charter.owner, *records) if who not in pending)
    updated = update(
        roster,
        charter,
        signer,
        wall,
        epoch=epoch,
        locator=locator,
        sealed=seal_settings(epoch_key, Settings(name, wrap_key), entropy),
        wrap=None if wrap_key is None else wrap(wrap_key, roster.uid, epoch, epoch_key, entropy),
        grants={identity: grant(identity, roster.uid, epoch, epoch_key, entropy) for identity in staying},
        # Only who has the code could seal the new key for it; and the evicted may have sent codes out.
        invites=[],
        **changes,
    )
    envelopes = [envelope(signer, record, roster.uid, epoch, epoch_key, entropy) for record in records.values()]
    return CharterUpdate(updated.charter, envelopes)


def act(
    roster: Roster,
    charter: Charter,
    signer: Identity,
    wall: int,
    kind: Kind,
    subject: bytes | None = None,
    *,
    detail: str = "",
    **changes: Any,
) -> CharterUpdate:
    """A change that members read of in their audit lists."""
    nick = "" if subject is None else roster.nick_of(subject)
    made = make_act(signer, roster.uid, kind, current_key(roster), wall=wall, subject=subject, nick=nick, detail=detail)
    return update(roster, charter, signer, wall, acts=merge_acts(charter.acts, [made]), **changes)


def update(roster: Roster, charter: Charter, signer: Identity, wall: int, **changes: Any) -> CharterUpdate:
    """The next version, with these changes."""
    usual = {"version": next_version(roster.charter), "invites": open_invites(charter, wall), "issued_at": wall}
    updated = msgspec.structs.replace(charter, **{**usual, **changes})
    if needs_approval(updated):
        # Whoever is in stays in, whatever becomes of the admin that approved it.
        members = {who for who in roster.approved_members() if not is_banned(updated, who)}
        former = [who for who in updated.approved if who not in members]
        updated = msgspec.structs.replace(updated, approved=sorted([*members, *former][:MAX_APPROVED]))
    return CharterUpdate(sign(updated, signer), [])


def sign(charter: Charter, signer: Identity) -> Signed:
    """As it is published."""
    return signer.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))


def envelope(signer: Identity, record: Signed, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> Signed:
    """Around a record, under an epoch key."""
    about = record_of(record)
    made = Envelope(
        uid=uid,
        identity=about.identity,
        address=about.address,
        epoch=epoch,
        sealed=key_rules.seal_secret(epoch_key, msgspec.msgpack.encode(record), entropy),
    )
    return signer.sign(DOMAIN_ENVELOPE, msgspec.msgpack.encode(made))


def seal_settings(epoch_key: bytes, settings: Settings, entropy: Entropy) -> bytes:
    """For members to read."""
    return key_rules.seal_secret(epoch_key, msgspec.msgpack.encode(settings), entropy)


def wrap(wrap_key: bytes, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> bytes:
    """The epoch key for who joins by password."""
    return key_rules.seal_secret(wrap_key, msgspec.msgpack.encode(EpochGrant(uid, epoch, epoch_key)), entropy)


def grant(identity: bytes, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> bytes:
    """The epoch key for one identity."""
    return key_rules.seal_to_identity(identity, msgspec.msgpack.encode(EpochGrant(uid, epoch, epoch_key)), entropy)
