"""What the rendezvous decides, pure: one network's stored document and one request give a new document and an answer.

The service loads the document, calls `apply`, stores the new one by compare-and-swap, and only then answers and
publishes; if somebody else stored meanwhile, it starts over. So the same code serves one node and many.
The document holds no keys: public charter, sealed records, addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

import msgspec

from meshvpn.proto import control
from meshvpn.proto.charter import Charter, check_charter, decode_charter, is_banned, may_sign_for_network
from meshvpn.proto.control import (
    Attach,
    CharterChanged,
    Create,
    Done,
    Goodbye,
    Join,
    MemberChanged,
    MemberEntry,
    MemberLeft,
    PutApproval,
    PutCharter,
    PutLeave,
    PutRecord,
    RefusalCode,
    Refused,
)
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.invites import check_invitation, find_invite
from meshvpn.proto.keys import is_identity, network_uid, verify_detached
from meshvpn.proto.record import check_approval, check_envelope, check_leave
from meshvpn.proto.signed import DOMAIN_SESSION, Signed

ADDRESS_QUARANTINE = 24 * 3600
"""Seconds for which the address of a member that left is not given to another: old records may still say so."""
UNFINISHED_LIFETIME = 3600
"""Seconds after which a join that never published a record is forgotten."""
MAX_FORMER = 4096

Opening = Create | Join | Attach
"""What a connection starts with."""
Answered = Opening | PutRecord | PutCharter | PutApproval | PutLeave
"""The requests that are decided here and answered; the others are passed on."""


class StoredEntry(msgspec.Struct, array_like=True):
    """A member. `joined_at` is Unix seconds."""

    identity: bytes
    address: str
    joined_at: int
    envelope: Signed | None = None
    approval: Signed | None = None
    invitation: Signed | None = None


class NetworkDoc(msgspec.Struct, array_like=True):
    """A network as it is stored."""

    charter: Signed
    founder: bytes
    members: list[StoredEntry]
    former: list[tuple[str, int]]
    """Addresses of those who left, and when (Unix seconds)."""
    uses: dict[bytes, int] = {}
    """How many joined by an invite, by its locator; for those that the charter has."""


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """What a network is told when its document changed. Plain data: it may cross from one node to another."""

    messages: list[control.Response]
    """For every connection of the network but the sender's."""
    goodbyes: dict[bytes, Goodbye] = {}
    """Last words for the connections of these identities, after the messages."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The sender is in: its address, and the network that it is shown."""

    address: str
    charter: Signed
    members: list[MemberEntry]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a request."""

    reply: Done | Refused | Admission
    evidence: Signed | None = None
    """A charter that proves the refusal: the sender gets it first."""
    document: NetworkDoc | None = None
    """To be stored before anybody hears of it; None if nothing changed."""
    notice: Notice | None = None


def uid_of(charter: Signed) -> bytes:
    """The uid of the charter's network. Raises MalformedMessage."""
    return network_uid(decode_charter(charter).owner)


def locator_of(document: NetworkDoc) -> bytes | None:
    """What a joiner asks for; None while the password is retired, and after deletion."""
    charter = decode_charter(document.charter)
    return None if charter.is_deleted else charter.locator


def invites_of(document: NetworkDoc) -> list[bytes]:
    """The locators of its invites."""
    charter = decode_charter(document.charter)
    return [] if charter.is_deleted else [invite.locator for invite in charter.invites]


def is_proof_valid(request: Opening, nonce: bytes) -> bool:
    """True if the sender holds the identity's private key and speaks to this connection."""
    match request:
        case Create(charter=charter):
            try:
                subject = uid_of(charter)
            except MalformedMessage:
                return False
        case Join(locator=locator):
            subject = locator
        case Attach(uid=uid):
            subject = uid
    is_proven = verify_detached(request.identity, request.proof, DOMAIN_SESSION + nonce + subject)
    return is_proven and is_identity(request.identity)


