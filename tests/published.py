"""The published code's outputs: what each of its folders holds, and its tolerances."""

import dataclasses
import functools
import pathlib

import numpy as np

from vitjax.types import Config

SMALL = dict(image_size=64, patch_size=16, dim=48, depth=4, heads=3, mlp_dim=192)
TINY = dict(image_size=224, patch_size=16, dim=192, depth=12, heads=3, mlp_dim=768)

CONFIGS = {
    "setA": Config(**TINY),
    "plain": Config(**SMALL),
    "miil": Config(**SMALL, qkv_bias=False),
    "gap": Config(**SMALL, qkv_bias=False, class_token=False, norm="residual_post"),
    "deit": Config(**SMALL),
}
SMALL_NAMES = tuple(name for name in CONFIGS if name != "setA")

STREAMS = {"residual": "hs", "attention_update": "attn", "mlp_update": "mlp"}
"""Our name of a stream -> the oracle's."""

FIELDS = (*STREAMS, "embedding", "mixed_values", "mlp_preactivation", "mlp_hidden")


def count(name: str) -> int | None:
    """How many of the oracle's images are run; None for all."""
    return 6 if name == "setA" else None


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """One folder of the oracle; arrays are read once."""

    folder: pathlib.Path
    config: Config

    @functools.cache  # noqa: B019 (a handful of session-long objects)
    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    @property
    def images(self) -> np.ndarray:
        if "setA" in self.folder.name:
            pixels = self["resized_uint8"]["uint8"].astype(np.float32)
            return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        return self["pixels"]["pixel_values"].transpose(0, 2, 3, 1)

    @property
    def label(self) -> np.ndarray:
        return self["base"]["index"].astype(np.int32)


def ranks_agree(ours: np.ndarray, theirs: np.ndarray, margin: np.ndarray) -> bool:
    """Equal where the oracle's margin is clear, within one elsewhere."""
    clear = np.abs(margin.astype(np.float32)) > 1e-3
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    return bool((difference[clear] == 0).all() and (difference <= 1).all())


def weights(shared: pathlib.Path, name: str) -> pathlib.Path:
    """The safetensors file that belongs to a folder of the oracle."""
    if name == "setA":
        return next((shared / "assets/vit_ti16").glob("*.safetensors"))
    return shared / "oracle/small" / name / "weights.safetensors"


def folder(shared: pathlib.Path, name: str) -> pathlib.Path:
    return shared / "oracle" / (name if name == "setA" else f"small/{name}")
