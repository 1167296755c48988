"""The pipelines of transformers and timm, on photographs of odd sizes."""

import functools
import importlib
import json
import types

import numpy as np
import pytest
from PIL import Image

from vitjax.checkpoints import configs

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = ((320, 240), (241, 333), (64, 300), (255, 256), (500, 375))
PROCESSORS = (
    ("ViT", {}),
    ("ViT", {"size": 48, "resample": 3}),
    ("ViT", {"size": {"height": 32, "width": 48}, "image_mean": [0.1, 0.2, 0.3]}),
    ("ViT", {"size": 40, "do_rescale": False, "image_mean": 127.5, "image_std": 64}),
    ("ViT", {"size": 40, "do_normalize": False}),
    ("ViT", {"size": 40, "rescale_factor": 1 / 127.5, "image_mean": 1.0}),
    ("ViT", {"size": 40, "do_center_crop": True, "crop_size": 33}),
    ("DeiT", {}),
    ("DeiT", {"size": 64, "crop_size": 41, "resample": 1}),
    ("CLIP", {}),
    ("CLIP", {"size": {"shortest_edge": 65}, "crop_size": 48}),
    ("CLIP", {"size": 50, "crop_size": {"height": 32, "width": 48}}),
    ("CLIP", {"size": {"height": 40, "width": 40}, "crop_size": 32}),
    ("Bit", {"size": 60, "crop_size": 56, "image_mean": 0.4}),
    ("Beit", {"size": 48}),
    ("Siglip", {}),
    ("Levit", {}),
    ("Levit", {"size": {"shortest_edge": 90}, "crop_size": 96}),
    ("ConvNext", {}),
    ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.9}),
)


def photos():
    rng = np.random.default_rng(0)
    for size in SIZES:
        noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
        yield Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("kind", "fields"), PROCESSORS, ids=str)
def test_transformers(kind, fields, transformers, tmp_path):
    module = kind.lower()
    name = f"transformers.models.{module}.image_processing_pil_{module}"
    processor = getattr(importlib.import_module(name), f"{kind}ImageProcessorPil")
    theirs = processor(**fields)
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    sparse = fields | {"image_processor_type": f"{kind}FeatureExtractor"}
    for description in (saved, sparse):
        ours = configs.hugging_face_pipeline(description)
        for photo in photos():
            (expected,) = theirs(photo, return_tensors="np")["pixel_values"]
            gap = np.abs(ours(photo) - expected.transpose(1, 2, 0)).max()
            assert gap <= 1e-6 * max(1, np.abs(expected).max()), (photo.size, gap)


def torchvision_stand_in():
    """What torchvision documents of the transforms that timm's evaluation uses."""

    def resize(size, interpolation):
        def apply(image):
            target = size
            if isinstance(size, int):  # of the shorter side
                target = [int(size * side / min(image.size)) for side in image.size]
            else:
                target = size[::-1]
            return image.resize(target, Image.Resampling[interpolation.upper()])

        return apply

    def crop(size):
        def apply(image):
            left = int(round((image.width - size[1]) / 2.0))
            top = int(round((image.height - size[0]) / 2.0))
            return image.crop((left, top, left + size[1], top + size[0]))

        return apply

    def compose(steps):
        return lambda image: functools.reduce(lambda x, step: step(x), steps, image)

    def normalize(mean, std):
        return lambda x: (x - mean.numpy()) / std.numpy()

    return types.SimpleNamespace(
        Resize=resize, CenterCrop=crop, Compose=compose, Normalize=normalize
    )


CONFIGS = (
    {"num_classes": 7},
    {"input_size": [3, 48, 48], "crop_pct": 0.9, "interpolation": "bilinear"},
    {"input_size": [3, 48, 48], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
    {"input_size": [3, 48, 48], "crop_pct": 0.95, "crop_mode": "squash"},
    {"input_size": [3, 32, 48], "crop_pct": 1.0, "crop_mode": "squash"},
    {"input_size": [3, 65, 65], "crop_pct": 0.8, "interpolation": "lanczos"},
)


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_timm(fields, timm, monkeypatch):
    from timm.data import resolve_data_config, transforms_factory

    stand_in = torchvision_stand_in()
    monkeypatch.setattr(transforms_factory, "transforms", stand_in)
    monkeypatch.setattr(transforms_factory, "str_to_interp_mode", lambda name: name)
    to_array = lambda: lambda image: np.asarray(image, np.float32) / 255  # noqa: E731
    monkeypatch.setattr(transforms_factory, "MaybeToTensor", to_array)
    config = resolve_data_config(pretrained_cfg=fields)
    size = config.pop("input_size")[1:]
    theirs = transforms_factory.transforms_imagenet_eval(img_size=size, **config)
    description = {"architecture": "vit_x", "pretrained_cfg": fields}
    ours = configs.Timm(description).preprocess()
    for photo in photos():
        assert np.abs(ours(photo) - theirs(photo)).max() <= 1e-6


def test_heads_by_name_and_width_are_timms(timm):
    names = ("tiny", "small", "base", "large", "huge", "giant", "gigantic")
    models = [f"vit_{n}_patch{14 if n[0] in 'hg' else 16}_224" for n in names]
    models += ["vit_wee_patch16_reg1_gap_256", "vit_little_patch16_reg4_gap_256"]
    models += ["vit_medium_patch16_gap_240", "vit_betwixt_patch16_gap_256"]
    models += ["vit_so150m_patch16_reg4_gap_256", "vit_giant_patch14_dinov2"]
    for name in models:
        model = timm.create_model(name, depth=1)
        heads = configs.HEADS[name.split("_")[1], model.embed_dim]
        assert heads == model.blocks[0].attn.num_heads, name
