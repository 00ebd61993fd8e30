"""Invites: a code that lets hosts join without the password, a limited number of times and for a limited time. Pure.

A code is 16 random bytes. What follows from it: a locator by which the server finds the network, a key that opens the
epoch key, and a key pair that signs who joins. The charter shows locator, sealed epoch key and public key; whoever sees
those only, members and the server included, can use none of them. Whoever rotates the epoch drops all invites: their
keys are known to no member, and the evicted may have sent codes out.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import msgspec

from . import keys as key_rules
from . import primitives
from .charter import Charter, Invite
from .codec import decode
from .drops import DropReason
from .errors import ConfigError, MalformedMessage
from .keys import Identity, verify
from .signed import DOMAIN_INVITATION, Signed

SECRET = 16
"""Bytes of a code: nobody guesses 128 bits, so no slow hash is needed."""
MAX_USES = 1000
MAX_TTL = 365 * 24 * 3600
"""Seconds."""
MAX_INVITATION = 128
"""Bytes of an invitation's body; it takes about 70."""
_GROUP = 5
_DIGITS = 26
"""Base32 digits of 16 bytes."""


class Invitation(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_INVITATION) by the invite's key: this identity has the code."""

    locator: bytes
    identity: bytes


_decoder = msgspec.msgpack.Decoder(Invitation)


@dataclass(frozen=True, slots=True, repr=False)
class InviteKeys:
    """What a code gives."""

    locator: bytes
    wrap_key: bytes
    signer: Identity

    def __repr__(self) -> str:
        """Without the keys."""
        return "InviteKeys(…)"


def code_of(secret: bytes) -> str:
    """As people pass it on: base32 in groups, ABCDE-FGHIJ-…"""
    digits = base64.b32encode(secret).decode().rstrip("=")
    return "-".join(digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP))


def secret_of(code: str) -> bytes:
    """What was typed or pasted, in any case and grouping. Raises ConfigError, without the code in it."""
    digits = "".join(code.split()).replace("-", "").upper()
    # What people mistake for letters: base32 has neither 0 nor 1 nor 8.
    digits = digits.translate(str.maketrans("018", "OIB"))
    try:
        secret = base64.b32decode(digits + "=" * (-len(digits) % 8)) if len(digits) == _DIGITS else b""
    except ValueError:
        secret = b""
    if len(secret) != SECRET:
        problem = f"it is not {_DIGITS} letters and digits as `meshvpn invite` prints them"
        raise ConfigError("invite code", problem, "copy the whole code, or ask for a new one") from None
    return secret


def invite_keys(secret: bytes) -> InviteKeys:
    """What follows from a code."""
    locator, wrap_key, seed = (
        primitives.blake2b(label, 32, secret)
        for label in (b"meshvpn invite locator v1", b"meshvpn invite wrap v1", b"meshvpn invite sign v1")
    )
    return InviteKeys(locator, wrap_key, Identity(seed))


def make_invitation(keys: InviteKeys, identity: bytes) -> Signed:
    """The proof that who holds this identity has the code."""
    return keys.signer.sign(
        DOMAIN_INVITATION, msgspec.msgpack.encode(Invitation(locator=keys.locator, identity=identity))
    )


def check_invitation(signed: Signed, identity: bytes, charter: Charter) -> Invite:
    """The charter's invite that let this identity in. Raises MalformedMessage: stale if there is none (any more).

    Neither its time nor how often it was used: the server counts, members know their own clock only.
    """
    body = decode(_decoder, signed.body, limit=MAX_INVITATION)
    invite = find_invite(charter, body.locator)
    if invite is None:
        raise MalformedMessage(DropReason.STALE)
    is_genuine = signed.signer == invite.key and verify(signed, DOMAIN_INVITATION)
    if not is_genuine or body.identity != identity:
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    return invite


def find_invite(charter: Charter, locator: bytes) -> Invite | None:
    """The charter's invite with this locator."""
    return next((invite for invite in charter.invites if invite.locator == locator), None)


def make_invite(keys: InviteKeys, grant: bytes, entropy: key_rules.Entropy, *, uses: int, expires_at: int) -> Invite:
    """What the charter shows; `grant` is a msgpack EpochGrant."""
    wrap = key_rules.seal_secret(keys.wrap_key, grant, entropy)
    return Invite(keys.locator, wrap, keys.signer.public, uses, expires_at)
