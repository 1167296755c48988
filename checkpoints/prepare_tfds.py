"""ImageNet-S and CIFAR-100 as TensorFlow Datasets, prepared without TensorFlow.

    python checkpoints/prepare_tfds.py imagenet_s/919 PATH --data-dir DIR

writes array_record files of the original bytes, one to read from instead of many. They
open with `--data tfds:imagenet_s/919:validation` while `TFDS_DATA_DIR` is DIR.

Configs of ImageNet-S: the subset, or "paper" for the paper's selection of the largest:
5 images per class in `validation`, 10 in `test`, by the published CSV if it is beside
the files, else by seed 0. There is no other seed: name and version identify one set of
images, for TensorFlow Datasets and for a run. Other draws are read from the files
themselves, `--data imagenet_s:PATH:paper,seed=1`, whose id has the seed. CIFAR-100 is
stored as PNG; its split `paper` holds five test images per class.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
import tyro
from PIL import Image

from vitjax.data.cifar100 import PER_CLASS, open_cifar100
from vitjax.data.imagenet_s import NO_MASK, open_imagenet_s
from vitjax.data.labels import CIFAR100, imagenet_s
from vitjax.data.records import SourceError

CONFIGS = ("919", "300", "50", "paper")
Examples = Iterable[dict[str, Any]]


class DatasetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of these features, from the examples of its splits."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(
        self,
        name: str,
        features: Mapping[str, Any],
        splits: Mapping[str, Examples],
        *,
        config: str | None = None,
        data_dir: str | os.PathLike | None = None,
    ):
        self.name, self.features, self.splits = name, features, splits
        super().__init__(
            data_dir=None if data_dir is None else os.fspath(data_dir),
            config=config
            and tfds.core.BuilderConfig(name=config, version=self.VERSION),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(x) for name, x in self.splits.items()}

    def _generate_examples(self, examples: Examples) -> Iterator[Any]:
        yield from enumerate(examples)


def png(image: Image.Image) -> io.BytesIO:
    """An encoded image, as TensorFlow Datasets takes it."""
    content = io.BytesIO()
    image.save(content, format="png")
    content.seek(0)
    return content


def examples(source: Any) -> Examples:
    """The images of a source: files with their masks, or pixels."""
    no_mask = Image.new("RGB", NO_MASK)
    for index, name in enumerate(source.names):
        example = {"label": source.label_names[index], "file_name": name}
        if source.masks:
            mask = source.masks[index]
            mask = os.fspath(source.root / mask) if mask else png(no_mask)
            image = os.fspath(source.root / source.paths[index])
            yield example | {"image": image, "segmentation": mask}
        else:
            yield example | {"image": png(Image.fromarray(source[index].image))}


def prepare(
    name: str, path: str | os.PathLike, *, data_dir: str | os.PathLike | None = None
) -> str:
    """Prepare a data set from its files; returns `--data` without the split."""
    kind, _, config = name.partition("/")
    features: dict[str, Any] = {"file_name": tfds.features.Text()}
    if kind == "imagenet_s" and config in ("", *CONFIGS):
        config = config or CONFIGS[0]
        select = "paper" if config == "paper" else "all"
        options: Any = {
            "select": select,
            "classes": int(config) if select == "all" else 919,
        }
        splits = {"validation": examples(open_imagenet_s(path, **options))}
        with contextlib.suppress(SourceError):
            splits["test"] = examples(open_imagenet_s(path, part="test", **options))
        names = imagenet_s(options["classes"])
        features["image"] = tfds.features.Image(encoding_format="jpeg")
        features["segmentation"] = tfds.features.Image(encoding_format="png")
    elif name == "cifar100":
        kind, config, names = "vitjax_cifar100", None, CIFAR100
        splits = {
            "train": examples(open_cifar100(path, part="train")),
            "test": examples(open_cifar100(path)),
            "paper": examples(open_cifar100(path, per_class=PER_CLASS)),
        }
        features["image"] = tfds.features.Image(
            shape=(32, 32, 3), encoding_format="png"
        )
    else:
        known = ", ".join(f"imagenet_s/{config}" for config in CONFIGS)
        raise SourceError(f"name={name!r} is not one of {known}, cifar100.")
    features["label"] = tfds.features.ClassLabel(names=names)
    DatasetBuilder(
        kind, features, splits, config=config, data_dir=data_dir
    ).download_and_prepare()
    return f"tfds:{kind}/{config}" if config else f"tfds:{kind}"


def main(name: str, path: str, /, *, data_dir: str | None = None) -> None:
    """Prepare a data set from its files, without TensorFlow.

    Args:
        name: imagenet_s/919, /300, /50 or /paper, or cifar100.
        path: of the files, as in imagenet_s:PATH and cifar100:PATH.
        data_dir: of prepared data sets; by default TFDS_DATA_DIR or
            ~/tensorflow_datasets.
    """
    print(f"--data {prepare(name, path, data_dir=data_dir)}:SPLIT")


if __name__ == "__main__":
    tyro.cli(main)
