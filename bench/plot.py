"""Bars with whiskers as SVG, legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .figures import Figure

WIDTH, LABEL, ROW, BAR, TITLE = 820, 120, 26, 16, 34
_NOTE = 210
"""Room to the right of the longest bar for its text."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One contestant."""

    label: str
    value: Figure
    note: str = ""
    colour: str = "#7d8590"


@dataclass(frozen=True, slots=True)
class Panel:
    """Some bars of one scale."""

    title: str
    bars: Sequence[Bar]


def draw(panels: Sequence[Panel], caption: str) -> str:
    """The panels below each other."""
    parts: list[str] = []
    y = 10
    for panel in panels:
        y = _panel(parts, panel, y)
    parts.append(_text(10, y + 14, caption, size=11))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 26}" font-family="sans-serif">'
    style = "<style>text{fill:#1f2328}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>"
    return "\n".join([head, style, *parts, "</svg>", ""])


def _panel(parts: list[str], panel: Panel, y: int) -> int:
    parts.append(_text(10, y + 18, panel.title, size=15, weight="bold"))
    y += TITLE
    # A whisker that is far off the scale is cut, lest it make all bars short.
    most = min(max(bar.value.high for bar in panel.bars), 1.5 * max(bar.value.median for bar in panel.bars))
    scale = (WIDTH - LABEL - _NOTE) / most
    for bar in panel.bars:
        low, middle, high = (
            LABEL + min(value, most) * scale for value in (bar.value.low, bar.value.median, bar.value.high)
        )
        centre = y + BAR / 2
        parts += [
            _text(LABEL - 8, y + 13, bar.label, anchor="end"),
            f'<rect x="{LABEL}" y="{y}" width="{middle - LABEL:.1f}" height="{BAR}" rx="2" fill="{bar.colour}"/>',
            f'<path d="M{low:.1f} {centre}H{high:.1f}" stroke="#d29922" stroke-width="2"/>',
            _text(high + 8, y + 13, ", ".join([f"{bar.value.median:.1f}", *([bar.note] if bar.note else [])])),
        ]
        y += ROW
    return y + 12


def _text(x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
