"""The operating system's randomness, for machines that take it as a parameter."""

from __future__ import annotations

import secrets


def entropy(size: int) -> bytes:
    """`size` random bytes."""
    return secrets.token_bytes(size)
