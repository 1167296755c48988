"""The commands `run`, `estimate` and `demo`: recipes over whole data sets."""

import dataclasses
import inspect
import pathlib
import shlex
from typing import Annotated, Any, ClassVar

import jax
import tyro

from vitjax.checkpoints import loading
from vitjax.cli.command import (
    Command,
    ModelCommand,
    check_platform,
    make_folder,
    metavar,
)
from vitjax.recipes.recipe import Recipe
from vitjax.runner.options import RunOptions

DEMO_TOKENS = 60
"""Images of the demo that its report shows token by token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeCommand(ModelCommand):
    """What `run` and `estimate` share.

    Args:
        recipe: the recipe, or its name.
        data: textured_digits[:SPLIT], folder:PATH, csv:FILE, imagenet_s:PATH[:OPTIONS],
            cifar100:PATH[:OPTIONS] or tfds:NAME/CONFIG:SPLIT. OPTIONS are separated by
            commas; paper takes the paper's selection of images.
        options: Options of every run.
        recipe_options: Options of this recipe.
    """

    recipe: str | Recipe
    data: Annotated[str, metavar("SOURCE")]
    options: Annotated[RunOptions, tyro.conf.arg(name="run")] = RunOptions()
    recipe_options: Any = None

    @classmethod
    def of(cls, recipe: Recipe) -> Any:
        """The command of one recipe, whose options are flags."""
        kind = Annotated[type(recipe.options), tyro.conf.arg(name=recipe.name)]
        fields: Any = [
            ("recipe", Any, dataclasses.field(default=recipe, init=False)),
            ("recipe_options", kind, dataclasses.field(default=recipe.options)),
        ]
        about = f"{recipe.about}\n\n{inspect.getdoc(cls)}"
        return dataclasses.make_dataclass(
            cls.__name__,
            fields,
            bases=(cls,),
            namespace={"__doc__": about},
            frozen=True,
            kw_only=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(RecipeCommand):
    """Run a recipe over every image of a data set and keep the rows.

    Stopped at any moment, the same command resumes.

    Example: vitjax run paper --model vit_ti16 --data folder:photos --out rows

    Args:
        out: folder for the rows, local or gs://.
        random_init: run the model with random weights of this seed instead: the paper's
            control, to be reported beside the trained one.
        distributed: this is one of several processes that share the work and --out. On
            TPU pods and under SLURM it knows which; elsewhere give --process.
        process: number of this process, from 0.
        processes: how many there are.
        coordinator: ignored; processes need none.
    """

    out: Annotated[str, metavar("DIR")]
    random_init: Annotated[int | None, metavar("SEED")] = None
    distributed: bool = False
    process: Annotated[int | None, metavar("I")] = None
    processes: Annotated[int | None, metavar("N")] = None
    coordinator: str | None = None
    needs_device: ClassVar[bool] = False  # before its cluster has started JAX

    def __call__(self) -> Any:
        from vitjax.runner.loop import run

        process = self.find_process()
        check_platform()
        if self.random_init is None:
            model = self.load()
        elif self.checkpoint is None:
            classes = self.own_settings["classes"]
            model = loading.init(self.model, seed=self.random_init, classes=classes)
        else:
            raise ValueError("Give --checkpoint or --random-init, not both.")
        results = run(
            self.recipe,
            model,
            self.data,
            self.out,
            options=self.recipe_options,
            process=process,
            **dataclasses.asdict(self.options),
        )
        if process is not None and process[0] > 0:
            return results  # process 0 prints
        self.show(
            {"path": results.path, **results.manifest},
            f"{describe_run(results)}\nFigures and a page: vitjax report "
            f"{shlex.quote(self.out)}",
        )
        return results

    def find_process(self) -> tuple[int, int] | None:
        """Which process of how many this is; None where it is alone."""
        if (self.process is None) != (self.processes is None):
            raise ValueError("Give both --process I and --processes N, or neither.")
        if self.process is not None and self.processes is not None:
            if not self.distributed:
                raise ValueError("--process and --processes require --distributed.")
            return self.process, self.processes
        if not self.distributed:
            return None
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                "This is neither a TPU pod nor a SLURM job, so that nothing says which "
                "process this is: give --process I (from 0) and --processes N."
            ) from error
        process = jax.process_index(), jax.process_count()
        jax.distributed.shutdown()  # else one killed process ends the others
        return process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate(RecipeCommand):
    """Estimate what a run will take: memory of a device, disk, time.

    Compiles the recipe's step and runs the first batches, some ten seconds; writes
    nothing and skips images that cannot be read. Without --checkpoint, weights are
    random, which are as fast.

    Example: vitjax estimate paper --model vit_b16 --data folder:photos
    """

    def __call__(self) -> Any:
        from vitjax.runner.estimate import estimate

        result = estimate(
            self.recipe,
            loading.init(self.model) if self.weightless else self.load(),
            self.data,
            options=self.recipe_options,
            **dataclasses.asdict(self.options) | {"on_error": "skip"},
        )
        self.show(dataclasses.asdict(result), str(result))
        return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Run and report the embedded model on embedded images; needs no network.

    Example: vitjax demo --images 500

    Args:
        out: folder for the rows and the report.
        images: how many of the 5,000 images.
    """

    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-demo")
    images: int = 3000

    def __call__(self) -> Any:
        import pandas as pd

        from vitjax.report.page import write_report
        from vitjax.runner.loop import run

        make_folder(self.out)
        model, data = loading.load("textured_digits"), "textured_digits"
        results = run(
            "identifiability", model, data, self.out, batch_size=50, limit=self.images
        )
        tokens = run(
            "tokens",
            model,
            data,
            self.out / "tokens",
            batch_size=20,
            limit=min(DEMO_TOKENS, results.sizes["image"]),
            show_progress=False,
        )
        page = write_report([results, tokens], self.out).resolve()
        table = pd.read_csv(
            page.parent / "figures" / "summary.csv", index_col="quantity"
        )
        table = table.drop(columns=["run", "images"])
        table.columns = ["mean", "95 % low", "95 % high", "chance"]
        table = table.rename_axis(None).to_string(
            float_format="{:.3f}".format, na_rep=""
        )
        text = f"{describe_run(results)}\n{table}\nReport: {page}"
        self.show({"report": str(page)}, text)
        return page


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
