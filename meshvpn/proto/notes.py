"""What a roster writes down for the audit list, with the signed statement that proves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .acts import decode_act, words_of
from .audit import Entry
from .keys import verify
from .signed import DOMAIN_ACT, Signed


class Notes:
    """`acts` are those that were written down, of the ones that the charter carries."""

    def __init__(
        self,
        uid: bytes,
        acts: Iterable[Signed],
        nick_of: Callable[[bytes], str],
        open_sealed: Callable[[bytes], bytes | None],
    ) -> None:
        self.acts = frozenset(acts)
        self._uid = uid
        self._nick_of = nick_of
        self._open = open_sealed

    def of_acts(self, acts: list[Signed], *, wall: int) -> tuple[list[Entry], int]:
        """What the charter's acts say that is new, and how many of them are forged."""
        known, self.acts = self.acts, frozenset(acts)
        news = [] if known == self.acts else [signed for signed in acts if signed not in known]
        entries = [self._of_act(signed, wall) for signed in news]
        genuine = [entry for entry in entries if entry is not None]
        return genuine, len(entries) - len(genuine)

    def of(
        self,
        kind: str,
        evidence: Signed,
        at: int,
        subject: bytes | None,
        *,
        wall: int,
        nick: str = "",
        detail: str = "",
    ) -> Entry:
        """An entry; `subject` is whom it happened to, `at` when, by the clock of who signed the evidence."""
        return Entry(
            seen_at=wall,
            at=at,
            kind=kind,
            subject=subject,
            nick=nick or ("" if subject is None else self._nick_of(subject)),
            actor=evidence.signer,
            actor_nick=self._nick_of(evidence.signer),
            detail=detail,
            evidence=evidence,
        )

    def _of_act(self, signed: Signed, wall: int) -> Entry | None:
        act = decode_act(signed)  # its shape was checked with the charter's
        if act.uid != self._uid or not verify(signed, DOMAIN_ACT):
            return None
        words = words_of(act, self._open)
        return self.of(act.kind, signed, act.at, act.subject, wall=wall, nick=words.nick, detail=words.detail)
