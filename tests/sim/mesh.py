"""A network of whole members around one rendezvous: who is where, streams of packets between them, what arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from meshvpn.proto.keys import NetworkKeys
from meshvpn.proto.options import Options

from .member import VOICE_BYTES, Arrival, Member
from .nat import Firewall
from .network import Host, Link, Segment
from .rendezvous import Rendezvous
from .world import ONE_WAY, PORT_RESTRICTED, SERVER, Kind, World

KEYS = NetworkKeys(b"L" * 32, b"W" * 32)
"""What everybody gets from the name and the password."""
NEW_KEYS = NetworkKeys(b"M" * 32, b"X" * 32)
"""After a change of the password."""


@dataclass(slots=True)
class Stream:
    """Numbered packets from one member to another."""

    source: Member
    destination: Member
    interval: float
    sent: dict[int, float] = field(default_factory=dict)
    is_on: bool = True

    def arrivals(self, number: int) -> list[Arrival]:
        return self.destination.arrivals.get((self.source.address, number), [])

    @property
    def lost(self) -> list[float]:
        """When those packets were sent that never arrived."""
        return [at for number, at in self.sent.items() if not self.arrivals(number)]

    @property
    def repeated(self) -> int:
        return sum(len(self.arrivals(number)) > 1 for number in self.sent)

    def lost_since(self, at: float) -> int:
        return sum(sent_at >= at for sent_at in self.lost)


class Mesh(World):
    """One network; members by name."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.rendezvous = Rendezvous(self.network, self.relay)
        self.members: dict[str, Member] = {}
        self.streams: list[Stream] = []
        self._numbers = count(1)

    @property
    def transcript(self) -> str:
        """A hash over every datagram and every control message."""
        return f"{self.network.transcript} {self.rendezvous.transcript}"

    def add_member(
        self, name: str, kind: Kind = PORT_RESTRICTED, *, loss: float = 0.0, outside: Segment | None = None
    ) -> Member:
        """A host of that kind with a daemon that is in no network."""
        link = Link(latency=ONE_WAY, loss=loss)
        segment = self._make_routers(name, kind, outside or self.internet, link, False)
        is_public = not kind.nats
        member = Member(self.network, self.rendezvous, (SERVER,), name)
        address = f"20.{self._sites}.0.1" if is_public else f"192.168.{self._sites}.10"
        member.host = Host(
            self.network,
            name,
            member,
            segment,
            (address,),
            {0: 41000},
            link=link if is_public else None,
            firewall=Firewall() if kind.has_firewall else None,
            strips_relay=False,
        )
        self.members[name] = member
        self.hosts[name] = member.host
        return member

    def found(
        self, *kinds: Kind, loss: float = 0.0, settle: float = 3.0, options: Options | None = None
    ) -> list[Member]:
        """Members a, b, c …: the first founds the network, the others join at once a second later."""
        members = [self.add_member(_name(number), kind, loss=loss) for number, kind in enumerate(kinds)]
        for member in members:
            member.options = options or Options()
        members[0].create(KEYS)
        self.run(1.0)
        for member in members[1:]:
            member.join(KEYS)
        self.run(settle)
        return members

    def stream(self, source: Member, destination: Member, interval: float = 0.02) -> Stream:
        """Send from now on."""
        stream = Stream(source, destination, interval)
        self.streams.append(stream)
        self._tick(stream)
        return stream

    def stop_streams(self) -> None:
        """No packet is sent from now on; those on their way arrive."""
        for stream in self.streams:
            stream.is_on = False
        self.run(1.0)

    def send(self, source: Member, destination: Member, size: int = VOICE_BYTES) -> Callable[[], list[Arrival]]:
        """One packet; the function tells when it arrived."""
        stream = Stream(source, destination, 0.0, is_on=False)
        number = next(self._numbers)
        source.send(destination.address, number, size)
        return lambda: stream.arrivals(number)

    def reaches(self, source: Member, destination: Member, size: int = VOICE_BYTES, *, within: float = 3.0) -> bool:
        """Does a packet that is sent now arrive?"""
        arrivals = self.send(source, destination, size)
        return self.network.run_until_true(lambda: bool(arrivals()), self.network.now + within) is not None

    def run_until(self, condition: Callable[[], bool], within: float) -> float:
        """Advance until it holds; seconds from now. It is an error if it never does."""
        started_at = self.network.now
        at = self.network.run_until_true(condition, started_at + within)
        assert at is not None, f"not within {within} s"
        return at - started_at

    def _tick(self, stream: Stream) -> None:
        if not stream.is_on:
            return
        number = next(self._numbers)
        stream.sent[number] = self.network.now
        stream.source.send(stream.destination.address, number)
        self.network.call_at(self.network.now + stream.interval, lambda: self._tick(stream))


def pairs(members: list[Member]) -> list[tuple[Member, Member]]:
    """All of them, in both directions."""
    return [(left, right) for left in members for right in members if left is not right]


def assert_untouched(streams: list[Stream]) -> None:
    """Every packet came once."""
    for stream in streams:
        assert len(stream.sent) > 100
        assert not stream.lost
        assert not stream.repeated


def _name(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"m{number}"
