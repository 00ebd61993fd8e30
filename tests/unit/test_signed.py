"""Domains: a signature says what kind of thing was signed, and serves for nothing else."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import signed as module
from meshvpn.proto.keys import Identity, verify
from meshvpn.proto.signed import Signed

DOMAINS = {name: value for name, value in vars(module).items() if name.startswith("DOMAIN_")}


def test_there_are_domains_and_they_differ() -> None:
    assert len(DOMAINS) == len(set(DOMAINS.values())) == 9


@pytest.mark.parametrize(("one", "other"), list(permutations(DOMAINS.values(), 2)))
def test_no_domain_begins_with_another_so_no_body_can_turn_one_into_the_other(one: bytes, other: bytes) -> None:
    assert not one.startswith(other)


@pytest.mark.parametrize("name", DOMAINS)
@settings(max_examples=15, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), body=st.binary(max_size=60))
def test_a_signature_for_one_domain_never_holds_in_another(name: str, seed: bytes, body: bytes) -> None:
    signed = Identity(seed).sign(DOMAINS[name], body)
    assert [other for other, domain in DOMAINS.items() if verify(signed, domain)] == [name]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(DOMAINS.values())), st.sampled_from(sorted(DOMAINS.values())), st.binary(max_size=60))
def test_moving_bytes_between_domain_and_body_gains_nothing(mine: bytes, theirs: bytes, body: bytes) -> None:
    identity = Identity(bytes(32))
    signed = identity.sign(mine, theirs + body)
    assert not verify(Signed(body, identity.public, signed.signature), theirs)


def test_the_body_is_kept_byte_for_byte_however_it_was_encoded() -> None:
    # The same number, in one byte and in nine: another encoder's choice must not break the signature.
    identity = Identity(bytes(32))
    for body in (b"\x01", b"\xcf" + bytes(7) + b"\x01"):
        signed = identity.sign(module.DOMAIN_RECORD, body)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(signed), type=Signed)
        assert again == signed
        assert verify(again, module.DOMAIN_RECORD)
