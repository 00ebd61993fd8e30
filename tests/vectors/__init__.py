"""Published test vectors as JSON; README.md names where each comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The contents of one file; byte strings are hexadecimal in it."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def unhex(case: dict[str, str]) -> dict[str, bytes]:
    """A case whose values are all byte strings."""
    return {name: bytes.fromhex(value) for name, value in case.items()}
