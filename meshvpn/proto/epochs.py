"""Epoch keys as one member holds them: the newest and the one before, what they open, what pairs derive from them.

A charter brings the next one: sealed to us by whoever rotated, or, if that one did not know us yet, under the wrap key
of a password that stayed the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from . import keys as key_rules
from .charter import Charter, EpochGrant, Settings
from .codec import decode
from .control import MAX_ENVELOPE
from .errors import MalformedMessage, MembershipError
from .keys import Identity
from .record import Envelope, decode_signed
from .signed import Signed

PREVIOUS_EPOCH_LIFETIME = 24 * 3600
"""Seconds for which a member that was away during a rotation still finds an answer (DESIGN §5)."""
MAX_EPOCH_KEYS = 8
"""Those that are kept: a line of charters that turns out to be void leads back to an older one."""
_IN_USE = 2
"""The current one and the one before."""

_settings_decoder = msgspec.msgpack.Decoder(Settings)
_grant_decoder = msgspec.msgpack.Decoder(EpochGrant)


class EpochKey(msgspec.Struct, frozen=True, array_like=True):
    """An epoch's key; `superseded_at` is Unix seconds, None for the current one."""

    epoch: int
    key: bytes
    superseded_at: int | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"EpochKey({self.epoch})"


class EpochKeys:
    """At most MAX_EPOCH_KEYS, newest first; at least one."""

    def __init__(self, uid: bytes, identity: Identity, keys: list[EpochKey]) -> None:
        self._uid = uid
        self._identity = identity
        self._keys = list(keys)

    @property
    def newest(self) -> EpochKey:
        """The newest that we have: older than the charter's while nobody has given us that."""
        return self._keys[0]

    def export(self) -> list[EpochKey]:
        """For the disk."""
        return list(self._keys)

    def settings(self, charter: Charter) -> Settings:
        """What only members can read. Raises MembershipError if we don't have the charter's epoch key."""
        plaintext = key_rules.open_secret(self.newest.key, charter.sealed)
        try:
            if plaintext is not None:
                return decode(_settings_decoder, plaintext, limit=MAX_ENVELOPE)
        except MalformedMessage:
            pass  # what the signer sealed is not readable: the same as not having the key
        raise MembershipError("this host does not have the network's current key; leave and join again")

    def adopt(self, charter: Charter, before: Charter, *, wall: int) -> bool:
        """Take the charter's epoch key, if it has one for us that we don't use yet; `before` is the one we had."""
        # Two lines may both have changed the epoch, so an equal number does not mean an equal key.
        key = self._find(charter, before)
        if key is None or (charter.epoch, key) == (self.newest.epoch, self.newest.key):
            return False
        superseded = msgspec.structs.replace(self.newest, superseded_at=wall)
        older = [entry for entry in (superseded, *self._keys[1:]) if entry.key != key]
        self._keys = [EpochKey(charter.epoch, key), *older][:MAX_EPOCH_KEYS]
        return True

    def preshared_keys(self, tunnel_key: bytes, own_tunnel_key: bytes, *, since: int, wall: int) -> list[bytes]:
        """The pair's preshared keys, newest epoch first, of `since` at the earliest; the previous one for 24 hours at
        most.
        """
        return [
            key_rules.pair_psk(entry.key, own_tunnel_key, tunnel_key)
            for entry in self._keys[:_IN_USE]
            if entry.superseded_at is None or (entry.epoch >= since and _left(entry.superseded_at, wall) > 0)
        ]

    def lan_tags(self, identity: bytes) -> list[bytes]:
        """A member's, newest epoch first."""
        return [key_rules.lan_tag(entry.key, identity) for entry in self._keys[:_IN_USE]]

    def previous_left(self, *, wall: int) -> int | None:
        """Seconds until the previous key is worth nothing; None if there is none, or it is already."""
        used = self._keys[:_IN_USE]
        lefts = [_left(entry.superseded_at, wall) for entry in used if entry.superseded_at is not None]
        return min((left for left in lefts if left > 0), default=None)

    def seal(self, plaintext: bytes, entropy: Callable[[int], bytes]) -> bytes:
        """So that members can read it and the server cannot."""
        return key_rules.seal_secret(self.newest.key, plaintext, entropy)

    def open(self, sealed: bytes) -> bytes | None:
        """What a member sealed in this epoch or the one before."""
        for entry in self._keys[:_IN_USE]:
            if (plaintext := key_rules.open_secret(entry.key, sealed)) is not None:
                return plaintext
        return None

    def open_envelope(self, envelope: Envelope) -> Signed | None:
        """The member-signed record inside, unchecked. Raises MalformedMessage if what opens is none."""
        for entry in self._keys[:_IN_USE]:
            plaintext = key_rules.open_secret(entry.key, envelope.sealed) if entry.epoch == envelope.epoch else None
            if plaintext is not None:
                return decode_signed(plaintext)
        return None

    def _find(self, charter: Charter, before: Charter) -> bytes | None:
        for entry in self._keys:
            if entry.epoch == charter.epoch and key_rules.open_secret(entry.key, charter.sealed) is not None:
                return entry.key
        for plaintext in self._grants(charter, before):
            if plaintext is not None and (key := open_grant(plaintext, self._uid, charter.epoch)) is not None:
                return key
        return None

    def _grants(self, charter: Charter, before: Charter) -> Iterator[bytes | None]:
        yield self._identity.open_sealed(charter.grants.get(self._identity.public, b""))
        if charter.wrap is None:
            return
        try:
            wrap_key = self.settings(before).wrap_key
        except MembershipError:
            return
        if wrap_key is not None:
            yield key_rules.open_secret(wrap_key, charter.wrap)


def open_grant(plaintext: bytes, uid: bytes, epoch: int) -> bytes | None:
    """The epoch key of a grant that is for this network and epoch."""
    try:
        grant = decode(_grant_decoder, plaintext, limit=MAX_ENVELOPE)
    except MalformedMessage:
        return None
    return grant.key if grant.uid == uid and grant.epoch == epoch and len(grant.key) == 32 else None


def _left(superseded_at: int, wall: int) -> int:
    # A clock that was set back must not lengthen the time.
    return PREVIOUS_EPOCH_LIFETIME - abs(wall - superseded_at)
