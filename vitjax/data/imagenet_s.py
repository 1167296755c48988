"""ImageNet-S: photographs of ImageNet with human masks, in the official layout.

    PATH/ImageNetS919/validation/<wnid>/ILSVRC2012_val_*.JPEG
    PATH/ImageNetS919/validation-segmentation/<wnid>/ILSVRC2012_val_*.png
    PATH/ImageNetS919/test/<wnid>/...                       (its masks are not public)

A mask's pixel holds the number R + 256 G: 0 for other things, 1000 for ignored ones,
else the position of a class, from 1, in the sorted list of the subset's WordNet ids
(Gao et al. 2022, "Large-scale Unsupervised Semantic Segmentation").
"""

import itertools
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vitjax.data.image_files import ImageFiles, digest_rows, note, read_csv
from vitjax.data.labels import imagenet_s
from vitjax.data.records import SourceError

Part = Literal["validation", "test"]
File = tuple[str, str]
"""(WordNet id, name) of an image."""

SUBSETS = (919, 300, 50)
NO_MASK = (1, 1)
"""Size of a segmentation that means none, where every image must have one."""

PER_CLASS = {"validation": 5, "test": 10}
"""Images per class in the paper's experiments: to analyze, and to train probes on."""

MERGED = frozenset(
    itertools.chain(
        ("n04356056", "n04355933"),  # sunglass, sunglasses
        ("n04493381", "n02808440"),  # tub, bathtub
        ("n03642806", "n03832673"),  # laptop, notebook
        ("n04008634", "n03773504"),  # projectile, missile
        ("n03887697", "n15075141"),  # paper towel, toilet tissue
    )
)
"""Classes that ImageNet-S merges in pairs; the published code leaves them out."""

STEPS = (
    "To get ImageNet-S: (1) get ImageNet's validation images (ILSVRC2012_img_val) from "
    "image-net.org; (2) clone github.com/LUSSeg/ImageNet-S and run its "
    "data_preparation.sh on them, which copies the images and fetches the masks; (3) "
    "give imagenet_s:PATH, where PATH/ImageNetS919/validation/<wnid>/*.JPEG then are."
)


def open_imagenet_s(
    path: str | os.PathLike,
    *,
    part: Part = "validation",
    classes: int | None = None,
    select: Literal["all", "paper"] = "all",
    per_class: int | None = None,
    seed: int | None = None,
    csv_file: str | os.PathLike | None = None,
) -> ImageFiles:
    """A part of ImageNet-S: "validation", which has masks, or "test".

    `path` holds `ImageNetS919` (or 300, 50); `classes` is by default the largest that
    is there. Labels are WordNet ids. `select="paper"` takes `per_class` images, by
    default `PER_CLASS`, of every class that is not in `MERGED` and has as many: 4,550
    of the official validation part, 9,090 of the test part, which trains probes.
    `seed`, by default 0, draws them, for each class by itself, unless there is the
    authors' private table, `csv_file` or `ImageNetS919/<part>_stim_info.csv`, with the
    columns imagenet_id and img_name.
    """
    if select != "paper" and not per_class is seed is csv_file is None:
        raise SourceError(
            "per_class, seed and csv_file are options of the paper's selection: give "
            'select="paper" (imagenet_s:PATH:paper,...) with them.'
        )
    if per_class is not None and per_class < 1:
        raise SourceError(f"per_class={per_class} must be at least 1.")
    root = pathlib.Path(path).expanduser()
    subset = classes or next(
        (n for n in SUBSETS if (root / f"ImageNetS{n}").is_dir()), SUBSETS[0]
    )
    folder = root / f"ImageNetS{subset}" / part
    if subset not in SUBSETS or not folder.is_dir():
        raise SourceError(f"There is no folder {folder}. {STEPS}")
    ids = category_list(root, subset)
    listed = [
        (wnid, name)
        for wnid in visible_names(folder)
        for name in visible_names(folder / wnid)
    ]
    files = [
        (wnid, name)
        for wnid, name in listed
        if wnid in ids and name.lower().endswith((".jpeg", ".jpg", ".png"))
    ]
    notes = note(
        ["/".join(file) for file in sorted({*listed} - {*files})],
        f"files are left out, being no images (.jpeg, .jpg, .png) of the {subset} "
        "classes",
    )
    chosen = "all"
    if select == "paper":
        count = per_class or PER_CLASS[part]
        table = folder.parent / f"{part}_stim_info.csv"
        if csv_file is None and table.is_file():
            csv_file = table
        if csv_file is not None:
            files = from_table(files, pathlib.Path(csv_file).expanduser())
            chosen = "by table"
        else:
            files = draw(files, count, seed or 0)
            chosen = f"{count} per class by seed {seed or 0}"
    if not files:
        raise SourceError(
            f"{folder} holds no matching image ({select}, {subset} classes). {STEPS}"
        )
    masks = find_masks(folder.with_name(f"{part}-segmentation"), files)
    if part == "validation":
        without = ["/".join(file) for file, mask in zip(files, masks) if mask is None]
        notes += note(without, "images have no mask")
    digest = digest_rows(files)
    return ImageFiles(
        id=f"imagenet_s{subset}/{part}:{len(files)} files,{chosen},{digest}",
        root=folder.parent,
        paths=tuple(f"{part}/{wnid}/{name}" for wnid, name in files),
        label_names=tuple(wnid for wnid, _ in files),
        masks=masks,
        numbers={wnid: number for number, wnid in enumerate(ids, 1)},
        notes=tuple(notes),
    )


