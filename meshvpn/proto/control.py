"""Messages between a member and the rendezvous: msgpack in binary WebSocket frames, tagged by `t`.

The server says `Welcome` first. A request carries `rid`, a number of the client's choice, and is answered by exactly
one message with the same `rid`: the answer named in its docstring, or `Refused`. A connection belongs to one member of
one network, from `Create`, `Join` or `Attach` on; before that only those three (and none twice) are answered.

`proof` in those three is the identity's Ed25519 signature over DOMAIN_SESSION ‖ Welcome.nonce ‖ network uid (for Join,
whose sender does not know the uid yet: the locator): it shows that the connection holds the identity's private key.
`instance` (clones.py) tells a daemon that came back from one that runs with a copy of its state: while another instance
is connected, who comes is let in only if that one does not answer an `Ask`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from .codec import decode
from .signed import Signed

PROTOCOL_VERSION = 1
MAX_MESSAGE = 13 << 18
"""Bytes of one WebSocket message: MAX_MEMBERS of the largest entries and the largest charter fit (3.1 MiB), so that
members cannot make their network too big to be listed, or an eviction too big to be sent."""
MAX_SIGNAL = 8192
"""Bytes of one Signal payload; an offer of 32 candidates takes about 1,500."""
MAX_MEMBERS = 1024
"""Members of one network."""
MAX_CHARTER = 384 * 1024
"""Bytes of a charter: 1,024 sealed epoch keys (about 120 bytes each), 1,024 evicted and unbanned identities, 2,048
approved ones, 64 invites and 128 acts fit."""
MAX_ENVELOPE = 2048
"""Bytes of a record's envelope; one without subnets and PBX facts takes about 500."""
MAX_RECORD = MAX_ENVELOPE - 256
"""Bytes of a record: its envelope stays below the limit whoever seals it, in every epoch."""
MAX_APPROVAL = 256
"""Bytes of an approval with its signature, which takes about 190, and of a leave."""


# Checked by the parser: a number out of range would only raise when it is packed into a frame or given to a socket.
RelayId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class RefusalCode(StrEnum):
    """Why a request was refused. Clients branch on the code, people read the message."""

    BAD_REQUEST = "bad_request"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_NETWORK = "unknown_network"  # for join also: wrong password; the server can't tell them apart
    NETWORK_EXISTS = "network_exists"  # create: the locator (name and password) is taken
    NOT_A_MEMBER = "not_a_member"
    EVICTED = "evicted"
    INVITE_UNKNOWN = "invite_unknown"  # no such invite, or it was revoked, or an eviction made it void
    INVITE_EXPIRED = "invite_expired"
    INVITE_USED = "invite_used"  # as often as it may be
    LOCKED = "locked"
    NETWORK_FULL = "network_full"
    POOL_EXHAUSTED = "pool_exhausted"
    STALE_CHARTER = "stale_charter"
    NOT_ALLOWED = "not_allowed"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    DELETED = "deleted"
    CLONED = "cloned"  # another host with the same identity is connected
    UNAVAILABLE = "unavailable"  # storage failed; nothing was changed, try again


class RelayGrant(msgspec.Struct, frozen=True, array_like=True):
    """The right to use the server's UDP relay, for the life of the control connection.

    The member binds its UDP address by a STUN Binding request to the server's port with USERNAME
    `"<id as 8 hex digits>:<counter>"` and MESSAGE-INTEGRITY-SHA256 keyed with `key`; the counter only grows. The
    binding expires after RELAY_BINDING_LIFETIME seconds without a further one.
    """

    id: RelayId
    key: bytes  # 32 bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"RelayGrant({self.id})"


RELAY_BINDING_LIFETIME = 120.0
"""Seconds. Four missed refreshes at the 25 s keepalive."""


class MemberEntry(msgspec.Struct, frozen=True, array_like=True):
    """What the server stores and hands out for a member. `envelope` is None until its first record came."""

    identity: bytes
    address: str
    envelope: Signed | None = None
    approval: Signed | None = None
    invitation: Signed | None = None


class PresenceEntry(msgspec.Struct, frozen=True, array_like=True):
    """A member's control connection: its relay id while online, 0 when it went offline."""

    identity: bytes
    relay_id: RelayId


class Welcome(msgspec.Struct, frozen=True, tag_field="t", tag="welcome", kw_only=True):
    """First message of a connection. UDP ports are of the host that the client connected to."""

    version: int
    nonce: bytes  # 32 bytes, fresh
    observed_host: str
    udp_port: Port
    udp_port2: Port
    software: str


class Create(msgspec.Struct, frozen=True, tag_field="t", tag="create", kw_only=True):
    """Register a network. Answer: Attached. Repeating it with the same owner key is not an error."""

    rid: int
    charter: Signed
    identity: bytes
    proof: bytes
    instance: bytes = b""


