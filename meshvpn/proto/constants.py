"""WireGuard's constants, first those of the specification, then those of this implementation."""

from __future__ import annotations

# Specification (WireGuard whitepaper §6.1; seconds and messages).
REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0
COOKIE_SECRET_MAX_AGE = 120.0  # §5.4.7: "every two minutes"
COOKIE_SECRET_LATENCY = 5.0  # a cookie is used a little less long than the secret behind it lives

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"  # §5.4
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"  # §5.4
LABEL_MAC1 = b"mac1----"  # §5.4
LABEL_COOKIE = b"cookie--"  # §5.4
KEY_BYTES = 32
TAG_BYTES = 16
NO_PRESHARED_KEY = bytes(KEY_BYTES)  # §5.2: all zeros without one

# Implementation.
STARTUP_RETRIES = (1.0, 2.0)
"""Seconds before the first repetitions of an initiation while no session exists: a caller waits for the first packet,
and one lost datagram must not cost it REKEY_TIMEOUT. Later ones follow the paper."""
REKEY_TIMEOUT_JITTER = 1.0 / 3.0
"""Seconds at most, drawn anew each time, so that two ends do not keep colliding (whitepaper §6.1)."""
MIN_RESEND = 0.2
"""Seconds between two initiations when a path appears: candidates come in bursts of a few milliseconds."""
INITIATION_INTERVAL = 0.02
"""Seconds. A peer's initiations are answered at most fifty times a second."""
UNDER_LOAD_RATE = 100
"""Handshake messages a second from which senders must prove their address: about 5 % of a core at 0.5 ms each."""
MAX_RATE_ENTRIES = 4096
"""Source addresses whose handshake rate is remembered (about 200 bytes each)."""
HANDSHAKES_PER_SECOND = 20
HANDSHAKES_BURSTABLE = 5
"""Handshake messages of one source address under load: twenty a second, five at once."""
