"""What it costs: bench, estimate."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, Literal

import tyro

from vitjax.benchmark import reference_vits
from vitjax.benchmark.bench import Benchmark, bench
from vitjax.benchmark.input_speed import bench_data
from vitjax.checkpoints import loading
from vitjax.checkpoints.registry import VARIANTS
from vitjax.cli.command import Command, find_devices, make_folder, metavar
from vitjax.cli.console import (
    benchmark_markdown,
    show_benchmark,
    show_pipeline,
)
from vitjax.models.model import Model
from vitjax.recipes.faithfulness import Protocol
from vitjax.runner import estimate as estimating
from vitjax.runner import tpu_estimate
from vitjax.saliency.methods import METHODS, Method

Platform = Literal["cpu", "gpu", "tpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure forward passes, analyses and explanations here.

    Example: vitjax bench --model vit_b16 --all --out bench.json

    Args:
        model: a name that `vitjax list` shows.
        checkpoint: weights; by default random ones, which are as fast.
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
        json: print JSON instead of a table.
    """

    model: Annotated[str, metavar("NAME")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    batch_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    repetitions: int = 7
    platform: Annotated[Platform | None, metavar("{cpu,gpu,tpu}")] = None
    data: Annotated[str | None, metavar("SOURCE")] = None
    workers: int = 0
    explanations: Annotated[tuple[str, ...], metavar("METHOD...")] = ()
    recipes: Annotated[tuple[str, ...], metavar("RECIPE...")] = ()
    against: tuple[Literal["flax.linen", "timm"], ...] = ()
    all: bool = False
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None
    json: bool = False

    def __call__(self) -> Benchmark:
        if self.out:
            make_folder(self.out.parent)
        if self.checkpoint:
            model = loading.load(self.model, checkpoint=self.checkpoint)
        else:
            model = loading.init(self.model)
        every = (*METHODS, "removal_curve")
        linen = ("flax.linen",) if reference_vits.is_plain(model.config) else ()
        found = bench(
            model,
            batch_size=self.batch_size,
            dtype=self.dtype,
            repetitions=self.repetitions,
            devices=find_devices(self.platform),
            explanations=every
            if self.all or self.explanations == ("all",)
            else self.explanations,
            recipes=(*self.recipes, *("paper",) * self.all),
            against=tuple(dict.fromkeys((*self.against, *linen * self.all))),
        )
        if not self.json:
            show_benchmark(found)
        figures = dataclasses.asdict(found)
        if self.data:
            pipeline = bench_data(
                self.data, model, batch_size=self.batch_size, workers=self.workers
            )
            if not self.json:
                show_pipeline(pipeline, found)
            figures["data"] = dataclasses.asdict(pipeline)
        if self.json:
            print(json.dumps(figures))
        if self.out:
            self.out.write_text(json.dumps(figures, indent=1) + "\n")
            table = benchmark_markdown(found, self.command())
            self.out.with_suffix(".md").write_text(table)
        return found

    def command(self) -> str:
        """What measures the same again."""
        flags = [f"--batch-size {self.batch_size}", f"--dtype {self.dtype}"]
        flags += [f"--repetitions {self.repetitions}"] + ["--all"] * self.all
        for name in ("explanations", "recipes", "against"):
            if chosen := getattr(self, name):
                flags.append(f"--{name} {' '.join(chosen)}")
        return f"vitjax bench --model {self.model} {' '.join(flags)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate(Command):
    """Foretell what a run will take: memory of a device, disk, time.

    Compiles the recipe's step and runs the first batches, some ten seconds; writes
    nothing. `vitjax run` says the same before it goes on.

    With --topology the step is compiled for TPUs that are not here, and the memory that
    each of them would need is told; that needs no data, and libtpu.

    Example: vitjax estimate paper --model vit_b16 --data folder:photos

    Args:
        recipe: the question, as of run.
        model: a name that `vitjax list` shows, or a converted folder.
        data: the data set, as of run.
        topology: TPUs to compile for, such as v5e:4x4, as for data with masks.
        checkpoint: weights; by default random ones, which are as fast.
        batch_size: images per step over all devices.
        limit: only the first so many images.
        dtype: what the model computes in.
        workers: processes that decode and preprocess images; 0 for threads.
        steps: of faithfulness: points of a removal curve.
        methods: of faithfulness: names of explanation methods; by default all.
        protocols: of faithfulness: by default all that the data allows.
        json: print JSON instead of a sentence.
    """

    recipe: tyro.conf.Positional[Annotated[str, metavar("RECIPE")]]
    model: Annotated[str, metavar("NAME")]
    data: Annotated[str | None, metavar("SOURCE")] = None
    topology: Annotated[str | None, metavar("KIND:SHAPE")] = None
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    batch_size: int = 32
    limit: Annotated[int | None, metavar("INT")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    workers: int = 0
    steps: Annotated[int | None, metavar("INT")] = None
    methods: Annotated[tuple[Method, ...], metavar("METHOD...")] = ()
    protocols: Annotated[tuple[Protocol, ...], metavar("PROTOCOL...")] = ()
    json: bool = False

    def __call__(self) -> estimating.Estimate | tpu_estimate.Plan:
        found = self.plan(self.topology) if self.topology else self.estimate()
        print(json.dumps(dataclasses.asdict(found)) if self.json else found)
        return found

    @property
    def options(self) -> dict[str, Any]:
        """Of the recipe, those that were given."""
        names = ("steps", "methods", "protocols")
        return {name: value for name in names if (value := getattr(self, name))}

    def loaded(self) -> Model | None:
        """The model that was asked for by its weights; names do without."""
        if self.checkpoint or self.model not in VARIANTS:
            return loading.load(self.model, checkpoint=self.checkpoint)
        return None

    def estimate(self) -> estimating.Estimate:
        """On the devices that are here."""
        if self.data is None:
            raise ValueError(
                "Give --data, whose first images are run, or --topology, the TPUs to "
                "compile for."
            )
        return estimating.estimate(
            *(self.recipe, self.loaded() or loading.init(self.model), self.data),
            batch_size=self.batch_size,
            limit=self.limit,
            dtype=self.dtype,
            workers=self.workers,
            options=self.options,
        )

    def plan(self, topology: str) -> tpu_estimate.Plan:
        """On TPUs that are not."""
        return tpu_estimate.plan(
            *(self.recipe, self.loaded() or self.model),
            topology=topology,
            batch_size=self.batch_size,
            dtype=self.dtype,
            options=self.options,
        )
