"""Invite codes: what people type, what follows from it, who can use it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto import admission, owner
from meshvpn.proto.charter import MAX_INVITES, Charter, decode_charter
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import ConfigError, MalformedMessage, MembershipError
from meshvpn.proto.invites import (
    MAX_TTL,
    MAX_USES,
    check_invitation,
    code_of,
    invite_keys,
    make_invitation,
    secret_of,
)
from meshvpn.proto.keys import Identity
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import DOMAIN_CHARTER

from .founded import KEYS, WALL, Founded, found

SECRET = bytes(range(16))
GUEST = Identity(bytes(31) + b"g").public


@pytest.fixture
def network() -> Founded:
    return found(3)


@given(st.binary(min_size=16, max_size=16))
def test_a_code_is_read_back_however_it_is_written(secret: bytes) -> None:
    code = code_of(secret)
    for written in (code, code.lower(), code.replace("-", " "), f" {code.replace('-', '')}\n"):
        assert secret_of(written) == secret


@pytest.mark.parametrize("code", ["", "ABCDE", code_of(SECRET)[:-1], code_of(SECRET) + "A", "?" * 26, "ÄBCDE-" * 5])
def test_what_is_no_code_is_refused_without_being_shown(code: str) -> None:
    with pytest.raises(ConfigError, match="copy the whole code") as caught:
        secret_of(code)
    assert not code or code not in str(caught.value)


def test_locator_key_and_signer_tell_nothing_of_each_other() -> None:
    keys, other = invite_keys(SECRET), invite_keys(bytes(16))
    assert len({keys.locator, keys.wrap_key, keys.signer.seed, other.locator, other.wrap_key, other.signer.seed}) == 6
    assert keys.wrap_key.hex() not in repr(keys)


def test_whoever_has_the_code_opens_the_charter_also_without_a_password(network: Founded) -> None:
    roster = network.roster(0)
    evicted = owner.evict(
        roster,
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[2].public,
        PasswordRule.RETIRE,
        entropy=network.entropy,
        wall=WALL,
    )
    roster.handle_charter(evicted.charter, [], wall=WALL)
    invite(network, roster)
    state = admission.by_invite(roster.signed_charter, invite_keys(SECRET))
    assert state.epoch_keys[0].key == roster.epoch_key
    with pytest.raises(MembershipError, match="does not fit the invite"):
        admission.by_invite(roster.signed_charter, invite_keys(bytes(16)))
    with pytest.raises(MembershipError, match="does not fit the password"):
        admission.by_password(roster.signed_charter, KEYS)


def test_an_eviction_makes_all_invites_void(network: Founded) -> None:
    roster = network.roster(0)
    invite(network, roster)
    update = owner.evict(
        roster,
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[2].public,
        PasswordRule.KEEP,
        entropy=network.entropy,
        wall=WALL,
    )
    assert decode_charter(update.charter).invites == []


def test_an_invitation_is_for_one_identity_and_by_who_has_the_code(network: Founded) -> None:
    roster = network.roster(0)
    invite(network, roster)
    charter, keys = roster.charter, invite_keys(SECRET)
    good = make_invitation(keys, GUEST)
    assert check_invitation(good, GUEST, charter).uses == 2
    stolen = Identity(bytes(32)).sign(b"meshvpn invitation v1\0", good.body)
    for signed, identity, reason in (
        (good, bytes(32), DropReason.BAD_SIGNATURE),
        (stolen, GUEST, DropReason.BAD_SIGNATURE),
        (msgspec.structs.replace(good, signature=bytes(64)), GUEST, DropReason.BAD_SIGNATURE),
        (make_invitation(invite_keys(bytes(16)), GUEST), GUEST, DropReason.STALE),
        (msgspec.structs.replace(good, body=bytes(500)), GUEST, DropReason.OVER_LIMIT),
    ):
        with pytest.raises(MalformedMessage) as caught:
            check_invitation(signed, identity, charter)
        assert caught.value.reason is reason


@pytest.mark.parametrize(("uses", "ttl"), [(0, 60), (MAX_USES + 1, 60), (1, 0), (1, MAX_TTL + 1)])
def test_an_invite_has_bounds(network: Founded, uses: int, ttl: int) -> None:
    with pytest.raises(MembershipError, match="an invite is for"):
        invite(network, network.roster(0), uses=uses, ttl=ttl)


def test_open_invites_are_few_and_expired_ones_make_room(network: Founded) -> None:
    roster = network.roster(0)
    for number in range(MAX_INVITES):
        invite(network, roster, bytes([number]) * 16)
    with pytest.raises(MembershipError, match="revoke one first"):
        invite(network, roster)
    with pytest.raises(MembershipError, match="no such invite"):
        owner.revoke_invite(roster, network.owner, bytes(32), wall=WALL)
    invite(network, roster, wall=WALL + 61)
    assert [entry.locator for entry in roster.invites] == [invite_keys(SECRET).locator]
    with pytest.raises(MembershipError, match="exists already"):
        invite(network, roster, wall=WALL + 62)


def test_a_locked_network_gives_out_no_invites(network: Founded) -> None:
    roster = network.roster(0)
    update = owner.set_access(roster, network.owner, "locked", wall=WALL)
    roster.handle_charter(update.charter, [], wall=WALL)
    with pytest.raises(MembershipError, match="is locked"):
        invite(network, roster)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"locator": b"short"}, DropReason.MALFORMED),
        ({"key": b"short"}, DropReason.MALFORMED),
        ({"uses": 0}, DropReason.MALFORMED),
        ({"wrap": bytes(300)}, DropReason.MALFORMED),
        ({"locator": KEYS.locator}, DropReason.MALFORMED),  # the password's
    ],
)
def test_a_charter_with_an_invite_that_makes_no_sense_is_refused(
    network: Founded, changes: dict[str, object], reason: DropReason
) -> None:
    roster = network.roster(0)
    invite(network, roster)
    (entry,) = roster.invites
    bad = msgspec.structs.replace(roster.charter, invites=[msgspec.structs.replace(entry, **changes)])
    assert refusal(network, bad) is reason
    twice = msgspec.structs.replace(roster.charter, invites=[entry, entry])
    assert refusal(network, twice) is DropReason.MALFORMED
    many = msgspec.structs.replace(roster.charter, invites=[entry] * (MAX_INVITES + 1))
    assert refusal(network, many) is DropReason.OVER_LIMIT


def invite(
    network: Founded, roster: Roster, secret: bytes = SECRET, *, uses: int = 2, ttl: int = 60, wall: int = WALL
) -> None:
    update = owner.invite(
        roster, network.owner, invite_keys(secret), uses=uses, ttl=ttl, entropy=network.entropy, wall=wall
    )
    assert roster.handle_charter(update.charter, [], wall=wall) is None


def refusal(network: Founded, charter: Charter) -> DropReason:
    signed = network.owner.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))
    with pytest.raises(MalformedMessage) as caught:
        decode_charter(signed)
    return caught.value.reason
