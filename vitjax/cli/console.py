"""Tables and lines on stdout that several commands print."""

from collections.abc import Sequence
from typing import Any


def describe_run(results: Any) -> str:
    """One line on what a run holds."""
    manifest = results.manifest
    parts = [f"{results.path}: {results.sizes['image']} images"]
    for count, text in (
        (len(results.pending), "are pending"),
        (len(manifest["skipped"]), "could not be read"),
        (len(manifest["no_object_tokens"]), "have no token on their object"),
    ):
        parts += [f"{count} of them {text}"] if count else []
    rate = manifest["images_per_second"]
    parts += [f"{rate:.1f} images/s"] if rate else []
    return ", ".join(parts)


def show_summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print the numbers to quote, as a table."""

    def number(value):
        return "" if value is None or value != value else f"{value:.3f}"

    lines = [
        (
            row["quantity"],
            number(row["value"]),
            f"{number(row['low'])} to {number(row['high'])}",
            number(row["chance"]),
        )
        for row in rows
    ]
    show_table(("", "mean", "95 % interval", "chance"), lines, right=(1, 2, 3))


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
) -> None:
    """Print a table; columns of the numbers in `right` are set flush right."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        justify = "right" if position in right else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
