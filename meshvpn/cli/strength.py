"""How soon a password is guessed, and passwords that nobody guesses."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

GUESSED = 1e6
"""Tries that a refused password withstands at most. One takes about 0.3 s of a core (Argon2id), so this one falls
within days, on one machine, to whoever got hold of the server's database."""
WEAK = 1e8
"""Tries below which a password is warned of: days for a hundred machines."""
GENERATED_BITS = 80

_MAX_JUDGED = 72
"""Characters. More of them only make it stronger, and the library's time grows with their square."""
_USUAL = ("meshvpn", "asterisk", "freepbx", "hamachi", "voip")
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


@dataclass(frozen=True, slots=True)
class Strength:
    """How many tries find a password, and why."""

    guesses: float
    why: str

    @property
    def is_refused(self) -> bool:
        """True if it is as good as none."""
        return self.guesses < GUESSED

    @property
    def is_weak(self) -> bool:
        """True if it should be better."""
        return self.guesses < WEAK

    def __str__(self) -> str:
        count = int(self.guesses)
        tries = f"about {10 ** (len(str(count)) - 1) if count >= 1000 else count:,} tries find it"
        return f"{tries} ({self.why})" if self.why else tries


def judge(password: str, known: Iterable[str]) -> Strength:
    """Estimate it; `known` are names that whoever guesses tries first, such as the network's."""
    from zxcvbn import zxcvbn  # 30 ms that no other command has to wait for

    found = zxcvbn(password[:_MAX_JUDGED], user_inputs=list(_words(known)))
    warning = found["feedback"]["warning"].rstrip(".")
    return Strength(float(found["guesses"]), f"{warning[:1].lower()}{warning[1:]}")


def generate() -> str:
    """Five words of 16 bits that can be spoken on the telephone, as of the proquint proposal: lusab-babad-…."""
    return "-".join(_word(secrets.randbits(16)) for _ in range(GENERATED_BITS // 16))


def _word(number: int) -> str:
    """Consonants of four bits and vowels of two in turn."""
    parts = ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS))
    return "".join(letters[number >> shift & len(letters) - 1] for shift, letters in parts)


def _words(known: Iterable[str]) -> dict[str, None]:
    found = dict.fromkeys(name.casefold() for name in known)
    found |= dict.fromkeys(part for name in found for part in re.split(r"[\W_]+", name) if len(part) > 1)
    return found | dict.fromkeys(_USUAL)
