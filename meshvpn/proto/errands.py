"""Telling the rendezvous what it lacks: charters and approvals that were signed, or heard of, while it was away. Pure.

Any member may: the server checks who signed, not who sends. One request at a time; what was refused is not sent again
on the same connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import control
from .charter import Charter, check_charter, check_genuine, decode_charter, may_sign_for_network
from .control import MAX_MEMBERS, MemberEntry
from .control_session import ControlSession
from .errors import MalformedMessage
from .roster import Roster
from .signed import Signed


class Errands:
    """What the server has, as far as it told us, and the request under way."""

    def __init__(self, roster: Roster, session: ControlSession) -> None:
        self._roster = roster
        self._session = session
        self._charter: Signed | None = None
        self._epoch: int | None = None
        self._approvals: dict[bytes, Signed | None] = {}
        self._tried: set[Signed] = set()
        self._underway: tuple[int, Signed] | None = None

    @property
    def is_epoch_known(self) -> bool:
        """False while the server has a charter of another epoch than our key, and takes no record of ours."""
        return self._epoch in (None, self._roster.key_epoch)

    @property
    def usurped(self) -> Charter | None:
        """The server's charter, if it is by an admin who may not sign any more as far as we know: it lacks what we
        have, and does not take that, since its own line is longer.
        """
        if self._charter is None or may_sign_for_network(self._roster.charter, self._charter.signer):
            return None
        try:
            return check_genuine(self._charter)
        except MalformedMessage:
            return None  # it is nobody's

    def handle_detached(self) -> None:
        """From here on we don't know."""
        self._charter = self._epoch = self._underway = None
        self._approvals.clear()
        self._tried.clear()

    def handle_charter(self, charter: Signed, members: Sequence[MemberEntry]) -> None:
        """Its charter, with everybody's entries. Of one that makes no sense nothing follows."""
        try:
            self._epoch = decode_charter(charter).epoch
        except MalformedMessage:
            return self.handle_detached()
        self._charter = charter
        self._approvals = {entry.identity: entry.approval for entry in members[:MAX_MEMBERS]}

    def handle_stored(self, charter: Signed) -> None:
        """It took this one from us."""
        self._charter, self._epoch = charter, decode_charter(charter).epoch

    def handle_entry(self, entry: MemberEntry) -> None:
        """One member's."""
        if entry.identity in self._approvals or len(self._approvals) < MAX_MEMBERS:
            self._approvals[entry.identity] = entry.approval

    def handle_finished(self, rid: int, code: str | None) -> bool:
        """A request ended; True if it was one of these."""
        if self._underway is None or self._underway[0] != rid:
            return False
        _, told = self._underway
        self._underway = None
        if code is None and told == self._roster.signed_charter:
            self.handle_stored(told)
        return True

    def run(self, envelopes: Callable[[], list[Signed]], *, now: float) -> None:
        """Ask for the next thing, if there is one. `envelopes` go with a charter."""
        if self._underway is not None or self._charter is None or not self._session.is_attached:
            return
        ours = self._roster.signed_charter
        if self._is_due(ours, self._charter) and self._may_follow(ours, self._charter):
            sealed = envelopes()
            self._ask(ours, lambda rid: control.PutCharter(rid=rid, charter=ours, envelopes=sealed), now)
            return
        for identity, theirs in self._approvals.items():
            approval = self._roster.approval_of(identity)
            is_held = theirs is not None and may_sign_for_network(self._roster.charter, theirs.signer)
            if approval is not None and not is_held and self._is_due(approval, theirs):
                self._approvals[identity] = approval
                self._ask(approval, _put_approval(approval), now)
                return

    def _is_due(self, ours: Signed, theirs: Signed | None) -> bool:
        return ours != theirs and ours not in self._tried

    def _may_follow(self, ours: Signed, theirs: Signed) -> bool:
        try:
            check_charter(ours, theirs)
        except MalformedMessage:
            return False  # the server's line goes on by itself, or an admin joins the two
        return True

    def _ask(self, what: Signed, build: Callable[[int], control.Request], now: float) -> None:
        self._tried.add(what)
        self._underway = (self._session.request(build, now=now), what)


def _put_approval(approval: Signed) -> Callable[[int], control.Request]:
    return lambda rid: control.PutApproval(rid=rid, approval=approval)