def apply(document: NetworkDoc | None, request: Answered, identity: bytes, *, wall: int) -> Outcome:
    """Decide a request of a connection that has proven `identity`. Never raises on what was sent."""
    if document is not None:
        document = _without_unfinished(document, wall)
    try:
        match request:
            case Create():
                return _create(document, request, wall)
            case Join():
                return _join(document, request, wall)
            case Attach():
                return _attach(document, request)
            case _ if document is None or _find(document, identity) is None:
                return _refuse(request, RefusalCode.NOT_A_MEMBER, "this host is not a member of the network")
            case PutRecord():
                return _put_record(document, request, identity)
            case PutCharter():
                return _put_charter(document, request, identity, wall)
            case PutApproval():
                return _put_approval(document, request)
            case PutLeave():
                return _put_leave(document, request, identity, wall)
    except MalformedMessage as error:
        return _refuse(request, _CODES.get(error.reason, RefusalCode.BAD_REQUEST), f"refused: {error}")


def refuse_locator(request: Answered) -> Outcome:
    """The answer when the document cannot be stored because another network has its locator."""
    return _refuse(
        request, RefusalCode.NETWORK_EXISTS, "a network with that name and password exists already on this server"
    )


_CODES = {
    DropReason.BAD_SIGNATURE: RefusalCode.BAD_SIGNATURE,
    DropReason.STALE: RefusalCode.STALE_CHARTER,
    DropReason.OVER_LIMIT: RefusalCode.TOO_LARGE,
    DropReason.NOT_FOR_US: RefusalCode.NOT_ALLOWED,
}


def _create(document: NetworkDoc | None, request: Create, wall: int) -> Outcome:
    charter = check_charter(request.charter, None)
    if document is not None:
        if document.charter != request.charter or document.founder != request.identity:
            return refuse_locator(request)
        if charter.is_deleted:
            return _refuse(request, RefusalCode.DELETED, _PARTING[RefusalCode.DELETED])
        if is_banned(charter, request.identity):
            return _refuse(request, RefusalCode.EVICTED, _PARTING[RefusalCode.EVICTED])
        # The answer was lost, or the founder died before reading it.
        if _find(document, request.identity) is not None:
            return _welcome(document, request.identity)
        return _admit(document, charter, StoredEntry(request.identity, "", wall), request, wall)
    if charter.version != 1 or charter.evicted or charter.is_deleted or request.charter.signer != charter.owner:
        return _refuse(request, RefusalCode.BAD_REQUEST, "a new network starts with version 1 of its charter")
    created = NetworkDoc(request.charter, request.identity, [], [])
    return _admit(created, charter, StoredEntry(request.identity, "", wall), request, wall)


def _join(document: NetworkDoc | None, request: Join, wall: int) -> Outcome:
    unknown = _refuse(request, RefusalCode.UNKNOWN_NETWORK, _NO_SUCH_NETWORK)
    if request.invitation is not None:
        unknown = _refuse(request, RefusalCode.INVITE_UNKNOWN, "this invite does not exist, or it was revoked")
    elif request.approval is not None:
        unknown = _refuse(request, RefusalCode.UNKNOWN_NETWORK, "this server does not know the network")
    if document is None:
        return unknown
    charter = decode_charter(document.charter)
    if charter.is_deleted:
        return unknown
    if is_banned(charter, request.identity):
        return _refuse(request, RefusalCode.EVICTED, _PARTING[RefusalCode.EVICTED])
    if _find(document, request.identity) is not None:
        return _welcome(document, request.identity)
    if request.approval is not None:
        return _join_approved(document, charter, request, request.approval, wall)
    if charter.access == "locked":
        return _refuse(request, RefusalCode.LOCKED, "the network is locked: its owner admits nobody")
    if request.invitation is not None and find_invite(charter, request.locator) is None:
        return unknown
    if request.invitation is not None:
        return _join_invited(document, charter, request, request.invitation, wall)
    if charter.locator != request.locator:
        # The password was changed while the request waited.
        return unknown
    return _admit(document, charter, StoredEntry(request.identity, "", wall), request, wall)


def _join_approved(document: NetworkDoc, charter: Charter, request: Join, approval: Signed, wall: int) -> Outcome:
    """Whom the owner or an admin approved beforehand needs no password, and may come into a locked network."""
    approved = check_approval(approval, charter).identity
    if approved != request.identity or not may_sign_for_network(charter, approval.signer):
        return _refuse(request, RefusalCode.BAD_SIGNATURE, "the approval is not by the network's owner or an admin")
    return _admit(document, charter, StoredEntry(request.identity, "", wall, None, approval), request, wall)


