"""What the command line prints: tables, lines, numbers for people."""

import math
from collections.abc import Sequence
from typing import Any

from vitjax import loading, variants
from vitjax.models.model import Model
from vitjax.models.tree import parameter_shapes
from vitjax.results import Results
from vitjax.runner.bench import Benchmark, Pipeline
from vitjax.runner.explaining import Explanations
from vitjax.runner.neurons import Neuron


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


def describe_variant(row: variants.Variant) -> tuple[str, ...]:
    """A row of `vitjax list`."""
    config, classes = row.config, len(row.labels()[0])
    shapes = parameter_shapes(config, classes)
    count = sum(math.prod(shape) for shape in shapes.values())
    size = "x".join(map(str, config.shape))
    numbers = f"{count:,}", size, str(config.tokens), str(classes)
    return row.name, *numbers, row.source, row.licence, where_weights_are(row)


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


def where_weights_are(row: variants.Variant) -> str:
    """Whether a row's weights are on this machine, and else how they come here."""
    if row.packaged:
        return "in the package"
    if loading.cached(row) is not None:
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
    """The programs side by side."""
    timings = found.forward, found.identifiability, found.one_pass

    def row(name, text):
        return (name, *map(text, timings))

    def size(count):
        return "not counted" if count is None else f"{count / 2**20:,.1f} MiB"

    print(
        f"{found.model} on {found.device}, batch {found.batch_size}, {found.dtype}, "
        f"matmul precision {found.matmul_precision}, {found.repetitions} repetitions"
    )
    lines = [
        row("images/s", lambda t: f"{t.images_per_second:,.1f}"),
        row("seconds per batch", lambda t: f"{t.seconds:.4f}"),
        row("seconds to compile", lambda t: f"{t.compile_seconds:.1f}"),
        row("temporary memory", lambda t: size(t.temporary_bytes)),
        row("with arguments and results", lambda t: size(t.peak_bytes)),
        row("peak that the device counted", lambda t: size(t.device_peak_bytes)),
    ]
    columns = ("", "forward", "identifiability", "one pass of the paper")
    show_table(columns, lines, right=(1, 2, 3))
    print(
        f"The analyses cost {found.ratio:.3f} and {found.one_pass_ratio:.3f} plain "
        f"forward passes; counted in multiplications both would be "
        f"{found.ratio_floor:.3f}."
    )
    if found.more:
        lines = [
            (
                name,
                f"{timing.images_per_second:,.2f}",
                f"{found.more_ratios[name]:.3f}",
                size(timing.temporary_bytes),
            )
            for name, timing in found.more.items()
        ]
        columns = ("", "images/s", "plain forward passes", "temporary memory")
        show_table(columns, lines, right=(1, 2, 3))
        if "removal_curve" in found.more:
            print("removal_curve: all counts of patches; passes are per count.")


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
