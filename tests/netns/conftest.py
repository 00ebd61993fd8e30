"""The scenarios' asserts tell what they compared."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.netns.scenarios",
    *(f"tests.netns.{kind}_scenarios" for kind in ("host", "ipv6", "mtu", "nat", "path", "server")),
)
