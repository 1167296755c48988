"""ImageNet-S: photographs of ImageNet with human masks, in the official layout.

    PATH/ImageNetS919/validation/<wnid>/ILSVRC2012_val_*.JPEG
    PATH/ImageNetS919/validation-segmentation/<wnid>/ILSVRC2012_val_*.png
    PATH/ImageNetS919/test/<wnid>/...                       (its masks are not public)

A mask's pixel holds the number R + 256 G: 0 for other things, 1000 for ignored ones,
else the place of a class, from 1, in the sorted list of the subset's WordNet ids (Gao
et al. 2022, "Large-scale Unsupervised Semantic Segmentation").
"""

import collections
import csv
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitjax.data.images import open_image
from vitjax.data.labels import imagenet_s
from vitjax.data.masks import IGNORE
from vitjax.data.records import Record, SourceError

Part = Literal["validation", "test"]

SUBSETS = (919, 300, 50)
IGNORED_NUMBER = 1000
NO_MASK = (1, 1)
"""Size of a segmentation that stands for none, where every image must have one."""
PER_CLASS = {"validation": 5, "test": 10}
"""Images per class in the paper's experiments: to analyse, and to train probes on."""

MERGED = frozenset(
    (
        *("n04356056", "n04355933"),  # sunglass, sunglasses
        *("n04493381", "n02808440"),  # tub, bathtub
        *("n03642806", "n03832673"),  # laptop, notebook
        *("n04008634", "n03773504"),  # projectile, missile
        *("n03887697", "n15075141"),  # paper towel, toilet tissue
    )
)
"""Classes that ImageNet-S merges in pairs; the published code leaves them out."""

STEPS = (
    "To get ImageNet-S: (1) get ImageNet's validation images (ILSVRC2012_img_val) from "
    "image-net.org; (2) clone github.com/LUSSeg/ImageNet-S and run its "
    "data_preparation.sh on them, which copies the images and fetches the masks; (3) "
    "give imagenet_s:PATH, where PATH/ImageNetS919/validation/<wnid>/*.JPEG then are."
)


@dataclasses.dataclass(frozen=True)
class ImageNetS:
    """Photographs of one part of one subset.

    Args:
        root: the folder that holds `ImageNetS919` (or 300, 50).
        subset: number of classes, 919, 300 or 50.
        part: "validation" or "test".
        files: (WordNet id, file name) of each.
        selection: how they were chosen, in words; part of `id`.
        numbers: class id -> the number that stands for it in masks.
    """

    root: pathlib.Path
    subset: int
    part: str
    files: tuple[tuple[str, str], ...]
    selection: str
    numbers: dict[str, int]

    @functools.cached_property
    def id(self) -> str:
        """Subset, part, selection, and a digest of the file names."""
        text = "\n".join(map(repr, self.files)).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        where = f"imagenet_s{self.subset}/{self.part}"
        return f"{where}:{len(self)} files,{self.selection},{digest}"

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        """One WordNet id per file."""
        return tuple(wnid for wnid, _ in self.files)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """One name per file, relative to the subset's folder."""
        return tuple(f"{self.part}/{wnid}/{name}" for wnid, name in self.files)

    @functools.cached_property
    def masks(self) -> tuple[str | None, ...]:
        """One path per file, relative to the subset's folder; None without mask."""
        folder = f"{self.part}-segmentation"
        present = set()
        for wnid in dict.fromkeys(self.label_names):
            here = self.folder / folder / wnid
            present |= {f"{wnid}/{name}" for name in listed(here)}
        paths = (f"{wnid}/{pathlib.PurePath(n).stem}.png" for wnid, n in self.files)
        return tuple(f"{folder}/{p}" if p in present else None for p in paths)

    @property
    def folder(self) -> pathlib.Path:
        """Where the parts are."""
        return self.root / f"ImageNetS{self.subset}"

    def __len__(self) -> int:
        return len(self.files)

    def paths(self, index: int) -> tuple[pathlib.Path, ...]:
        """What a photograph is read from: its file and its mask's."""
        names = (self.names[index], self.masks[index])
        return tuple(self.folder / name for name in names if name is not None)

    def __getitem__(self, index: int) -> Record:
        (wnid, _), name, mask = self.files[index], self.names[index], self.masks[index]
        image = open_image(self.folder / name, name=name)
        kinds = None
        if mask is not None:
            segmentation = open_image(self.folder / mask, name=mask)
            kinds = class_mask(segmentation, self.numbers[wnid], size=image.size)
        return Record(image=image, label=wnid, name=name, mask=kinds)


