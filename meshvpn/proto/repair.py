"""What the host of an owner or admin signs unasked, so that the members' charters become one again. Pure."""

from __future__ import annotations

import msgspec

from . import drafts
from .charter import Charter, is_banned, merge_versions
from .drafts import CharterUpdate
from .keys import Entropy, Identity
from .roster import Roster
from .signed import Signed


def join_lines(
    roster: Roster, signer: Identity, founder: Identity, own_record: Signed | None, *, entropy: Entropy, wall: int
) -> CharterUpdate | None:
    """One charter for all that admins did who were cut off from each other; None if there is nothing to join.

    Whoever one of them evicted has the epoch key of the others: then the epoch changes once more. A password that not
    all lines have is known to somebody who was evicted, so it retires.
    """
    charter = drafts.writable(roster, signer)
    is_betrayed = any(is_banned(charter, who) for who in charter.grants)
    if roster.lines.are_joined and not is_betrayed:
        return None
    if not is_betrayed:
        return drafts.update(roster, charter, signer, wall)
    settings = roster.settings
    secrets = (charter.locator, settings.wrap_key) if roster.lines.is_one_password else (None, None)
    return drafts.rotate(roster, signer, founder, own_record, charter, secrets, entropy(32), entropy=entropy, wall=wall)


def overrule(
    roster: Roster,
    signer: Identity,
    founder: Identity,
    own_record: Signed | None,
    theirs: Charter,
    *,
    entropy: Entropy,
    wall: int,
) -> CharterUpdate:
    """Go on from a charter that the server took from an admin who was dismissed or evicted, as we know and it did not.

    Whom that one banned or unbanned is as before; the server wants to see that nothing is forgotten.
    """
    charter = drafts.writable(roster, signer)
    version = max(charter.version, theirs.version) + 1
    evicted, unbanned = (
        merge_versions(charter.evicted, theirs.evicted),
        merge_versions(charter.unbanned, theirs.unbanned),
    )
    both = msgspec.structs.replace(charter, evicted=evicted, unbanned=unbanned)
    for who in {*evicted, *unbanned}:
        if is_banned(charter, who) != is_banned(both, who):
            (evicted if is_banned(charter, who) else unbanned)[who] = version
    over = msgspec.structs.replace(both, epoch=max(charter.epoch, theirs.epoch))
    secrets = (charter.locator, roster.settings.wrap_key)
    return drafts.rotate(
        roster, signer, founder, own_record, over, secrets, entropy(32), version=version, entropy=entropy, wall=wall
    )


def grant_to_forgotten(roster: Roster, signer: Identity, *, entropy: Entropy, wall: int) -> CharterUpdate | None:
    """The epoch's key for members who joined before it and had none: unknown or not approved then; None without any."""
    charter = drafts.writable(roster, signer)
    records = roster.forgotten()
    if not records:
        return None
    epoch, epoch_key = charter.epoch, roster.epoch_key
    grants = {who: drafts.grant(who, roster.uid, epoch, epoch_key, entropy) for who in records}
    update = drafts.update(roster, charter, signer, wall, grants={**charter.grants, **grants})
    envelopes = [drafts.envelope(signer, record, roster.uid, epoch, epoch_key, entropy) for record in records.values()]
    return CharterUpdate(update.charter, envelopes)


def seal_records(roster: Roster, signer: Identity, own_record: Signed | None, *, entropy: Entropy) -> list[Signed]:
    """Everybody's record under the current epoch key, for a server that has older ones; our own only if we may not."""
    records = [] if own_record is None else [own_record]
    if roster.role(signer) != "member":
        records += roster.records().values()
    return [
        drafts.envelope(signer, record, roster.uid, roster.key_epoch, roster.epoch_key, entropy) for record in records
    ]
