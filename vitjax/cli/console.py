"""What the command line prints: tables, lines, numbers for people."""

import math
from collections.abc import Sequence
from typing import Any

from vitjax.benchmark.bench import Benchmark
from vitjax.benchmark.input_speed import Pipeline
from vitjax.checkpoints import download, registry
from vitjax.cli.explain_images import Explanations
from vitjax.cli.strongest_memories import Neuron
from vitjax.models.model import Model, parameter_shapes
from vitjax.runner.results import Results


def describe_run(results: Results) -> str:
    """One line on what a run holds."""
    manifest = results.manifest
    skipped, rate = len(manifest["skipped"]), manifest["images_per_second"]
    parts = [f"{results.path}: {manifest['data']['images']} images"]
    parts += [f"{skipped} of them could not be read"] if skipped else []
    lost = len(manifest.get("vanished") or ())
    parts += [f"{lost} of them without a token on their object"] if lost else []
    parts += [f"{rate:.1f} images/s"] if rate else []
    return ", ".join(parts)


def describe_variant(row: registry.Variant) -> tuple[str, ...]:
    """A row of `vitjax list`."""
    config, classes = row.config, len(row.labels()[0])
    shapes = parameter_shapes(config, classes)
    count = sum(math.prod(shape) for shape in shapes.values())
    size = "x".join(map(str, config.shape))
    numbers = f"{count:,}", size, str(config.tokens), str(classes)
    return row.name, *numbers, row.source, row.license, where_weights_are(row)


def describe_neuron(neuron: Neuron) -> tuple[str, ...]:
    """A row of `vitjax neurons`; blocks count from 1, as in the paper."""
    head = "" if neuron.head is None else str(neuron.head)
    pairs = zip(neuron.classes, neuron.logits)
    names = "; ".join(f"{name.split(',')[0]} {logit:.2f}" for name, logit in pairs)
    return str(neuron.layer + 1), str(neuron.memory), head, names


def describe_explained(found: Explanations, place: int, model: Model) -> str:
    """Two lines about a picture: what is explained, and what the model says."""
    names = model.classes[found.target[place]], model.classes[found.prediction[place]]
    target, answer = (name.split(",")[0] for name in names)
    return f"for {target} ({found.probability[place]:.3f})\nanswer: {answer}"


def where_weights_are(row: registry.Variant) -> str:
    """Whether a row's weights are on this machine, and else how they come here."""
    if row.packaged:
        return "in the package"
    if download.cached(row) is not None:
        return "cached"
    return "to be downloaded" if row.url else "from its authors"


def show_summary(rows: Sequence[dict[str, Any]]) -> None:
    """The numbers to quote, as a table."""

    def number(value):
        return "" if value is None else f"{value:.3f}"

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


def show_benchmark(found: Benchmark) -> None:
    """The programs one below the other, and what the figures mean."""
    print(benchmark_title(found))
    show_table(BENCHMARK_COLUMNS, benchmark_rows(found), right=range(1, 7))
    print(
        f"The analyses cost {found.ratio:.3f} and {found.one_pass_ratio:.3f} plain "
        "forward passes; counted in multiplications, "
        f"{found.identifiability.floor:.3f} and {found.one_pass.floor:.3f}."
    )
    if "removal_curve" in found.more:
        print("removal_curve: all counts of patches; passes and floor are per count.")


def benchmark_title(found: Benchmark) -> str:
    """What was measured, on what."""
    versions = ", ".join(f"{name} {text}" for name, text in found.versions.items())
    return (
        f"{found.model} on {found.device}, batch {found.batch_size}, {found.dtype}, "
        f"matmul precision {found.matmul_precision}, {found.repetitions} repetitions "
        f"({versions})"
    )


BENCHMARK_COLUMNS = (
    *("program", "images/s", "plain forward passes", "arithmetic floor"),
    *("temporary memory", "with arguments and results", "seconds to compile"),
)


def benchmark_rows(found: Benchmark) -> list[tuple[str, ...]]:
    """A row per program."""

    def text(value, form, divisor=1, unit=""):
        return "" if value is None else format(value / divisor, form) + unit

    return [
        (
            name,
            f"{timing.images_per_second:,.2f}",
            f"{timing.passes:.3f}",
            text(timing.floor, ".3f"),
            text(timing.temporary_bytes, ",.1f", 2**20, " MiB"),
            text(timing.peak_bytes, ",.1f", 2**20, " MiB"),
            text(timing.compile_seconds, ".1f"),
        )
        for name, timing in found.programs.items()
    ]


def benchmark_markdown(found: Benchmark, command: str) -> str:
    """The same table for a README, with the command that repeats it."""

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    rules = ["---", *["---:"] * (len(BENCHMARK_COLUMNS) - 1)]
    rows = [(f"`{name}`", *rest) for name, *rest in benchmark_rows(found)]
    table = [line(cells) for cells in (BENCHMARK_COLUMNS, rules, *rows)]
    return "\n".join([benchmark_title(found) + ":", "", *table, "", f"`{command}`", ""])


def show_pipeline(pipeline: Pipeline, found: Benchmark) -> None:
    """How fast images arrive, and whether the device has to wait for them."""
    by = f"{pipeline.workers} processes" if pipeline.workers else "threads"
    step = found.identifiability.images_per_second
    ratio = pipeline.images_per_second / step
    print(
        f"{pipeline.data} decoded and preprocessed by {by}: "
        f"{pipeline.images_per_second:,.1f} images/s, {ratio:.1f} times what the step "
        "takes."
    )


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
) -> None:
    """A table on stdout; the numbered columns are set flush right."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        justify = "right" if place in right else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