def _join_invited(document: NetworkDoc, charter: Charter, request: Join, invitation: Signed, wall: int) -> Outcome:
    invite = check_invitation(invitation, request.identity, charter)
    if invite.locator != request.locator:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if invite.expires_at <= wall:
        return _refuse(request, RefusalCode.INVITE_EXPIRED, "this invite has expired; ask for a new one")
    used = document.uses.get(invite.locator, 0)
    if used >= invite.uses:
        text = "this invite was used as often as it may be; ask for a new one"
        return _refuse(request, RefusalCode.INVITE_USED, text)
    counted = msgspec.structs.replace(document, uses={**document.uses, invite.locator: used + 1})
    entry = StoredEntry(request.identity, "", wall, None, None, invitation)
    return _admit(counted, charter, entry, request, wall)


def _attach(document: NetworkDoc | None, request: Attach) -> Outcome:
    if document is None:
        return _refuse(request, RefusalCode.UNKNOWN_NETWORK, "this server does not know the network")
    charter = decode_charter(document.charter)
    # The member sees by the charter for itself that it is out.
    if charter.is_deleted:
        return _refuse(request, RefusalCode.DELETED, _PARTING[RefusalCode.DELETED], evidence=document.charter)
    if is_banned(charter, request.identity):
        return _refuse(request, RefusalCode.EVICTED, _PARTING[RefusalCode.EVICTED], evidence=document.charter)
    if _find(document, request.identity) is None:
        return _refuse(request, RefusalCode.NOT_A_MEMBER, "this host is not a member of the network; join it again")
    return _welcome(document, request.identity)


def _admit(document: NetworkDoc, charter: Charter, entry: StoredEntry, request: Create | Join, wall: int) -> Outcome:
    if len(document.members) >= control.MAX_MEMBERS:
        return _refuse(request, RefusalCode.NETWORK_FULL, f"the network has {control.MAX_MEMBERS} members already")
    former = [(address, left_at) for address, left_at in document.former if wall - left_at < ADDRESS_QUARANTINE]
    address = _free_address(charter, document.members, former)
    if address is None:
        return _refuse(request, RefusalCode.POOL_EXHAUSTED, f"all addresses of {charter.pool} are taken")
    members = [*document.members, msgspec.structs.replace(entry, address=address)]
    updated = msgspec.structs.replace(document, members=members, former=former)
    return Outcome(_welcome(updated, entry.identity).reply, document=updated)


def _without_unfinished(document: NetworkDoc, wall: int) -> NetworkDoc:
    members = [
        entry
        for entry in document.members
        if entry.envelope is not None or wall - entry.joined_at < UNFINISHED_LIFETIME
    ]
    return document if len(members) == len(document.members) else _replace(document, members)


def _free_address(charter: Charter, members: list[StoredEntry], former: list[tuple[str, int]]) -> str | None:
    """The lowest address that nobody has or had lately; of lately left ones the oldest, if there is no other."""
    taken = {entry.address for entry in members}
    resting = {address: left_at for address, left_at in former if address not in taken}
    hosts = IPv4Network(charter.pool).hosts()
    # At most MAX_MEMBERS + MAX_FORMER are passed over, however large the pool.
    for host in hosts:
        if str(host) not in taken and str(host) not in resting:
            return str(host)
    return min(resting, key=lambda address: resting[address], default=None)


def _welcome(document: NetworkDoc, identity: bytes) -> Outcome:
    entry = _find(document, identity)
    assert entry is not None, "whoever is welcomed is a member"
    return Outcome(Admission(entry.address, document.charter, [_shown(member) for member in document.members]))


def _shown(entry: StoredEntry) -> MemberEntry:
    return MemberEntry(entry.identity, entry.address, entry.envelope, entry.approval, entry.invitation)


def _put_record(document: NetworkDoc, request: PutRecord, identity: bytes) -> Outcome:
    charter = decode_charter(document.charter)
    envelope = check_envelope(request.envelope, charter)
    entry = _find(document, identity)
    if entry is None or envelope.identity != identity or envelope.address != entry.address:
        return _refuse(request, RefusalCode.NOT_ALLOWED, "a record must be of the member that sends it")
    if envelope.epoch != charter.epoch:
        return _refuse(request, RefusalCode.STALE_CHARTER, "the record is sealed under an old epoch key")
    changed = msgspec.structs.replace(entry, envelope=request.envelope)
    updated = _replace(document, [changed if other is entry else other for other in document.members])
    notice = Notice([MemberChanged(entry=_shown(changed))])
    return Outcome(Done(rid=request.rid), document=updated, notice=notice)


