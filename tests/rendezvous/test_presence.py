"""Who is connected and who is told what. Connections are strings here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.control import Done, Goodbye, Presence, PresenceEntry, Signalled
from rendezvous.core import Notice
from rendezvous.presence import REPLACED, Delivery, PresenceTable

NET, OTHER = b"n" * 16, b"o" * 16
NEWS = Done(rid=0)


def test_the_others_of_the_network_hear_who_comes_and_who_goes() -> None:
    table = filled()
    assert table.attach("carl", NET, b"c", 3) == [Delivery(["anna", "bert"], Presence(entry=PresenceEntry(b"c", 3)))]
    assert table.detach("anna") == [Delivery(["bert", "carl"], Presence(entry=PresenceEntry(b"a", 0)))]
    assert table.online(NET) == [PresenceEntry(b"b", 2), PresenceEntry(b"c", 3)]


def test_a_network_with_nobody_else_in_it_hears_nothing() -> None:
    table: PresenceTable[str] = PresenceTable()
    assert table.attach("anna", NET, b"a", 1) == []
    assert table.detach("anna") == []
    assert (len(table), table.online(NET)) == (0, [])


def test_a_member_that_connects_again_replaces_its_older_connection() -> None:
    table = filled()
    assert table.attach("anna again", NET, b"a", 9) == [
        Delivery(["anna"], REPLACED, is_last=True),
        Delivery(["bert"], Presence(entry=PresenceEntry(b"a", 9))),
    ]
    assert table.seat("anna") is None
    assert table.detach("anna") == []
    assert table.online(NET) == [PresenceEntry(b"b", 2), PresenceEntry(b"a", 9)]


def test_a_lone_member_that_connects_again_is_still_there() -> None:
    table: PresenceTable[str] = PresenceTable()
    table.attach("anna", NET, b"a", 1)
    assert table.attach("anna again", NET, b"a", 2) == [Delivery(["anna"], REPLACED, is_last=True)]
    assert table.detach("anna") == []
    assert table.online(NET) == [PresenceEntry(b"a", 2)]


def test_the_same_identity_in_two_networks_is_two_members() -> None:
    table = filled()
    assert table.attach("anna elsewhere", OTHER, b"a", 5) == []
    assert len(table) == 3


def test_news_goes_to_everybody_but_who_made_it() -> None:
    table = filled()
    assert table.publish(NET, Notice([NEWS]), sender="anna") == [Delivery(["bert"], NEWS)]
    assert table.publish(NET, Notice([NEWS]), sender=None) == [Delivery(["anna", "bert"], NEWS)]
    assert table.publish(OTHER, Notice([NEWS]), sender=None) == []


def test_who_has_to_go_hears_the_news_first_and_is_out_at_once() -> None:
    table, goodbye = filled(), Goodbye(code="evicted", message="")
    notice = Notice([NEWS], {b"b": goodbye, b"nobody": goodbye})
    assert table.publish(NET, notice, sender="anna") == [
        Delivery(["bert"], NEWS),
        Delivery(["bert"], goodbye, is_last=True),
    ]
    assert table.seat("bert") is None
    assert table.detach("bert") == []
    seat = table.seat("anna")
    assert seat is not None
    assert table.signal(seat, b"b", b"payload") == []


def test_a_signal_reaches_the_member_it_is_for_and_nobody_else() -> None:
    table = filled()
    table.attach("carl", OTHER, b"c", 3)
    seat = table.seat("anna")
    assert seat is not None
    assert table.signal(seat, b"b", b"payload") == [Delivery(["bert"], Signalled(source=b"a", payload=b"payload"))]
    for nobody in (b"c", b"unknown"):
        assert table.signal(seat, nobody, b"payload") == []


def test_a_signal_to_oneself_goes_nowhere() -> None:
    table = filled()
    seat = table.seat("anna")
    assert seat is not None
    assert table.signal(seat, b"a", b"payload") == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["attach", "detach", "evict"]), st.integers(0, 7), st.sampled_from([NET, OTHER])),
        max_size=60,
    )
)
def test_whatever_happens_the_two_indexes_agree(steps: list[tuple[str, int, bytes]]) -> None:
    table: PresenceTable[int] = PresenceTable()
    for step, number, uid in steps:
        identity = bytes([number % 4])
        if step == "attach" and table.seat(number) is None:
            table.attach(number, uid, identity, number + 1)
        elif step == "detach":
            table.detach(number)
        elif step == "evict":
            table.publish(uid, Notice([], {identity: Goodbye(code="evicted", message="")}), sender=None)
        online = [(net, entry) for net in (NET, OTHER) for entry in table.online(net)]
        assert len(table) == len(online)
        assert len({(net, entry.identity) for net, entry in online}) == len(online)
        seats = [seat for number in range(8) if (seat := table.seat(number)) is not None]
        assert {(seat.uid, seat.identity, seat.relay_id) for seat in seats} == {
            (net, entry.identity, entry.relay_id) for net, entry in online
        }


def filled() -> PresenceTable[str]:
    table: PresenceTable[str] = PresenceTable()
    table.attach("anna", NET, b"a", 1)
    table.attach("bert", NET, b"b", 2)
    return table