class Join(msgspec.Struct, frozen=True, tag_field="t", tag="join", kw_only=True):
    """Become a member. Answer: Attached. Repeating it with the same identity gives the same address.

    By the locator of a password; by that of an invite, with the invitation (invites.py); or, for who has an approval
    by the owner or an admin, by uid in the place of a locator: that opens a network whose password is retired, too.
    """

    rid: int
    locator: bytes
    identity: bytes
    proof: bytes
    invitation: Signed | None = None
    approval: Signed | None = None
    instance: bytes = b""


class Attach(msgspec.Struct, frozen=True, tag_field="t", tag="attach", kw_only=True):
    """Come back as a member. Answer: Attached."""

    rid: int
    uid: bytes
    identity: bytes
    proof: bytes
    instance: bytes = b""


class Attached(msgspec.Struct, frozen=True, tag_field="t", tag="attached", kw_only=True):
    """You are in: your address, the charter, everybody's entry, who is online, your relay grant."""

    rid: int
    address: str
    charter: Signed
    members: list[MemberEntry]
    online: list[PresenceEntry]
    relay: RelayGrant


class PutRecord(msgspec.Struct, frozen=True, tag_field="t", tag="put_record", kw_only=True):
    """Publish my record's envelope. Answer: Done; the others get MemberChanged."""

    rid: int
    envelope: Signed


class PutCharter(msgspec.Struct, frozen=True, tag_field="t", tag="put_charter", kw_only=True):
    """Publish a newer charter, with the records sealed anew if the epoch changed.

    Answer: Done; the others get CharterChanged, evicted ones get it too and then Goodbye.
    """

    rid: int
    charter: Signed
    envelopes: list[Signed]


class PutApproval(msgspec.Struct, frozen=True, tag_field="t", tag="put_approval", kw_only=True):
    """Publish an approval of somebody who joined. Answer: Done; the others get MemberChanged."""

    rid: int
    approval: Signed


class PutLeave(msgspec.Struct, frozen=True, tag_field="t", tag="put_leave", kw_only=True):
    """Leave the network for good. Answer: Done, then the connection ends; the others get MemberLeft."""

    rid: int
    leave: Signed


class Signal(msgspec.Struct, frozen=True, tag_field="t", tag="signal", kw_only=True):
    """A sealed message for another member. Not answered and not stored: dropped if that member is offline."""

    to: bytes
    payload: bytes


class Here(msgspec.Struct, frozen=True, tag_field="t", tag="here", kw_only=True):
    """The answer to an Ask; not answered itself."""

    token: int


class Done(msgspec.Struct, frozen=True, tag_field="t", tag="done", kw_only=True):
    """The request was carried out and stored."""

    rid: int


class Refused(msgspec.Struct, frozen=True, tag_field="t", tag="refused", kw_only=True):
    """The request was not carried out; nothing changed."""

    rid: int
    code: str
    message: str


class CharterChanged(msgspec.Struct, frozen=True, tag_field="t", tag="charter_changed", kw_only=True):
    """A newer charter, with all members' entries as they are now."""

    charter: Signed
    members: list[MemberEntry]


class MemberChanged(msgspec.Struct, frozen=True, tag_field="t", tag="member_changed", kw_only=True):
    """A member came new or published a new record."""

    entry: MemberEntry


class MemberLeft(msgspec.Struct, frozen=True, tag_field="t", tag="member_left", kw_only=True):
    """A member left; its own signature is in it."""

    leave: Signed


class Presence(msgspec.Struct, frozen=True, tag_field="t", tag="presence", kw_only=True):
    """A member's control connection came or went."""

    entry: PresenceEntry


class Signalled(msgspec.Struct, frozen=True, tag_field="t", tag="signalled", kw_only=True):
    """A Signal from another member; `source` is set by the server and proven only by what is inside."""

    source: bytes
    payload: bytes


class Ask(msgspec.Struct, frozen=True, tag_field="t", tag="ask", kw_only=True):
    """Another instance of you wants to connect. Are you there yet? Answer with Here at once."""

    token: int


class Goodbye(msgspec.Struct, frozen=True, tag_field="t", tag="goodbye", kw_only=True):
    """Last message before the server closes the connection."""

    code: str
    message: str


Request = Create | Join | Attach | PutRecord | PutCharter | PutApproval | PutLeave | Signal | Here
Response = (
    Welcome
    | Attached
    | Done
    | Refused
    | CharterChanged
    | MemberChanged
    | MemberLeft
    | Presence
    | Signalled
    | Ask
    | Goodbye
)


_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_response_decoder: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)


def encode(message: Request | Response) -> bytes:
    """Serialise a message."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """Parse what a client sent. Raises MalformedMessage, nothing else."""
    return decode(_request_decoder, data, limit=MAX_MESSAGE)


def decode_response(data: bytes) -> Response:
    """Parse what a server sent. Raises MalformedMessage, nothing else."""
    return decode(_response_decoder, data, limit=MAX_MESSAGE)
