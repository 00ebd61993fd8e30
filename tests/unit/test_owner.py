"""What members sign: a change of the charter that may not be made says why, one that is made does what was asked."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from meshvpn.proto import admission, owner, repair
from meshvpn.proto.charter import MAX_ADMINS, MAX_EVICTED, Charter, check_charter, decode_charter, is_banned
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.keys import NetworkKeys
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import DOMAIN_CHARTER, Signed

from .founded import KEYS, OTHER_KEYS, WALL, Founded, found

Change = Callable[[Founded, Roster], CharterUpdate]


@pytest.fixture
def network() -> Founded:
    return found(4)


def evict(
    network: Founded, roster: Roster, number: int = 3, rule: PasswordRule | NetworkKeys = PasswordRule.RETIRE
) -> CharterUpdate:
    return owner.evict(
        roster,
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[number].public,
        rule,
        entropy=network.entropy,
        wall=WALL + 5,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net, roster: evict(net, roster, 0), "cannot evict yourself"),
        (lambda net, roster: evict(net, roster, 2, KEYS), "the new password is the old one"),
        (
            lambda net, roster: owner.unban(roster, net.owner, net.identities[1].public, wall=WALL),
            "is not evicted",
        ),
        (
            lambda net, roster: owner.change_password(roster, net.owner, KEYS, entropy=net.entropy, wall=WALL),
            "the network has already",
        ),
        (lambda net, roster: owner.set_access(roster, net.owner, "ajar", wall=WALL), "access ajar does not exist"),
        (
            lambda net, roster: owner.set_admins(roster, net.owner, [bytes(32)] * (MAX_ADMINS + 1), wall=WALL),
            "at most 64 admins",
        ),
        (lambda net, roster: owner.set_admins(roster, net.owner, [bytes(32)], wall=WALL), "is not a member"),
    ],
)
def test_a_change_that_may_not_be_made_says_why(network: Founded, change: Change, words: str) -> None:
    with pytest.raises(MembershipError, match=words):
        change(network, network.roster(0))


def test_nobody_is_evicted_twice_and_no_more_than_the_charter_holds(network: Founded) -> None:
    roster = network.roster(0)
    roster.handle_charter(evict(network, roster).charter, [], wall=WALL)
    with pytest.raises(MembershipError, match="evicted already"):
        evict(network, roster)
    with pytest.raises(MembershipError, match="is evicted"):
        owner.approve(roster, network.owner, network.identities[3].public, wall=WALL)
    full = {number.to_bytes(32, "big"): 1 for number in range(MAX_EVICTED)}
    with pytest.raises(MembershipError, match="create a new network"):
        evict(network, with_charter(network, evicted=full))


def test_an_admin_that_the_owner_evicts_is_none_any_more_also_after_an_unban(network: Founded) -> None:
    roster, admin = network.roster(0), network.identities[3].public
    updates: list[Callable[[], CharterUpdate]] = [
        lambda: owner.set_admins(roster, network.owner, [admin, network.identities[1].public], wall=WALL),
        lambda: evict(network, roster),
        lambda: owner.unban(roster, network.owner, admin, wall=WALL),
    ]
    for update in updates:
        assert roster.handle_charter(update().charter, [], wall=WALL) is None
    assert roster.admins == [network.identities[1].public]


def test_members_and_admins_may_not_do_what_is_the_owners(network: Founded) -> None:
    admin, member = network.identities[1], network.identities[2]
    roster = network.roster(0)
    roster.handle_charter(owner.set_admins(roster, network.owner, [admin.public], wall=WALL).charter, [], wall=WALL)
    assert [roster.role(who) for who in (network.owner, admin, member)] == ["owner", "member", "member"]
    theirs = network.roster(1)
    theirs.handle_charter(roster.signed_charter, [], wall=WALL)
    assert theirs.role(None) == "admin"
    assert decode_charter(owner.set_access(theirs, admin, "locked", wall=WALL).charter).access == "locked"
    with pytest.raises(MembershipError, match="only the owner can appoint"):
        owner.set_admins(theirs, admin, [], wall=WALL)
    with pytest.raises(MembershipError, match="only the owner can delete"):
        owner.delete_network(theirs, admin, wall=WALL)
    with pytest.raises(MembershipError, match="you are not the owner"):
        owner.set_access(network.roster(2), member, "open", wall=WALL)


def test_nothing_follows_a_deletion(network: Founded) -> None:
    roster = network.roster(0)
    roster.handle_charter(owner.delete_network(roster, network.owner, wall=WALL).charter, [], wall=WALL)
    with pytest.raises(MembershipError, match="was deleted"):
        owner.set_access(roster, network.owner, "open", wall=WALL)


@pytest.mark.parametrize(
    ("rule", "locator"),
    [(PasswordRule.RETIRE, None), (PasswordRule.KEEP, KEYS.locator), (OTHER_KEYS, OTHER_KEYS.locator)],
)
def test_an_eviction_does_with_the_password_what_was_asked_for(
    network: Founded, rule: PasswordRule | NetworkKeys, locator: bytes | None
) -> None:
    roster = network.roster(0)
    update = evict(network, roster, rule=rule)
    charter = check_charter(update.charter, network.charter)
    assert charter.locator == locator
    assert (charter.wrap is None) == (locator is None)
    assert is_banned(charter, network.identities[3].public)
    assert charter.grants.keys() == {network.owner.public, *(network.identities[number].public for number in (0, 1, 2))}
    assert len(update.envelopes) == 3
    roster.handle_charter(update.charter, [], wall=WALL)
    wrap_key = {None: None, KEYS.locator: KEYS.wrap_key, OTHER_KEYS.locator: OTHER_KEYS.wrap_key}[locator]
    assert roster.settings.wrap_key == wrap_key
    assert wrap_key is None or wrap_key.hex() not in repr(roster.settings)


def test_whoever_was_not_known_when_the_epoch_changed_gets_its_key_afterwards(network: Founded) -> None:
    signer = Roster(network.uid, network.identities[0], network.state)
    signer.handle_charter(network.charter, network.entries[:2] + network.entries[3:], wall=WALL)
    update = evict(network, signer)  # member 2 is on its way
    signer.handle_entry(network.entries[2], wall=WALL)
    theirs = network.roster(2)
    signer.handle_charter(update.charter, [], wall=WALL)
    theirs.handle_charter(update.charter, [], wall=WALL)
    assert theirs.key_epoch < theirs.charter.epoch
    with pytest.raises(MembershipError, match="current key"):
        theirs.settings  # noqa: B018
    rest = repair.grant_to_forgotten(signer, network.owner, entropy=network.entropy, wall=WALL)
    assert rest is not None
    assert len(rest.envelopes) == 1
    check_charter(rest.charter, update.charter)
    for roster in (signer, theirs):
        assert roster.handle_charter(rest.charter, [], wall=WALL) is None
    assert theirs.epoch_key == signer.epoch_key
    assert repair.grant_to_forgotten(signer, network.owner, entropy=network.entropy, wall=WALL) is None


def test_an_approval_lets_in_whom_it_names_and_is_void_once_its_signer_is_no_admin() -> None:
    network = found(3, access="approve")
    roster = network.roster(0)
    assert all(member.is_pending for member in roster.members.values())
    who = network.identities[1].public
    approval = owner.approve(roster, network.owner, who, wall=WALL)
    entry = msgspec.structs.replace(network.entries[1], approval=approval)
    assert roster.handle_entry(entry, wall=WALL) is None
    assert [member.is_pending for member in roster.members.values()] == [False, True]
    assert roster.handle_entry(network.entries[1], wall=WALL) is None  # a server that keeps the approval back
    assert [member.is_pending for member in roster.members.values()] == [False, True]


@pytest.mark.parametrize("access", ["approve", "locked"])
def test_whoever_a_server_lets_in_against_the_charter_is_no_member(network: Founded, access: str) -> None:
    roster = Roster(network.uid, network.identities[0], network.state)
    roster.handle_charter(network.charter, network.entries[:3], wall=WALL)
    update = owner.set_access(roster, network.owner, access, wall=WALL)
    roster.handle_charter(update.charter, network.entries, wall=WALL)
    assert [entry.nick for entry in roster.pending] == ["pbx3"]


def test_those_who_wait_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshvpn.proto.roster.MAX_PENDING", 2)
    network = found(5, access="approve")
    roster = Roster(network.uid, network.identities[0], network.state)
    roster.handle_charter(network.charter, network.entries, wall=WALL)
    assert len(roster.pending) == 2
    approval = owner.approve(roster, network.owner, roster.pending[0].identity, wall=WALL)
    assert roster.handle_approval(approval, wall=WALL) is None
    assert roster.handle_approval(approval, wall=WALL) is DropReason.STALE
    roster.handle_charter(network.charter, network.entries, wall=WALL)
    assert (len(roster.members), len(roster.pending)) == (3, 2)


def test_an_approval_may_come_before_the_member_and_from_anybody() -> None:
    network = found(4, access="approve")
    roster = Roster(network.uid, network.identities[0], network.state)
    roster.handle_charter(network.charter, [], wall=WALL)
    who = network.identities[2].public
    approval = owner.approve(roster, network.owner, who, wall=WALL)
    forged = network.identities[1].sign(b"meshvpn approval v1\0", approval.body)
    assert roster.handle_approval(forged, wall=WALL) is DropReason.BAD_SIGNATURE
    assert roster.handle_approval(approval, wall=WALL) is None
    again = Roster(network.uid, network.identities[0], roster.export())
    for each in (roster, again):
        assert each.approvals() == [approval]
        assert each.handle_record(network.records[2], wall=WALL) is None
        assert each.handle_record(network.records[2], wall=WALL) is DropReason.STALE
        assert not each.pending


def test_whoever_became_known_after_a_change_of_the_key_needs_the_new_one(network: Founded) -> None:
    """It may have been brought in with the old one by whom the change put out."""
    roster = Roster(network.uid, network.identities[0], network.state)
    roster.handle_charter(network.charter, network.entries[:2] + network.entries[3:], wall=WALL)
    roster.handle_charter(evict(network, roster).charter, [], wall=WALL)
    assert roster.handle_record(network.records[2], wall=WALL) is None
    old, new = (roster.members[network.identities[number].public] for number in (1, 2))
    assert [len(roster.preshared_keys(member, b"k" * 32, wall=WALL)) for member in (old, new)] == [2, 1]


def test_a_server_that_shows_another_network_than_the_passwords_is_found_out(network: Founded) -> None:
    with pytest.raises(MembershipError, match="do not trust this server"):
        admission.by_password(network.charter, OTHER_KEYS)
    charter = msgspec.structs.replace(decode_charter(network.charter), locator=OTHER_KEYS.locator)
    moved = network.owner.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))
    with pytest.raises(MembershipError, match="do not trust this server"):
        admission.by_password(moved, KEYS)


def test_a_change_made_now_comes_after_everything_that_was_merged(network: Founded) -> None:
    roster = with_charter(network, evicted={bytes(32): 40}, version=40)
    assert decode_charter(owner.set_access(roster, network.owner, "locked", wall=WALL).charter).version == 41


def test_a_leave_is_the_members_own(network: Founded) -> None:
    roster = network.roster(0)
    leave = owner.make_leave(network.uid, network.identities[1], wall=WALL - 1)
    assert roster.handle_leave(leave, wall=WALL) is DropReason.STALE  # from before it joined
    leave = owner.make_leave(bytes(16), network.identities[1], wall=WALL + 1)
    assert roster.handle_leave(leave, wall=WALL) is DropReason.NOT_FOR_US
    leave = owner.make_leave(network.uid, network.identities[1], wall=WALL + 1)
    assert roster.handle_leave(leave, wall=WALL) is None
    assert roster.handle_leave(leave, wall=WALL) is DropReason.STALE
    assert (
        roster.handle_entry(network.entries[1], wall=WALL) is DropReason.STALE
    )  # its old record does not bring it back


def with_charter(network: Founded, **changes: object) -> Roster:
    """Member 0's roster, had the owner signed that."""
    charter: Charter = msgspec.structs.replace(decode_charter(network.charter), **{"version": 2, **changes})
    signed: Signed = network.owner.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))
    roster = network.roster(0)
    assert roster.handle_charter(signed, [], wall=WALL) is None
    return roster
