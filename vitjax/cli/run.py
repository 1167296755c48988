"""A question asked of a whole data set: run, demo."""

import dataclasses
import json
import pathlib
import shlex
from typing import Annotated, Any, Literal

import jax
import tyro

from vitjax.checkpoints import loading
from vitjax.cli.command import Command, metavar
from vitjax.cli.console import describe_run, show_summary
from vitjax.data.masks import MaskConvention
from vitjax.models.model import Model
from vitjax.recipes.faithfulness import Protocol
from vitjax.recipes.registry import find_recipe
from vitjax.runner import processes
from vitjax.runner.probes import run_probes
from vitjax.runner.results import Results
from vitjax.runner.stream import run
from vitjax.saliency.methods import Method

TOKENS = 60
"""Pictures of the demo that its report shows token by token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Ask a question of every image of a data set; keep the rows.

    Stopped at any moment, the same command goes on where it was.

    Example: vitjax run paper --model vit_ti16 --data folder:photos --out rows

    Args:
        recipe: the question: identifiability; paper asks all of sections 5 and 6 of the
            paper, one_pass what of them needs no intervention; faithfulness puts maps
            of several methods to the test, section 7; probes asks section 8's;
            precision what bfloat16 changes in every analysis; tokens
            writes what the report's token explorer shows, some hundred KiB an image:
            give it a --limit, 200 pictures are kept.
        model: a name that `vitjax list` shows, or a converted folder.
        data: textured_digits[:SPLIT], folder:PATH, csv:FILE, imagenet_s:PATH[:OPTIONS],
            cifar100:PATH[:OPTIONS] or tfds:NAME/CONFIG:SPLIT. OPTIONS are separated by
            commas; paper takes the paper's selection of images.
        out: folder for the rows, local or gs://.
        checkpoint: your own file with the model's weights (.npz, .safetensors, .pth),
            or a converted folder.
        random_init: run the model with random weights of this seed instead: the paper's
            control, to be reported beside the trained one.
        batch_size: images per step over all devices, of all processes.
        limit: run only the first so many images.
        seed: for recipes that draw random numbers.
        on_error: what to do with an image that cannot be read.
        dtype: what the model computes in: float32 with matrix products at the highest
            precision, or bfloat16, which is faster on accelerators and safe for rates,
            mean scores and most maps, not for single ranks: ask the recipe precision.
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
        steps: of faithfulness, probes and precision: points of a removal curve.
        methods: of faithfulness and precision: names of explanation methods; by default
            all, of precision those that take few passes.
        protocols: of faithfulness: by default all that the data allows.
        target: of faithfulness: whether the label's or the predicted class is
            explained.
        json: print the manifest as JSON instead of a sentence.
        distributed: this is one of several processes that share the work; they share
            the folder --out. On TPU pods and under SLURM they find each other.
        coordinator: where they do not: HOST:PORT of process 0, which listens there.
        processes: and how many there are,
        process: and which one this is, from 0.
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
    json: bool = False
    distributed: bool = False
    coordinator: Annotated[str | None, metavar("HOST:PORT")] = None
    processes: Annotated[int | None, metavar("N")] = None
    process: Annotated[int | None, metavar("I")] = None

    def __call__(self) -> Results:
        given = {
            "coordinator": self.coordinator,
            "processes": self.processes,
            "process": self.process,
        }
        if not self.distributed:
            if any(value is not None for value in given.values()):
                raise ValueError("--coordinator and --process are of --distributed.")
            return self.ask()
        processes.join(**given)
        try:
            return self.ask()
        finally:
            processes.leave()

    def ask(self) -> Results:
        """The run itself, once all its processes are there."""
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
        if self.recipe != "probes":
            find_recipe(self.recipe)  # before weights are fetched
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
        if jax.process_index() == 0 and self.json:
            print(json.dumps({"path": results.path, **results.manifest}))
        elif jax.process_index() == 0:
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

    def load(self) -> Model:
        """The model with the weights that were asked for."""
        if self.random_init is None:
            return loading.load(self.model, checkpoint=self.checkpoint)
        if self.checkpoint is not None:
            raise ValueError("Give --checkpoint or --random-init, not both.")
        return loading.init(self.model, seed=self.random_init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See it work without network: embedded model, embedded images.

    Example: vitjax demo --images 500

    Args:
        out: folder for the rows and the report.
        images: how many pictures; by default all 5,000.
    """

    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-demo")
    images: Annotated[int | None, metavar("INT")] = None

    def __call__(self) -> Any:
        from vitjax.report.page import write_report
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
        tokens = run(
            *("tokens", model, "textured_digits", self.out / "tokens"),
            batch_size=20,
            limit=min(TOKENS, results.manifest["data"]["images"]),
            show_progress=False,
        )
        show_summary(summary(results))
        page = write_report([results, tokens], self.out)
        print(f"Report: {page.resolve()}")
        return page
