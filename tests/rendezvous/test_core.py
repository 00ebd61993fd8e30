"""What the rendezvous decides: a document and a request give an answer, a new document, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import control
from meshvpn.proto.charter import decode_charter, is_banned
from meshvpn.proto.control import (
    Attach,
    CharterChanged,
    Done,
    MemberChanged,
    MemberLeft,
    PutApproval,
    PutRecord,
    RefusalCode,
    Refused,
)
from meshvpn.proto.invites import invite_keys
from meshvpn.proto.keys import Identity, verify_detached
from meshvpn.proto.owner import approval_by
from meshvpn.proto.signed import DOMAIN_SESSION, Signed
from rendezvous import core
from rendezvous.core import (
    ADDRESS_QUARANTINE,
    UNFINISHED_LIFETIME,
    Admission,
    Answered,
    NetworkDoc,
    Outcome,
    apply,
    is_proof_valid,
    locator_of,
)
from tests.unit.torsion import TorsionIdentity

from .signing import Network, identity

ANNA, BERT, CARL = identity("anna"), identity("bert"), identity("carl")


# --- letting in


def test_the_founder_gets_the_first_address_of_the_pool() -> None:
    network = Network()
    world = World(network)
    assert world.admit(network.create()).address == "10.7.5.1"


def test_a_create_that_is_repeated_gives_the_same_answer_and_stores_nothing() -> None:
    network = Network()
    world = World(network)
    first = world.admit(network.create())
    outcome = world.apply(network.create(), network.founder)
    assert outcome == Outcome(first)


def test_a_founder_that_died_before_its_record_comes_back_by_creating_again() -> None:
    network = Network()
    world = World(network)
    world.admit(network.create())
    world.wall += UNFINISHED_LIFETIME
    assert world.admit(network.create()).address == "10.7.5.1"


def test_a_founder_that_left_comes_back_by_creating_again() -> None:
    network = Network()
    world = World(network)
    world.admit(network.create())
    world.accept(network.put_leave(network.founder), network.founder)
    assert world.admit(network.create()).address == "10.7.5.2"


@pytest.mark.parametrize("code", [RefusalCode.EVICTED, RefusalCode.DELETED])
def test_a_founder_that_is_out_does_not_come_back_by_creating_with_the_charter_that_says_so(code: RefusalCode) -> None:
    network = Network()
    world = World(network)
    world.admit(network.create())
    end = network.evict(network.founder.public) if code is RefusalCode.EVICTED else network.delete()
    world.accept(network.put_charter(end), network.founder)
    world.wall += UNFINISHED_LIFETIME
    assert world.refusal(network.create(), network.founder) is code


@pytest.mark.parametrize("who", ["another founder", "another charter"])
def test_a_network_that_exists_is_not_created_again(who: str) -> None:
    network = Network()
    world = World(network)
    world.admit(network.create())
    founder = ANNA if who == "another founder" else network.founder
    if who == "another charter":
        network.charter = msgspec.structs.replace(network.charter, access="locked")
    assert world.refusal(network.create(founder=founder), founder) is RefusalCode.NETWORK_EXISTS


def test_a_new_network_starts_at_its_beginning() -> None:
    for changes in ({"version": 2}, {"evicted": {ANNA.public: 1}}, {"is_deleted": True}):
        network = Network()
        network.charter = msgspec.structs.replace(network.charter, **changes)
        assert World(network).refusal(network.create(), network.founder) is RefusalCode.BAD_REQUEST


def test_a_charter_that_its_owner_did_not_sign_founds_nothing() -> None:
    network = Network()
    request = msgspec.structs.replace(network.create(), charter=network.sign(ANNA))
    assert World(network).refusal(request, network.founder) is RefusalCode.BAD_SIGNATURE


def test_who_joins_sees_everybody_and_has_an_address_of_its_own() -> None:
    world = World.founded()
    admission = world.admit(world.network.join(ANNA))
    assert admission.address == "10.7.5.2"
    assert [member.identity for member in admission.members] == [world.network.founder.public, ANNA.public]


def test_who_joins_again_has_the_same_address_and_changes_nothing() -> None:
    world = World.founded(ANNA, BERT)
    outcome = world.apply(world.network.join(ANNA), ANNA)
    assert outcome.document is None
    assert isinstance(outcome.reply, Admission)
    assert outcome.reply.address == "10.7.5.2"


def test_a_wrong_password_and_an_unknown_network_are_one_error() -> None:
    network = Network()
    assert refusal_of(apply(None, network.join(ANNA), ANNA.public, wall=0)) is RefusalCode.UNKNOWN_NETWORK


def test_a_password_that_was_changed_while_the_join_waited_is_wrong() -> None:
    world = World.founded()
    request = world.network.join(ANNA)
    world.accept(world.network.put_charter(world.network.change(locator=b"l" * 32)), world.network.founder)
    assert world.refusal(request, ANNA) is RefusalCode.UNKNOWN_NETWORK


def test_nobody_joins_while_the_password_is_retired() -> None:
    world = World.founded()
    request = world.network.join(ANNA)
    world.accept(world.network.put_charter(world.network.change(locator=None)), world.network.founder)
    assert world.refusal(request, ANNA) is RefusalCode.UNKNOWN_NETWORK
    assert locator_of(world.known) is None


def test_a_locked_network_admits_nobody_but_keeps_its_members() -> None:
    world = World.founded(ANNA)
    world.accept(world.network.put_charter(world.network.change(access="locked")), world.network.founder)
    assert world.refusal(world.network.join(BERT), BERT) is RefusalCode.LOCKED
    assert world.admit(world.network.join(ANNA)).address == "10.7.5.2"
    assert world.admit(world.network.attach(ANNA)).address == "10.7.5.2"


def test_a_full_network_admits_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_MEMBERS", 2)
    world = World.founded(ANNA)
    assert world.refusal(world.network.join(BERT), BERT) is RefusalCode.NETWORK_FULL


def test_a_member_attaches_and_a_stranger_does_not() -> None:
    world = World.founded(ANNA)
    assert world.admit(world.network.attach(ANNA)).address == "10.7.5.2"
    assert world.refusal(world.network.attach(BERT), BERT) is RefusalCode.NOT_A_MEMBER
    unknown = Network(2)
    assert refusal_of(apply(None, unknown.attach(ANNA), ANNA.public, wall=0)) is RefusalCode.UNKNOWN_NETWORK


# --- addresses


def test_an_address_that_was_left_rests_before_somebody_else_has_it() -> None:
    world = World.founded(ANNA)
    world.accept(world.network.put_leave(ANNA), ANNA)
    assert world.admit(world.network.join(BERT)).address == "10.7.5.3"
    world.wall += ADDRESS_QUARANTINE
    assert world.admit(world.network.join(CARL)).address == "10.7.5.2"


def test_an_evicted_members_address_rests_whatever_the_admins_clock_says() -> None:
    world = World.founded(ANNA)
    assert world.network.charter.issued_at == 0
    world.accept(world.network.put_charter(world.network.evict(ANNA.public)), world.network.founder)
    assert world.admit(world.network.join(BERT)).address == "10.7.5.3"


def test_in_a_full_pool_the_address_that_rested_longest_is_given_out() -> None:
    world = World.founded(ANNA, BERT, network=Network(pool="10.7.5.0/29"))
    people = [identity(number) for number in range(3)]
    for person in people:
        world.admit(world.network.join(person))
    for person in (BERT, ANNA):
        world.wall += 1
        world.accept(world.network.put_leave(person), person)
    assert world.admit(world.network.join(CARL)).address == "10.7.5.3"


def test_an_exhausted_pool_admits_nobody() -> None:
    world = World.founded(ANNA, network=Network(pool="10.7.5.0/30"))
    assert world.refusal(world.network.join(BERT), BERT) is RefusalCode.POOL_EXHAUSTED


def test_a_join_without_a_record_is_forgotten_by_everybody_after_an_hour() -> None:
    world = World.founded()
    world.admit(world.network.join(ANNA))
    world.wall += UNFINISHED_LIFETIME - 1
    assert world.admit(world.network.attach(ANNA)).address == "10.7.5.2"
    world.wall += 1
    assert world.refusal(world.network.attach(ANNA), ANNA) is RefusalCode.NOT_A_MEMBER
    assert world.refusal(world.network.put_record(ANNA, "10.7.5.2"), ANNA) is RefusalCode.NOT_A_MEMBER
    admission = world.admit(world.network.attach(world.network.founder))
    assert [member.identity for member in admission.members] == [world.network.founder.public]
    world.accept(world.network.put_record(world.network.founder, "10.7.5.1"), world.network.founder)
    assert [entry.identity for entry in world.known.members] == [world.network.founder.public]


# --- records


def test_a_record_is_stored_and_told_to_the_others() -> None:
    world = World.founded()
    world.admit(world.network.join(ANNA))
    request = world.network.put_record(ANNA, "10.7.5.2")
    outcome = world.accept(request, ANNA)
    assert outcome.notice is not None
    (news,) = outcome.notice.messages
    assert isinstance(news, MemberChanged)
    assert (news.entry.identity, news.entry.envelope) == (ANNA.public, request.envelope)
    assert world.admit(world.network.attach(ANNA)).members[1] == news.entry


def test_a_record_of_somebody_else_or_of_another_address_is_refused() -> None:
    world = World.founded(ANNA, BERT)
    for envelope in (world.network.envelope(BERT, "10.7.5.3"), world.network.envelope(ANNA, "10.7.5.3")):
        assert world.refusal(PutRecord(rid=2, envelope=envelope), ANNA) is RefusalCode.NOT_ALLOWED


def test_a_record_under_an_old_epoch_key_is_refused() -> None:
    world = World.founded(ANNA, BERT)
    old = world.network.put_record(ANNA, "10.7.5.2")
    world.accept(world.network.put_charter(world.network.evict(BERT.public)), world.network.founder)
    assert world.refusal(old, ANNA) is RefusalCode.STALE_CHARTER


def test_a_record_with_a_wrong_signature_is_refused() -> None:
    world = World.founded(ANNA)
    envelope = world.network.envelope(ANNA, "10.7.5.2", signer=BERT)
    assert world.refusal(PutRecord(rid=2, envelope=envelope), ANNA) is RefusalCode.BAD_SIGNATURE


def test_a_record_that_is_too_large_is_refused() -> None:
    world = World.founded(ANNA)
    envelope = Signed(bytes(control.MAX_ENVELOPE + 1), ANNA.public, bytes(64))
    assert world.refusal(PutRecord(rid=2, envelope=envelope), ANNA) is RefusalCode.TOO_LARGE


def test_a_stranger_puts_nothing() -> None:
    world = World.founded()
    network = world.network
    for request in (network.put_record(ANNA, "10.7.5.2"), network.put_charter(network.sign()), network.put_leave(ANNA)):
        assert world.refusal(request, ANNA) is RefusalCode.NOT_A_MEMBER


# --- charters


def test_an_evicted_member_is_out_stays_out_and_gets_the_proof() -> None:
    world = World.founded(ANNA, BERT)
    charter = world.network.evict(ANNA.public)
    outcome = world.accept(world.network.put_charter(charter), world.network.founder)
    assert outcome.notice is not None
    (news,) = outcome.notice.messages
    assert isinstance(news, CharterChanged)
    assert news.charter == charter
    assert [entry.identity for entry in news.members] == [world.network.founder.public, BERT.public]
    assert {who: goodbye.code for who, goodbye in outcome.notice.goodbyes.items()} == {ANNA.public: "evicted"}
    for request in (world.network.join(ANNA), world.network.attach(ANNA)):
        outcome = world.apply(request, ANNA)
        assert refusal_of(outcome) is RefusalCode.EVICTED
    assert outcome.evidence == charter


def test_an_eviction_also_ends_a_connection_that_outlived_its_membership() -> None:
    world = World.founded()
    world.admit(world.network.join(ANNA))
    world.wall += UNFINISHED_LIFETIME
    charter = world.network.evict(ANNA.public)
    outcome = world.accept(world.network.put_charter(charter), world.network.founder)
    assert outcome.notice is not None
    assert list(outcome.notice.goodbyes) == [ANNA.public]


def test_an_unbanned_identity_may_join_again() -> None:
    world = World.founded(ANNA)
    network = world.network
    world.accept(network.put_charter(network.evict(ANNA.public)), network.founder)
    outcome = world.accept(network.put_charter(network.unban(ANNA.public)), network.founder)
    assert outcome.notice is not None
    assert not outcome.notice.goodbyes
    assert world.admit(network.join(ANNA)).address == "10.7.5.3"


def test_records_that_were_sealed_anew_replace_those_of_members_that_stay() -> None:
    world = World.founded(ANNA, BERT, CARL)
    charter = world.network.evict(CARL.public)
    anew = world.network.envelope(ANNA, "10.7.5.2", signer=world.network.owner)
    useless = [
        world.network.envelope(CARL, "10.7.5.4", signer=world.network.owner),
        world.network.envelope(BERT, "10.7.5.9", signer=world.network.owner),
        world.network.envelope(BERT, "10.7.5.3", signer=world.network.owner, epoch=1),
    ]
    before = world.stored(BERT)
    world.accept(world.network.put_charter(charter, anew, *useless), world.network.founder)
    assert world.stored(ANNA).envelope == anew
    assert world.stored(BERT) == before
    assert [entry.identity for entry in world.known.members] == [
        world.network.founder.public,
        ANNA.public,
        BERT.public,
    ]


def test_an_envelope_by_somebody_who_may_not_makes_the_whole_change_fail() -> None:
    world = World.founded(ANNA, BERT)
    request = world.network.put_charter(
        world.network.evict(BERT.public), world.network.envelope(ANNA, "10.7.5.2", signer=BERT)
    )
    assert world.refusal(request, world.network.founder) is RefusalCode.BAD_SIGNATURE
    assert world.stored(BERT).address == "10.7.5.3"


def test_an_older_charter_is_refused() -> None:
    world = World.founded(ANNA)
    old = world.network.sign()
    world.accept(world.network.put_charter(world.network.evict(ANNA.public)), world.network.founder)
    assert world.refusal(world.network.put_charter(old), world.network.founder) is RefusalCode.STALE_CHARTER


def test_a_charter_that_forgets_an_eviction_is_refused() -> None:
    world = World.founded(ANNA)
    world.accept(world.network.put_charter(world.network.evict(ANNA.public)), world.network.founder)
    forgetful = world.network.change(evicted={})
    assert world.refusal(world.network.put_charter(forgetful), world.network.founder) is RefusalCode.STALE_CHARTER


def test_a_members_own_charter_is_refused_and_an_admins_is_taken() -> None:
    world = World.founded(ANNA, BERT)
    forged = world.network.sign(ANNA, version=2, access="locked")
    assert world.refusal(world.network.put_charter(forged), ANNA) is RefusalCode.BAD_SIGNATURE
    world.accept(world.network.put_charter(world.network.appoint(ANNA.public)), world.network.founder)
    world.accept(world.network.put_charter(world.network.evict(BERT.public, ANNA)), ANNA)
    assert world.refusal(world.network.attach(BERT), BERT) is RefusalCode.EVICTED


def test_a_charter_of_another_network_or_pool_is_refused() -> None:
    world = World.founded()
    founder = world.network.founder
    other = Network(2).sign(version=5)
    assert world.refusal(world.network.put_charter(other), founder) is RefusalCode.NOT_ALLOWED
    moved = world.network.sign(version=2, pool="10.8.0.0/24")
    assert world.refusal(world.network.put_charter(moved), founder) is RefusalCode.NOT_ALLOWED


def test_a_deleted_network_says_goodbye_to_all_but_its_owner_and_takes_nobody_back() -> None:
    world = World.founded(ANNA, BERT)
    charter = world.network.delete()
    outcome = world.accept(world.network.put_charter(charter), world.network.founder)
    assert outcome.notice is not None
    assert {who: goodbye.code for who, goodbye in outcome.notice.goodbyes.items()} == {
        ANNA.public: "deleted",
        BERT.public: "deleted",
    }
    outcome = world.apply(world.network.attach(ANNA), ANNA)
    assert refusal_of(outcome) is RefusalCode.DELETED
    assert outcome.evidence == charter
    assert (
        world.refusal(world.network.put_charter(world.network.change()), world.network.founder)
        is RefusalCode.STALE_CHARTER
    )


def test_a_deleted_network_that_kept_its_locator_is_found_by_nobody() -> None:
    world = World.founded()
    request = world.network.join(ANNA)
    charter = world.network.change(is_deleted=True)
    world.accept(world.network.put_charter(charter), world.network.founder)
    assert locator_of(world.known) is None
    assert world.refusal(request, ANNA) is RefusalCode.UNKNOWN_NETWORK


def test_who_leaves_is_gone_and_the_others_see_its_own_signature() -> None:
    world = World.founded(ANNA)
    request = world.network.put_leave(ANNA)
    outcome = world.accept(request, ANNA)
    assert outcome.notice is not None
    assert outcome.notice.messages == [MemberLeft(leave=request.leave)]
    assert outcome.notice.goodbyes[ANNA.public].code == "left"
    assert world.refusal(world.network.attach(ANNA), ANNA) is RefusalCode.NOT_A_MEMBER


def test_nobody_leaves_for_somebody_else() -> None:
    world = World.founded(ANNA, BERT)
    assert world.refusal(world.network.put_leave(BERT), ANNA) is RefusalCode.NOT_ALLOWED
    forged = BERT.sign(b"meshvpn leave v1\0", world.network.put_leave(ANNA).leave.body)
    request = msgspec.structs.replace(world.network.put_leave(ANNA), leave=forged)
    assert world.refusal(request, ANNA) is RefusalCode.BAD_SIGNATURE


# --- proofs


def test_a_proof_holds_for_one_nonce_one_network_and_one_identity() -> None:
    network, nonce = Network(), b"n" * 32
    for make in (
        network.create,
        lambda nonce: network.join(ANNA, nonce=nonce),
        lambda nonce: network.attach(ANNA, nonce=nonce),
    ):
        request = make(nonce=nonce)
        assert is_proof_valid(request, nonce)
        assert not is_proof_valid(request, b"m" * 32)
        assert not is_proof_valid(msgspec.structs.replace(request, identity=BERT.public), nonce)
    assert not is_proof_valid(msgspec.structs.replace(network.attach(ANNA, nonce=nonce), uid=b"u" * 16), nonce)
    garbage = msgspec.structs.replace(network.create(nonce=nonce), charter=Signed(b"", b"", b""))
    assert not is_proof_valid(garbage, nonce)


def test_an_identity_that_nobody_can_seal_an_epoch_key_to_is_not_let_in() -> None:
    network, nonce, torsion = Network(), b"n" * 32, TorsionIdentity()
    proof = torsion.sign(DOMAIN_SESSION, nonce + network.uid).signature
    assert verify_detached(torsion.public, proof, DOMAIN_SESSION + nonce + network.uid)
    assert not is_proof_valid(Attach(rid=1, uid=network.uid, identity=torsion.public, proof=proof), nonce)


# --- properties


PEOPLE = [identity(number) for number in range(4)]
STEPS = (
    "create",
    "join",
    "attach",
    "record",
    "leave",
    "evict",
    "unban",
    "lock",
    "open",
    "delete",
    "replay",
    "wait",
    "reseal",
    "invite",
    "use invite",
    "approve",
    "join approved",
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_whatever_is_asked_the_document_stays_sound(steps: list[tuple[str, int, int]]) -> None:
    network = Network(pool="10.7.5.0/29")
    network.founder = PEOPLE[0]
    world = World(network)
    sent: list[tuple[Answered, Identity]] = []
    for step, who, whom in steps:
        request = request_of(step, world, PEOPLE[who], PEOPLE[whom].public, sent, who)
        if request is None:
            continue
        sent.append(request)
        before = world.document
        world.apply(*request)
        check_sound(before, world.document)


def request_of(
    step: str, world: World, person: Identity, target: bytes, sent: list[tuple[Answered, Identity]], number: int
) -> tuple[Answered, Identity] | None:
    network = world.network
    match step:
        case "wait":
            world.wall += UNFINISHED_LIFETIME * (number + 1)
            return None
        case "replay":
            return sent[number % len(sent)] if sent else None
        case "create":
            return network.create(founder=person), person
        case "join":
            return network.join(person), person
        case "attach":
            return network.attach(person), person
        case "record":
            known = [entry for entry in world.members if entry.identity == person.public]
            return network.put_record(person, known[0].address if known else "10.7.5.1"), person
        case "leave":
            return network.put_leave(person), person
        case "use invite":
            keys = invite_keys(bytes([number]) * 16)
            return network.join_invited(person, keys), person
        case "approve":
            return PutApproval(rid=2, approval=approval_by(network.owner, network.uid, target, wall=0)), person
        case "join approved":
            return network.join_approved(person), person
        case "reseal":
            envelopes = [
                network.envelope(known, entry.address, signer=network.owner)
                for entry in world.members
                for known in PEOPLE
                if known.public == entry.identity
            ]
            return network.put_charter(network.change(epoch=network.charter.epoch + 1), *envelopes), person
    # A change that the server refuses must not stay in the owner's view.
    before = network.charter
    makers: dict[str, Callable[[], Signed]] = {
        "evict": lambda: network.evict(target),
        "unban": lambda: network.unban(target),
        "lock": lambda: network.change(access="locked"),
        "open": lambda: network.change(access="open"),
        "delete": network.delete,
        "invite": lambda: network.invite(invite_keys(bytes([number]) * 16), uses=2, expires_at=world.wall + 5000),
    }
    charter = makers[step]()
    if not any(entry.identity == person.public for entry in world.members):
        network.charter = before
    return network.put_charter(charter), person


def check_sound(before: NetworkDoc | None, after: NetworkDoc | None) -> None:
    if after is None:
        assert before is None
        return
    charter = decode_charter(after.charter)
    assert before is None or decode_charter(before.charter).version <= charter.version
    addresses = [entry.address for entry in after.members]
    assert len(set(addresses)) == len(addresses)
    assert all(IPv4Address(address) in list(IPv4Network(charter.pool).hosts()) for address in addresses)
    uses = {invite.locator: invite.uses for invite in charter.invites}
    assert all(0 < count <= uses[locator] for locator, count in after.uses.items())
    identities = [entry.identity for entry in after.members]
    assert len(set(identities)) == len(identities)
    assert not any(is_banned(charter, who) for who in identities)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(after), type=NetworkDoc) == after


# --- helpers


class World:
    """A stored document and the server's clock."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.document: NetworkDoc | None = None
        self.wall = 1_700_000_000

    @classmethod
    def founded(cls, *members: Identity, network: Network | None = None) -> World:
        """With a founder and members who published their records."""
        world = cls(network or Network())
        founder = world.network.founder
        world.admit(world.network.create())
        world.accept(world.network.put_record(founder, "10.7.5.1"), founder)
        for member in members:
            admission = world.admit(world.network.join(member))
            world.accept(world.network.put_record(member, admission.address), member)
        return world

    @property
    def known(self) -> NetworkDoc:
        assert self.document is not None
        return self.document

    @property
    def members(self) -> list[core.StoredEntry]:
        return [] if self.document is None else self.document.members

    def stored(self, member: Identity) -> core.StoredEntry:
        return next(entry for entry in self.known.members if entry.identity == member.public)

    def apply(self, request: Answered, sender: Identity) -> Outcome:
        outcome = apply(self.document, request, sender.public, wall=self.wall)
        if outcome.document is not None:
            self.document = outcome.document
        return outcome

    def admit(self, request: core.Opening) -> Admission:
        outcome = apply(self.document, request, request.identity, wall=self.wall)
        assert isinstance(outcome.reply, Admission), outcome.reply
        self.document = outcome.document or self.document
        return outcome.reply

    def accept(self, request: Answered, sender: Identity) -> Outcome:
        outcome = self.apply(request, sender)
        assert outcome.reply == Done(rid=request.rid)
        return outcome

    def refusal(self, request: Answered, sender: Identity) -> RefusalCode:
        """Why it is refused; and nothing changes."""
        outcome = self.apply(request, sender)
        assert outcome.document is None
        assert outcome.notice is None
        return refusal_of(outcome)


def refusal_of(outcome: Outcome) -> RefusalCode:
    assert isinstance(outcome.reply, Refused)
    return RefusalCode(outcome.reply.code)
