"""What a person looks at: report, explain, neurons."""

import csv
import dataclasses
import json
import pathlib
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from vitjax.checkpoints import loading
from vitjax.cli.command import Command, make_folder, metavar
from vitjax.cli.console import describe_explained, describe_neuron, show_table
from vitjax.cli.explain_images import Explanations, explain_pictures
from vitjax.cli.strongest_memories import Neuron, neurons
from vitjax.models.model import Model
from vitjax.runner.results import open_results
from vitjax.saliency import methods


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Draw the figures of one run or several, and a page to read.

    Example: vitjax report rows control-rows --out report

    Args:
        runs: folders that `vitjax run` wrote.
        out: folder for report.html and the figures; by default the run's own, of
            several runs ./vitjax-report.
        tests: besides tests over images, class against context tokens with tokens as
            units, permuted within images, or published: shuffled all together;
            published also shuffles which images are right.
        subset: on how many images those rest.
        json: print where the page and its figures are, as JSON.
    """

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("DIR...")]]
    out: Annotated[str | None, metavar("DIR")] = None
    tests: Literal["images", "within_images", "published"] = "images"
    subset: int = 500
    json: bool = False

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
        if self.json:
            print(json.dumps({"report": str(page), "figures": f"{out}/figures"}))
        else:
            print(f"Report: {page}")
        return page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Draw which parts of pictures speak for a class.

    Example: vitjax explain cat.png --model vit_ti16 --method relevancy,chefer

    Args:
        images: picture files.
        model: a name that `vitjax list` shows, or a converted folder.
        class_: id, name or number of the class to explain; by default each picture's
            own answer.
        method: names of explanation methods. relevancy is the paper's; on the removal
            test consensus is the most faithful, and class_projection finds
            objects best (see the README's table).
        blocks: only these, from 0 or negative from the end, of methods that have a map
            of each block and head.
        heads: only these, likewise.
        out: folder for explain.png and explain.npz, the arrays.
        json: print what is explained, and where the files are, as JSON.
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
    json: bool = False

    def __call__(self) -> Explanations:
        from vitjax.report import pictures

        names = [name for text in self.method for name in text.split(",") if name]
        for name in names:  # before weights are fetched
            methods.check_method(name)
        make_folder(self.out)
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
        if self.json:
            print(json.dumps(self.facts(found, model)))
            return found
        for title, name in zip(titles, found.names):
            print(f"{name}: {' '.join(title.split())}")
        print(f"Figure and arrays: {page}, {self.out / 'explain.npz'}")
        return found

    def facts(self, found: Explanations, model: Model) -> dict[str, Any]:
        """What was explained, for machines."""
        pictures = zip(found.names, found.target, found.prediction, found.probability)
        return {
            "pictures": [
                {
                    "name": name,
                    "class": model.classes[target],
                    "answer": model.classes[answer],
                    "probability": float(probability),
                }
                for name, target, answer, probability in pictures
            ],
            "methods": list(found.maps),
            "figure": str(self.out / "explain.png"),
            "arrays": str(self.out / "explain.npz"),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neurons(Command):
    """The strongest memories of a model and what they promote.

    Example: vitjax neurons --model vit_b16 --layers -2 --count 20

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
        json: print JSON instead of a table.
    """

    model: Annotated[str, metavar("NAME")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    system: Literal["mlp", "attention"] = "mlp"
    layers: tuple[int, ...] = ()
    memories: tuple[int, ...] = ()
    count: int = 10
    classes: Annotated[int | None, metavar("INT")] = None
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None
    json: bool = False

    def __call__(self) -> list[Neuron]:
        if self.out:
            make_folder(self.out.parent)
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
        if self.json:
            print(json.dumps([neuron._asdict() for neuron in found]))
        else:
            show_table(columns, rows, right=(0, 1, 2))
        if self.out:
            with self.out.open("w", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow((*Neuron._fields[:4], "class", "logit"))
                for n in found:
                    for pair in zip(n.classes, n.logits):
                        table.writerow((*n[:4], *pair))
        return found