def class_mask(
    segmentation: Image.Image, number: int, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Where one class is in a segmentation.

    Args:
        segmentation: RGB; a pixel's number is R + 256 G.
        number: the class's.
        size: (width, height) of the picture that it lies on.

    Returns:
        1 on the class, 255 where ignored, 0 elsewhere: on other classes too.
    """
    if segmentation.size != size:
        segmentation = segmentation.resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(segmentation.convert("RGB")).astype(np.int32)
    numbers = pixels[..., 0] + 256 * pixels[..., 1]
    mask = (numbers == number).astype(np.uint8)
    mask[numbers == IGNORED_NUMBER] = IGNORE
    return mask


def open_imagenet_s(
    path: str | os.PathLike,
    *,
    part: Part = "validation",
    classes: int | None = None,
    select: Literal["all", "paper"] = "all",
    per_class: int | None = None,
    seed: int | None = None,
    csv_file: str | os.PathLike | None = None,
) -> ImageNetS:
    """A part of ImageNet-S in its official layout.

    `select="paper"` is the paper's choice of images: the classes that are not `MERGED`
    and have at least `per_class` images, with so many of each. Of the official
    validation part these are 910 classes and 4,550 images, of the test part with 10
    images each, which trains probes, 909 and 9,090. The authors' own choice stands in
    a private table, `ImageNetS919/<part>_stim_info.csv`; where it is given or lies
    there, it decides, otherwise `seed` does, for each class by itself.

    Args:
        path: the folder that holds `ImageNetS919` (or 300, 50).
        part: "validation", which has masks, or "test".
        classes: 919, 300 or 50; by default the largest that is there.
        select: "all" images, or the paper's.
        per_class: with "paper": images per class; 5 of "validation", 10 of "test".
        seed: with "paper": which images, by default 0; part of the source's `id`.
        csv_file: with "paper": a table with the columns imagenet_id and img_name.

    Returns:
        The source; its labels are WordNet ids.

    Raises:
        SourceError: the folder is not there or holds no images; the message says how
            to get them.
    """
    if select != "paper" and not per_class is seed is csv_file is None:
        raise SourceError(
            "per_class, seed and csv_file say which images the paper's selection "
            'takes: give select="paper" (imagenet_s:PATH:paper,...) with them.'
        )
    if per_class is not None and per_class < 1:
        raise SourceError(f"per_class is {per_class}; it must be at least 1.")
    root = pathlib.Path(path).expanduser()
    subset = classes or next(
        (n for n in SUBSETS if (root / f"ImageNetS{n}").is_dir()), SUBSETS[0]
    )
    folder = root / f"ImageNetS{subset}" / part
    if subset not in SUBSETS or not folder.is_dir():
        raise SourceError(f"There is no folder {folder}. {STEPS}")
    ids = category_list(root, subset)
    files = [
        (wnid, name)
        for wnid in sorted(listed(folder))
        if wnid in ids
        for name in sorted(listed(folder / wnid))
        if name.lower().endswith((".jpeg", ".jpg", ".png"))
    ]
    chosen = "all"
    if select == "paper":
        count = per_class or PER_CLASS[part]
        table = folder.parent / f"{part}_stim_info.csv"
        if csv_file is None and table.is_file():
            csv_file = table
        if csv_file is not None:
            files, chosen = from_table(files, pathlib.Path(csv_file)), "by table"
        else:
            files = draw(files, count, seed or 0)
            chosen = f"{count} per class by seed {seed or 0}"
    if not files:
        raise SourceError(
            f"{folder} holds no image that fits ({select}, {subset} classes). {STEPS}"
        )
    numbers = {wnid: place + 1 for place, wnid in enumerate(ids)}
    return ImageNetS(root, subset, part, tuple(files), chosen, numbers)


def listed(folder: pathlib.Path) -> list[str]:
    """Names in a folder, hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def category_list(root: pathlib.Path, subset: int) -> tuple[str, ...]:
    """WordNet ids in the order of the masks' numbers: the data's own list, or ours."""
    name = {919: "im919", 300: "im300", 50: "im50"}[subset]
    path = root / "data" / "categories" / f"ImageNetS_categories_{name}.txt"
    return tuple(path.read_text().split()) if path.is_file() else imagenet_s(subset)


def draw(
    files: Sequence[tuple[str, str]], count: int, seed: int
) -> list[tuple[str, str]]:
    """So many images of each class that has them; a class's draw is its own."""
    by_class = collections.defaultdict(list)
    for wnid, name in files:
        by_class[wnid].append(name)
    chosen = []
    for wnid, names in by_class.items():
        if wnid in MERGED or len(names) < count:
            continue
        generator = np.random.default_rng((seed, int(wnid[1:])))
        places = np.argsort(generator.random(len(names)), kind="stable")[:count]
        chosen += [(wnid, names[place]) for place in sorted(places)]
    return chosen


def from_table(
    files: Sequence[tuple[str, str]], table: pathlib.Path
) -> list[tuple[str, str]]:
    """The images that a table names, in its order.

    Raises:
        SourceError: a column is missing, or an image is not there.
    """
    table = table.expanduser()
    if not table.is_file():
        raise SourceError(f"There is no table {table}.")
    there = {(wnid, pathlib.PurePath(name).stem): name for wnid, name in files}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"imagenet_id", "img_name"} <= set(rows[0]):
        raise SourceError(f"{table} needs the columns imagenet_id and img_name.")
    wanted = [(r["imagenet_id"], pathlib.PurePath(r["img_name"]).stem) for r in rows]
    missing = [stem for wnid, stem in wanted if (wnid, stem) not in there]
    if missing:
        raise SourceError(
            f"{table} names {len(missing)} images that are not there: "
            f"{', '.join(missing[:3])}. {STEPS}"
        )
    return [(wnid, there[wnid, stem]) for wnid, stem in wanted]
