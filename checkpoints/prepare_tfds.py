"""Builders of TensorFlow Datasets for ImageNet-S and CIFAR-100, without TensorFlow.

    python checkpoints/prepare_tfds.py imagenet_s/919 PATH --data-dir DIR

writes array_record files of the original bytes, one to read from instead of many. They
open with `--data tfds:imagenet_s/919:validation` while `TFDS_DATA_DIR` is DIR.
"""

import io
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
import tyro
from PIL import Image

from vitjax.data import cifar100, imagenet_s
from vitjax.data.image_files import ImageFiles
from vitjax.data.labels import CIFAR100
from vitjax.data.records import SourceError

CONFIGS = ("919", "300", "50", "paper")
VERSION = tfds.core.Version("1.0.0")


class ImagenetS(tfds.core.GeneratorBasedBuilder):
    """Photographs with segmentations, WordNet ids and file names.

    Configs: the subset, or "paper" for the paper's selection of the largest: 5 images
    per class in `validation`, 10 in `test`, by the published CSV if it is beside the
    files, else by seed 0. There is no other seed: name and version identify one set of
    images, for TensorFlow Datasets and for a run. Other draws are read from the files
    themselves, `--data imagenet_s:PATH:paper,seed=1`, whose id has the seed.
    """

    name = "imagenet_s"
    VERSION = VERSION
    MANUAL_DOWNLOAD_INSTRUCTIONS = imagenet_s.STEPS
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, version=VERSION, description="ImageNet-S")
        for name in CONFIGS
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        subset = 919 if self.config_name == "paper" else int(self.config_name)
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet-S (Gao et al. 2022); see vitjax.data.imagenet_s.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "segmentation": tfds.features.Image(encoding_format="png"),
                    "label": tfds.features.ClassLabel(
                        names=imagenet_s.imagenet_s(subset)
                    ),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    @property
    def config_name(self) -> str:
        """One of `CONFIGS`."""
        config: Any = self.builder_config
        return config.name

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits = {}
        for part in ("validation", "test"):
            try:
                splits[part] = self._generate_examples(self.source(dl_manager, part))
            except SourceError:
                if part == "validation":
                    raise
        return splits

    def source(self, dl_manager: Any, part: Any) -> ImageFiles:
        """The files of a part."""
        paper = self.config_name == "paper"
        return imagenet_s.open_imagenet_s(
            dl_manager.manual_dir,
            part=part,
            classes=919 if paper else int(self.config_name),
            select="paper" if paper else "all",
        )

    def _generate_examples(self, source: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        no_mask = Image.new("RGB", imagenet_s.NO_MASK)
        for index, name in enumerate(source.names):
            path, mask = source.paths[index], source.masks[index]
            example = {
                "image": os.fspath(source.root / path),
                "segmentation": os.fspath(source.root / mask) if mask else png(no_mask),
                "label": source.label_names[index],
                "file_name": name,
            }
            yield index, example


def png(image: Image.Image) -> io.BytesIO:
    """An encoded image, as TensorFlow Datasets takes it."""
    content = io.BytesIO()
    image.save(content, format="png")
    content.seek(0)
    return content


class VitjaxCifar100(tfds.core.GeneratorBasedBuilder):
    """CIFAR-100 as PNG; the split `paper` holds five test images per class."""

    name = "vitjax_cifar100"
    VERSION = VERSION
    MANUAL_DOWNLOAD_INSTRUCTIONS = cifar100.STEPS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="CIFAR-100 (Krizhevsky 2009); see vitjax.data.cifar100.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(32, 32, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=CIFAR100),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = dl_manager.manual_dir
        sources = {
            "train": cifar100.open_cifar100(path, part="train"),
            "test": cifar100.open_cifar100(path),
            "paper": cifar100.open_cifar100(path, per_class=cifar100.PER_CLASS),
        }
        return {name: self._generate_examples(s) for name, s in sources.items()}

    def _generate_examples(self, source: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(source)):
            record = source[index]
            image = png(Image.fromarray(record.image))
            example = {"image": image, "label": record.label, "file_name": record.name}
            yield index, example


BUILDERS = {"imagenet_s": ImagenetS, "cifar100": VitjaxCifar100}


def prepare(
    name: str, path: str | os.PathLike, *, data_dir: str | os.PathLike | None = None
) -> str:
    """Prepare a data set from its files; returns `--data` without the split."""
    kind, _, config = name.partition("/")
    if kind not in BUILDERS or (config and config not in CONFIGS):
        known = [f"imagenet_s/{config}" for config in CONFIGS] + ["cifar100"]
        raise SourceError(f"name={name!r} is not one of {', '.join(known)}.")
    if not os.path.isdir(path):
        raise SourceError(
            f"There is no folder {path}. {BUILDERS[kind].MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    options = {"config": config or CONFIGS[0]} if kind == "imagenet_s" else {}
    builder = BUILDERS[kind](
        data_dir=None if data_dir is None else os.fspath(data_dir),
        file_format="array_record",
        **options,
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(path))
    )
    return f"tfds:{builder.info.full_name.rsplit('/', 1)[0]}"


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
