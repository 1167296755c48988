"""Colors, markers and matplotlib settings that all figures share."""

from contextlib import AbstractContextManager
from typing import Any

COLORS = (
    "#1f6fc4",  # blue
    "#c75109",  # vermilion
    "#0b8060",  # green
    "#a5378f",  # purple
    "#8c6d00",  # ochre
    "#5750c9",  # indigo
    "#b3263d",  # crimson
    "#4f6b75",  # slate
)
"""Of series, in order: distinct for the color-blind, contrast 4.5 : 1 on white."""

DARK = (
    "#6cb0ff",
    "#ff9a5c",
    "#45c79c",
    "#e68bd2",
    "#d9b84a",
    "#aaa5ff",
    "#ff8494",
    "#a3b7c0",
)
"""The same on a dark page."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
"""The same markers as characters, for legends in a page."""

INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6670", "#dfe3e8", "#fefeff"

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{color: f"var(--series-{i})" for i, color in enumerate(COLORS)},
}
"""Color in print -> variable of the page, which differs in light and dark."""


def settings(**more: Any) -> AbstractContextManager:
    """A context with the settings that all figures share, and more."""
    from matplotlib import rc_context

    shared: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # names of runs may hold a dollar
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.linewidth": 0.7,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    shared |= more
    return rc_context(shared)


KINDS = {"cls": 0, "image": 1, "register": 5, "object": 3, "context": 2}
"""Kind of tokens -> its number among colors and markers, in figures of a single run."""
