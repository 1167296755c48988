"""The command `bench`: what a model's forward pass and analyses cost on this device."""

import dataclasses
import json
import pathlib
from typing import Annotated, Literal

import jax

from vitjax.benchmark import reference_vits
from vitjax.benchmark.bench import Benchmark, bench
from vitjax.benchmark.input_speed import bench_data
from vitjax.checkpoints import loading
from vitjax.cli.command import ModelCommand, format_table, make_folder, metavar
from vitjax.saliency.methods import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(ModelCommand):
    """Measure forward passes, analyses and explanations on this device.

    Without --checkpoint, weights are random, which are as fast.

    Example: vitjax bench --model vit_b16 --all --out bench.json

    Args:
        batch_size: images per step over all devices.
        dtype: what the model computes in.
        repetitions: of each program, in turns; medians count.
        platform: cpu, gpu or tpu; by default the best there is.
        data: also measure how fast the host decodes and preprocesses this data set.
        workers: processes that do so; 0 for threads.
        explanations: also measure these explanation methods, and removal_curve; all
            for every one of them, which takes long.
        recipes: also measure the steps of these recipes.
        against: also measure the same forward pass of flax.linen's own layers, or of
            timm in PyTorch.
        all: everything: the paper's recipes, all explanations, and flax.linen.
        out: JSON file for the figures; a table in Markdown is written beside it.
    """

    batch_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    repetitions: int = 7
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    data: Annotated[str | None, metavar("SOURCE")] = None
    workers: int = 0
    explanations: Annotated[tuple[str, ...], metavar("METHOD...")] = ()
    recipes: Annotated[tuple[str, ...], metavar("RECIPE...")] = ()
    against: tuple[Literal["flax.linen", "timm"], ...] = ()
    all: bool = False
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None

    def __call__(self) -> Benchmark:
        if self.out:
            make_folder(self.out.parent)
        model = loading.init(self.model) if self.weightless else self.load()
        explanations, recipes, against = self.explanations, self.recipes, self.against
        if self.all or explanations == ("all",):
            explanations = (*METHODS, "removal_curve")
        if self.all:
            recipes += ("paper",)
            if reference_vits.is_plain(model.config):
                against = tuple(dict.fromkeys((*against, "flax.linen")))
        result = bench(
            model,
            batch_size=self.batch_size,
            dtype=self.dtype,
            repetitions=self.repetitions,
            devices=jax.devices(self.platform),
            explanations=explanations,
            recipes=recipes,
            against=against,
        )
        figures, text = dataclasses.asdict(result), describe(result)
        if self.data:
            speed = bench_data(
                self.data, model, batch_size=self.batch_size, workers=self.workers
            )
            figures["data"] = dataclasses.asdict(speed)
            ratio = speed.images_per_second / result.identifiability.images_per_second
            text += (
                f"\n\n{speed.data} decoded and preprocessed by "
                f"{f'{self.workers} processes' if self.workers else 'threads'}: "
                f"{speed.images_per_second:,.1f} images/s, {ratio:.1f} times what the "
                "step takes."
            )
        self.show(figures, text)
        if self.out:
            self.out.write_text(json.dumps(figures, indent=1) + "\n")
            self.out.with_suffix(".md").write_text(f"{text}\n\n`{self}`\n")
        return result


def describe(result: Benchmark) -> str:
    """What was measured, on what, and a row of a Markdown table per program."""

    def text(value, form, divisor=1, unit=""):
        return "" if value is None else format(value / divisor, form) + unit

    header = (
        "program",
        "images/s",
        "relative cost",
        "MAC ratio",
        "temporary memory",
        "with arguments and results",
        "seconds to compile",
    )
    rows = [
        (
            f"`{name}`",
            f"{timing.images_per_second:,.2f}",
            f"{timing.passes:.3f}",
            text(timing.floor, ".3f"),
            text(timing.temporary_bytes, ",.1f", 2**20, " MiB"),
            text(timing.peak_bytes, ",.1f", 2**20, " MiB"),
            text(timing.compile_seconds, ".1f"),
        )
        for name, timing in result.programs.items()
    ]
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    rows = [["---"] + ["---:"] * 6, *rows]
    table = format_table(header, rows, right=range(1, 7), separator=" | ")
    note = "\n\nremoval_curve: cost and MAC ratio are per count of kept patches."
    return (
        f"{result.model} on {result.device}, batch {result.batch_size}, "
        f"{result.dtype}, matmul precision {result.matmul_precision}, "
        f"{result.repetitions} repetitions ({versions}):\n\n{table}"
        f"{note if 'removal_curve' in result.more else ''}"
    )
