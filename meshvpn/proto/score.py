"""How good a call on a path would sound: the E-model (ITU-T G.107), reduced to what a network can change.

R = 93.2 - Id - Ie_eff. Delay (G.107 §7.4 in the usual linear form): Id = 0.024·d + 0.11·(d - 177.3) beyond 177.3 ms.
Loss (G.113 Appendix I, G.711 with packet loss concealment, random loss): Ie_eff = 95·P / (P + 25.1), P in percent.
"""

from __future__ import annotations

import math

BASE_R = 93.2
_PACKETISATION = 20.0
"""Milliseconds of speech in one packet."""
_KNEE = 177.3
_LOSS_ROBUSTNESS = 25.1
SWITCH_MARGIN = 5.0
"""Points of R by which another path must be better: half of what a listener notices as a step of quality."""
DIRECT_BONUS = 3.0
"""Points: of two paths that sound alike, the one without a third party's bandwidth and fate. Less than a listener
notices (5), and as much as 125 ms of delay cost below the knee."""
MEMBER_BONUS = 1.0
"""Points of a relay that is a member: the rendezvous serves every network, and its bandwidth is somebody's bill."""
_CONFIDENCE = 1.28
"""Standard deviations: in one case of ten the true loss is above the upper bound, in one of ten below the lower."""
SURE = 2.0
"""The same where there are many packets, and a verdict several times a second: in one case of fifty."""


def r_factor(rtt: float, jitter: float, loss: float) -> float:
    """R (0 … 93.2) from seconds of round trip and jitter and a share of lost packets (0 … 1)."""
    # A playout buffer holds about twice the jitter; half of the round trip is the network's part of the delay.
    delay = 1000 * (rtt / 2 + 2 * jitter) + _PACKETISATION
    delay_loss = 0.024 * delay + (0.11 * (delay - _KNEE) if delay > _KNEE else 0.0)
    percent = 100 * min(max(loss, 0.0), 1.0)
    return max(0.0, BASE_R - delay_loss - 95 * percent / (percent + _LOSS_ROBUSTNESS))


def one_way_loss(round_trip: float) -> float:
    """The share lost one way, from that of round trips, as if both ways were alike."""
    return 1 - math.sqrt(1 - min(max(round_trip, 0.0), 1.0))


def loss_bounds(lost: int, total: int, confidence: float = _CONFIDENCE) -> tuple[float, float]:
    """Between which shares the true loss lies, probably (Wilson's interval). Few pings say little: (0, 1) for none."""
    if total == 0:
        return 0.0, 1.0
    share, square = lost / total, confidence**2
    middle = share + square / (2 * total)
    width = confidence * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    scale = 1 + square / total
    # Around the share itself whatever was rounded: at a loss near 1, R makes much of little.
    return max(0.0, min(share, (middle - width) / scale)), min(1.0, max(share, (middle + width) / scale))


def mos(r: float) -> float:
    """Mean opinion score (1 … 4.5) of an R (G.107 Annex B)."""
    if r <= 0:
        return 1.0
    if r >= 100:
        return 4.5
    # The polynomial dips below 1 for R under 6.5.
    return max(1.0, 1 + 0.035 * r + r * (r - 60) * (100 - r) * 7e-6)