def find_masks(folder: pathlib.Path, files: Sequence[File]) -> tuple[str | None, ...]:
    """The mask of each file, relative to the folder's parent; None without one."""
    present = {wnid: set(visible_names(folder / wnid)) for wnid in dict(files)}
    masks = ((wnid, f"{pathlib.PurePath(name).stem}.png") for wnid, name in files)
    return tuple(
        f"{folder.name}/{wnid}/{mask}" if mask in present[wnid] else None
        for wnid, mask in masks
    )


def visible_names(folder: pathlib.Path) -> list[str]:
    """Sorted names in a folder but hidden ones; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def category_list(root: pathlib.Path, subset: int) -> tuple[str, ...]:
    """WordNet ids in the order of the masks' numbers; the data set's list wins."""
    path = root / "data" / "categories" / f"ImageNetS_categories_im{subset}.txt"
    return tuple(path.read_text().split()) if path.is_file() else imagenet_s(subset)


def draw(files: Sequence[File], count: int, seed: int) -> list[File]:
    """`count` images of each class that has as many, drawn by class."""
    chosen = []
    for wnid, group in itertools.groupby(files, operator.itemgetter(0)):
        of_class = list(group)
        if wnid in MERGED or len(of_class) < count:
            continue
        generator = np.random.default_rng((seed, int(wnid[1:])))
        indices = np.argsort(generator.random(len(of_class)), kind="stable")[:count]
        chosen += [of_class[index] for index in sorted(indices)]
    return chosen


def from_table(files: Sequence[File], table: pathlib.Path) -> list[File]:
    """The images that a table names, in its order."""
    present = {(wnid, pathlib.PurePath(name).stem): name for wnid, name in files}
    columns = {"imagenet_id", "img_name"}
    _, rows = read_csv(table, columns, "imagenet_id and img_name")
    selected = [(r["imagenet_id"], pathlib.PurePath(r["img_name"]).stem) for r in rows]
    missing = [stem for wnid, stem in selected if (wnid, stem) not in present]
    if missing:
        raise SourceError(
            f"{table} names {len(missing)} images that do not exist: "
            f"{', '.join(missing[:3])}. {STEPS}"
        )
    return [(wnid, present[wnid, stem]) for wnid, stem in selected]
