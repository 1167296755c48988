"""Colours of print and of the page."""

import pytest

from vitjax.report import ink


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("colours, page", [("COLOURS", "#ffffff"), ("DARK", "#14171b")])
def test_series_are_legible_on_their_page(colours, page):
    for colour in getattr(ink, colours):
        light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_every_colour_of_print_has_a_variable():
    used = {*ink.COLOURS, ink.INK, ink.MUTED, ink.GRID, ink.PAPER}
    assert used == set(ink.VARIABLES)
    assert len(set(ink.VARIABLES.values())) == len(ink.VARIABLES)
    assert len(ink.MARKERS) == len(ink.SIGNS) == len(ink.COLOURS) == len(ink.DARK)


def test_settings_end_with_their_context():
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    with ink.style(**{"font.size": 31}):
        assert matplotlib.rcParams["font.size"] == 31
        assert matplotlib.rcParams["text.parse_math"] is False
    assert matplotlib.rcParams["font.size"] == before
