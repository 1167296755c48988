"""The command line. A command is a frozen dataclass, its fields are the flags.

From Python the same object does the same thing:

    vitjax.cli.Run(recipe="identifiability", model="vit_ti16", data="folder:photos",
                   out="results")()
"""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import sys
import traceback as tracebacks
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import vitjax
from vitjax import loading, variants
from vitjax.data.masks import MaskConvention
from vitjax.maps import methods
from vitjax.maps.methods import METHODS, Method
from vitjax.results import Results, open_results
from vitjax.runner import train
from vitjax.runner.bench import Benchmark, bench, bench_data
from vitjax.runner.explaining import Explanations, explain_pictures
from vitjax.runner.faithfulness import Protocol
from vitjax.runner.neurons import Neuron, neurons
from vitjax.runner.probes import run_probes
from vitjax.runner.stream import run
from vitjax.terminal import (
    describe_explained,
    describe_neuron,
    describe_run,
    describe_variant,
    show_benchmark,
    show_pipeline,
    show_summary,
    show_table,
)

Platform = Literal["cpu", "gpu", "tpu"]

EXPECTED = (ValueError, OSError, ImportError, MemoryError, jax.errors.JaxRuntimeError)
"""Failures whose message says what to do; anything else is a fault of ours."""


def metavar(text: str) -> Any:
    """What stands for a value in the help."""
    return tyro.conf.arg(metavar=text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What all commands have.

    Args:
        traceback: show where in the code an error came up.
    """

    traceback: bool = False

    def __call__(self) -> Any:
        raise TypeError(f"{type(self).__name__} does nothing by itself.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Ask a question of every image of a data set; rows go to a folder.

    Stopped at any moment, the same command goes on where it was.

    Args:
        recipe: the question: identifiability; paper asks all of sections 5 and 6 of the
            paper, one_pass what of them needs no intervention; faithfulness puts maps
            of several methods to the test, section 7; probes asks section 8's.
        model: a name that `vitjax list` shows, or a converted folder.
        data: textured_digits[:SPLIT], folder:PATH, csv:FILE, imagenet_s:PATH[:OPTIONS],
            cifar100:PATH[:OPTIONS] or tfds:NAME/CONFIG:SPLIT. OPTIONS are separated by
            commas; paper takes the paper's selection of images.
        out: folder for the rows, local or gs://.
        checkpoint: your own file with the model's weights (.npz, .safetensors, .pth),
            or a converted folder.
        random_init: run the model with random weights of this seed instead: the paper's
            control, to be reported beside the trained one.
        batch_size: images per step over all devices.
        limit: run only the first so many images.
        seed: for recipes that draw random numbers.
        on_error: what to do with an image that cannot be read.
        dtype: what the model computes in.
        mask_convention: which tokens are of the class, where a data set has masks: area
            counts their pixels, vilas2023_code looks at one, as the published code.
        mask_threshold: share of a token's pixels that makes it one of the class.
        workers: processes that decode and preprocess images; 0 for threads.
        train: of probes: the data set that they are fitted on, as for --data.
        shots: of probes: at most so many images of a class to fit on, the first ones.
        alpha: of probes: weight of the ridge penalty.
        probe: of probes: ridge, as published, or softmax.
        memory: of probes: for those that are fitted at once; with less of it, there are
            more passes over the images.
        steps: of faithfulness and probes: points of a removal curve.
        methods: of faithfulness: names of explanation methods; by default all.
        protocols: of faithfulness: by default all that the data allows.
        target: of faithfulness: whether the label's or the predicted class is
            explained.
    """

    recipe: tyro.conf.Positional[Annotated[str, metavar("RECIPE")]]
    model: Annotated[str, metavar("NAME")]
    data: Annotated[str, metavar("SOURCE")]
    out: Annotated[str, metavar("DIR")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    random_init: Annotated[int | None, metavar("SEED")] = None
    batch_size: int = 32
    limit: Annotated[int | None, metavar("INT")] = None
    seed: int = 0
    on_error: Literal["stop", "skip"] = "stop"
    dtype: Literal["float32", "bfloat16"] = "float32"
    mask_convention: MaskConvention = "area"
    mask_threshold: float = 0.5
    workers: int = 0
    train: Annotated[str | None, metavar("SOURCE")] = None
    shots: int = 10
    alpha: float = 1.0
    probe: Literal["ridge", "softmax"] = "ridge"
    memory: Annotated[str, metavar("SIZE")] = "4GiB"
    steps: Annotated[int | None, metavar("INT")] = None
    methods: Annotated[tuple[Method, ...], metavar("METHOD...")] = ()
    protocols: Annotated[tuple[Protocol, ...], metavar("PROTOCOL...")] = ()
    target: Literal["label", "predicted"] | None = None

    def __call__(self) -> Results:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "limit": self.limit,
            "seed": self.seed,
            "on_error": self.on_error,
            "dtype": self.dtype,
            "mask_convention": self.mask_convention,
            "mask_threshold": self.mask_threshold,
            "workers": self.workers,
        }
        if self.recipe == "probes":
            results = self.probes(**options)
        elif self.train is not None:
            raise ValueError(f"--train is of probes; {self.recipe} fits nothing.")
        else:
            results = run(
                *(self.recipe, self.load(), self.data, self.out),
                options=self.asked(),
                **options,
            )
        print(describe_run(results))
        print(f"Figures and a page: vitjax report {shlex.quote(self.out)}")
        return results

    def asked(self) -> dict[str, Any]:
        """Options of the recipe that were given."""
        given = {
            "methods": self.methods or None,
            "protocols": self.protocols or None,
            "steps": self.steps,
            "target": self.target,
        }
        return {name: value for name, value in given.items() if value is not None}

    def probes(self, **options: Any) -> Results:
        """The recipe `probes`, which has two data sets."""
        if self.train is None:
            raise ValueError(
                "Probes are fitted on images of their own: give them as --train "
                "SOURCE, such as imagenet_s:PATH:probe."
            )
        return run_probes(
            *(self.load(), self.train, self.data, self.out),
            shots=self.shots,
            alpha=self.alpha,
            probe=self.probe,
            memory=self.memory,
            **({} if self.steps is None else {"steps": self.steps}),
            **options,
        )

    def load(self) -> vitjax.Model:
        """The model with the weights that were asked for."""
        if self.random_init is None:
            return loading.load(self.model, checkpoint=self.checkpoint)
        if self.checkpoint is not None:
            raise ValueError("Give --checkpoint or --random-init, not both.")
        return loading.init(self.model, seed=self.random_init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw the figures of one run or several, and a page to read.

    Args:
        runs: folders that `vitjax run` wrote.
        out: folder for report.html and the figures; by default the run's own, of
            several runs ./vitjax-report.
        tests: besides tests over images, class against context tokens with tokens as
            units, permuted within images, or published: shuffled all together;
            published also shuffles which images are right.
        subset: on how many images those rest.
    """

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("DIR...")]]
    out: Annotated[str | None, metavar("DIR")] = None
    tests: Literal["images", "within_images", "published"] = "images"
    subset: int = 500

    def __call__(self) -> Any:
        from vitjax.report.document import write_report

        if not self.runs:
            raise ValueError("Give the folder of at least one run: vitjax report DIR.")
        if self.subset < 1:
            raise ValueError(f"--subset is {self.subset}; it must be at least 1.")
        alone = len(self.runs) == 1
        out = self.out or (self.runs[0] if alone else "vitjax-report")
        runs = [open_results(path) for path in self.runs]
        page = write_report(runs, out, tests=self.tests, subset=self.subset)
        print(f"Report: {page}")
        return page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Draw which parts of pictures speak for a class, by one method or several.

    Args:
        images: picture files.
        model: a name that `vitjax list` shows, or a converted folder.
        class_: id, name or number of the class to explain; by default each picture's
            own answer.
        method: names of explanation methods. relevancy is the paper's; on the removal
            test integrated_presence is the most faithful, and class_projection finds
            objects best (see the README's table).
        blocks: only these, from 0 or negative from the end, of methods that have a map
            of each block and head.
        heads: only these, likewise.
        out: folder for explain.png and explain.npz, the arrays.
        checkpoint: your own file with the model's weights, or a converted folder.
        dtype: what the model computes in.
    """

    images: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("IMAGE...")]]
    model: Annotated[str, metavar("NAME")]
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME|ID")] = None
    method: Annotated[tuple[str, ...], metavar("METHOD...")] = ("relevancy",)
    blocks: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-explain")
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self) -> Explanations:
        from vitjax.report import pictures

        names = [name for text in self.method for name in text.split(",") if name]
        for name in names:  # before weights are fetched
            methods.check(name)
        model = loading.load(self.model, checkpoint=self.checkpoint)
        found = explain_pictures(
            *(model, self.images),
            methods=names,  # pyright: ignore
            target=self.class_,
            layers=self.blocks or None,
            heads=self.heads or None,
            dtype=self.dtype,
        )
        titles = [describe_explained(found, i, model) for i in range(len(found.names))]
        self.out.mkdir(parents=True, exist_ok=True)
        page = self.out / "explain.png"
        page.write_bytes(pictures.png(found.pictures, titles, found.maps))
        arrays: dict[str, Any] = {
            "names": np.asarray(found.names),
            "target": found.target,
            "prediction": found.prediction,
            "probability": found.probability,
        }
        arrays |= {f"map_{name}": values for name, values in found.maps.items()}
        np.savez(self.out / "explain.npz", **arrays)
        for title, name in zip(titles, found.names):
            print(f"{name}: {' '.join(title.split())}")
        print(f"Figure and arrays: {page}, {self.out / 'explain.npz'}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See the whole thing work, without network: the embedded model on embedded images.

    Args:
        out: folder for the rows and the report.
        images: how many pictures; by default all 5,000.
    """

    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-demo")
    images: Annotated[int | None, metavar("INT")] = None

    def __call__(self) -> Any:
        from vitjax.report.document import write_report
        from vitjax.report.reduction import summary

        model = loading.load("textured_digits")
        results = run(
            "identifiability",
            model,
            "textured_digits",
            self.out,
            batch_size=50,
            limit=self.images,
        )
        print(describe_run(results))
        show_summary(summary(results))
        page = write_report([results], self.out)
        print(f"Report: {page.resolve()}")
        return page


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """The models that can be loaded by name."""

    def __call__(self) -> tuple[str, ...]:
        columns = ("model", "parameters", "input", "tokens", "classes", "source")
        rows = [describe_variant(row) for row in variants.VARIANTS.values()]
        show_table((*columns, "licence", "weights"), rows, right=(1, 2, 3, 4))
        return vitjax.list_models()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Write a checkpoint as our own folder: model.safetensors and config.json.

    Args:
        source: a checkpoint file, or the name of a model to fetch.
        out: folder to write; by default checkpoints/ and the model's name.
        model: whose architecture the file has; not needed where the source is a name
            or a converted folder.
        dtype: of the weights on disk; float32 reloads bit for bit.
    """

    source: tyro.conf.Positional[Annotated[str, metavar("SOURCE")]]
    out: Annotated[str | None, metavar("DIR")] = None
    model: Annotated[str | None, metavar("NAME")] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __call__(self) -> str:
        if self.model is not None:
            model = loading.load(self.model, checkpoint=self.source)
        elif self.source in variants.VARIANTS or loading.is_folder(self.source):
            model = loading.load(self.source)
        else:
            raise ValueError(
                f"A file does not say whose it is: give --model for {self.source}, one "
                f"of {', '.join(variants.VARIANTS)}."
            )
        name = self.model or model.provenance.name or "model"
        out = self.out or os.path.join("checkpoints", pathlib.PurePath(name).name)
        loading.save(model, out, dtype=self.dtype)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        print(f"{out}: {count:,} parameters, {self.dtype}")
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure a plain forward pass, analyses and explanations on this device.

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
        out: JSON file for the figures.
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
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None

    def __call__(self) -> Benchmark:
        if self.checkpoint:
            model = loading.load(self.model, checkpoint=self.checkpoint)
        else:
            model = loading.init(self.model)
        found = bench(
            model,
            batch_size=self.batch_size,
            dtype=self.dtype,
            repetitions=self.repetitions,
            devices=find_devices(self.platform),
            explanations=(*METHODS, "removal_curve")
            if self.explanations == ("all",)
            else self.explanations,
        )
        show_benchmark(found)
        figures = dataclasses.asdict(found)
        if self.data:
            pipeline = bench_data(
                self.data, model, batch_size=self.batch_size, workers=self.workers
            )
            show_pipeline(pipeline, found)
            figures["data"] = dataclasses.asdict(pipeline)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(figures, indent=1) + "\n")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neurons(Command):
    """The strongest memories of a model and the classes that they promote.

    Args:
        model: a name that `vitjax list` shows, or a converted folder.
        checkpoint: your own file with the model's weights, or a converted folder.
        system: mlp, or attention.
        layers: blocks from 0, negative ones from the end; by default the last but one,
            where the paper finds most.
        memories: show these instead of the strongest.
        count: how many of each block.
        classes: how many of each memory; by default 5, or all where there are fewer.
        out: CSV file for the table.
    """

    model: Annotated[str, metavar("NAME")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    system: Literal["mlp", "attention"] = "mlp"
    layers: tuple[int, ...] = ()
    memories: tuple[int, ...] = ()
    count: int = 10
    classes: Annotated[int | None, metavar("INT")] = None
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None

    def __call__(self) -> list[Neuron]:
        model = loading.load(self.model, checkpoint=self.checkpoint)
        found = neurons(
            model,
            system=self.system,
            layers=self.layers or (max(0, model.config.depth - 2),),
            memories=self.memories or None,
            count=self.count,
            k=self.classes,
        )
        rows = [describe_neuron(neuron) for neuron in found]
        columns = ("block", "memory", "head", "classes and their raw logits")
        show_table(columns, rows, right=(0, 1, 2))
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.out.open("w", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow((*Neuron._fields[:4], "class", "logit"))
                for n in found:
                    for pair in zip(n.classes, n.logits):
                        table.writerow((*n[:4], *pair))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(train.Train, Command):
    """Train the embedded model anew by our own recipe.

    Stopped at any moment, the same command goes on from its last state.

    Args:
        out: folder for the checkpoint, the last state and log.csv.
        recipe: what is trained and how.
        save_every: steps between states on disk.
        pictures: number of unseen pictures per correlation in the last evaluation.
    """


COMMANDS = {
    "run": Run,
    "report": Report,
    "explain": Explain,
    "demo": Demo,
    "list": List,
    "convert": Convert,
    "bench": Bench,
    "neurons": Neurons,
    "train": Train,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit status: 0, or 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
        Wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(vitjax.__version__)
        return 0
    command = parse(arguments)
    try:
        with terminable():
            command()
    except KeyboardInterrupt as stop:
        say("Stopped.", stop)
        if getattr(stop, "__notes__", ()):
            print(f"  vitjax {shlex.join(arguments)}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except EXPECTED as error:
        if command.traceback:
            tracebacks.print_exc()
        else:
            say(f"vitjax: {paragraph(error)}", error)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments name."""
    commands: Any = None
    for name, kind in COMMANDS.items():
        choice = Annotated[kind, tyro.conf.subcommand(name)]
        commands = choice if commands is None else commands | choice
    return tyro.cli(
        commands,
        prog="vitjax",
        description=vitjax.__doc__,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: rows that are computed are kept."""

    def stop(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def paragraph(error: BaseException) -> str:
    """What went wrong and what to do, for a person."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"Out of memory; give a smaller --batch-size. ({text.splitlines()[0]})"
    return text


def say(message: str, error: BaseException) -> None:
    """A message on stderr, with what the error's notes add, but not JAX's own."""
    notes = getattr(error, "__notes__", ())
    notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
    print(" ".join([message, *notes]), file=sys.stderr)


def find_devices(platform: str | None) -> list[Any]:
    """All devices of a platform, or of the best there is.

    Raises:
        ValueError: there is none.
    """
    try:
        return jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(
            f"JAX finds no {platform} here ({error}). Leave out --platform, or install "
            "vitjax with the extra for it: cuda or tpu."
        ) from error