def _put_charter(document: NetworkDoc, request: PutCharter, identity: bytes, wall: int) -> Outcome:
    charter = check_charter(request.charter, document.charter)
    members = {entry.identity: entry for entry in document.members}
    sealed: dict[bytes, Signed] = {}
    for signed in request.envelopes[: control.MAX_MEMBERS]:
        envelope = check_envelope(signed, charter)
        stored = members.get(envelope.identity)
        if envelope.epoch == charter.epoch and stored is not None and stored.address == envelope.address:
            sealed[envelope.identity] = signed
    staying, leaving = [], []
    for entry in document.members:
        if is_banned(charter, entry.identity):
            leaving.append(entry)
        else:
            staying.append(msgspec.structs.replace(entry, envelope=sealed.get(entry.identity, entry.envelope)))
    former = [*document.former, *((entry.address, wall) for entry in leaving)][-MAX_FORMER:]
    uses = {
        invite.locator: document.uses[invite.locator] for invite in charter.invites if invite.locator in document.uses
    }
    updated = NetworkDoc(request.charter, document.founder, staying, former, uses)
    # Everybody who is banned, member or not: a connection may have outlived its membership.
    banned = [other for other in charter.evicted if is_banned(charter, other)]
    goodbyes = {other: _goodbye(RefusalCode.EVICTED) for other in banned}
    if charter.is_deleted:
        goodbyes = {
            entry.identity: _goodbye(RefusalCode.DELETED) for entry in document.members if entry.identity != identity
        }
    news = CharterChanged(charter=request.charter, members=[_shown(entry) for entry in staying])
    return Outcome(Done(rid=request.rid), document=updated, notice=Notice([news], goodbyes))


def _put_approval(document: NetworkDoc, request: PutApproval) -> Outcome:
    charter = decode_charter(document.charter)
    approval = check_approval(request.approval, charter)
    if not may_sign_for_network(charter, request.approval.signer):
        return _refuse(request, RefusalCode.BAD_SIGNATURE, "the approval is not by the network's owner or an admin")
    entry = _find(document, approval.identity)
    if entry is None:
        return _refuse(request, RefusalCode.NOT_A_MEMBER, "who is approved is not in the network any more")
    changed = msgspec.structs.replace(entry, approval=request.approval)
    updated = _replace(document, [changed if other is entry else other for other in document.members])
    return Outcome(Done(rid=request.rid), document=updated, notice=Notice([MemberChanged(entry=_shown(changed))]))


def _put_leave(document: NetworkDoc, request: PutLeave, identity: bytes, wall: int) -> Outcome:
    leave = check_leave(request.leave, uid_of(document.charter))
    entry = _find(document, identity)
    if entry is None or leave.identity != identity:
        return _refuse(request, RefusalCode.NOT_ALLOWED, "only the member itself can leave")
    updated = _replace(document, [other for other in document.members if other is not entry])
    updated.former = [*document.former, (entry.address, wall)][-MAX_FORMER:]
    goodbyes = {identity: Goodbye(code="left", message="you left the network")}
    notice = Notice([MemberLeft(leave=request.leave)], goodbyes)
    return Outcome(Done(rid=request.rid), document=updated, notice=notice)


_NO_SUCH_NETWORK = "no network with that name and password; check both, or ask its owner"
_PARTING = {
    RefusalCode.EVICTED: "this host was evicted from the network",
    RefusalCode.DELETED: "the network was deleted by its owner",
}


def _goodbye(code: RefusalCode) -> Goodbye:
    return Goodbye(code=code, message=_PARTING[code])


def _replace(document: NetworkDoc, members: list[StoredEntry]) -> NetworkDoc:
    return msgspec.structs.replace(document, members=members)


def _find(document: NetworkDoc, identity: bytes) -> StoredEntry | None:
    return next((entry for entry in document.members if entry.identity == identity), None)


def _refuse(request: Answered, code: RefusalCode, message: str, *, evidence: Signed | None = None) -> Outcome:
    return Outcome(Refused(rid=request.rid, code=code, message=message), evidence=evidence)
