"""timm's models, saved by timm, read by us: same logits, same addresses."""

import numpy as np
import pytest
import safetensors.numpy
import tiny

import vitjax
from vitjax.checkpoints import registry

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
OURS = {
    "plain": (dict(), dict()),
    "no qkv bias": (dict(qkv_bias=False), dict(qkv_bias=False)),
    "layer scale": (dict(init_values=0.3), dict(layer_scale=True)),
    "registers": (dict(reg_tokens=3, no_embed_class=True), dict(registers=3)),
    "mean": (dict(class_token=False, global_pool="avg"), dict(class_token=False)),
    "wide": (dict(img_size=(16, 40)), dict(image_size=(16, 40))),
}


def randomize(torch, model):
    generator = torch.Generator().manual_seed(0)
    for name, leaf in [*model.named_parameters(), *model.named_buffers()]:
        if not leaf.is_floating_point():
            continue
        values = torch.randn(leaf.shape, generator=generator) * 0.2
        one = ("norm" in name or "bn" in name) and name.endswith("weight")
        values = values + 1 if one or "gamma" in name else values
        leaf.data = values.abs() if name.endswith("running_var") else values
    return model.eval()


def assert_same_logits(torch, model, config, path, tolerance=2e-5):
    arrays = {k: v.contiguous().numpy() for k, v in model.state_dict().items()}
    safetensors.numpy.save_file(arrays, path)
    ours = vitjax.load(config, checkpoint=path)
    images = tiny.images(config)
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2)))
    expected = getattr(expected, "logits", expected).numpy()
    logits, _ = vitjax.forward(ours, images)
    np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_logits(name, timm, torch, tmp_path):
    theirs, ours = OURS[name]
    model = timm.models.VisionTransformer(
        **SHAPE | dict(num_classes=7, mlp_ratio=1.5) | theirs
    )
    config = vitjax.Config(**tiny.SHAPE | ours)
    assert_same_logits(
        torch, randomize(torch, model), config, tmp_path / "m.safetensors"
    )


def test_residual_post_norm(timm, torch, tmp_path):
    from timm.models.vision_transformer import ResPostBlock

    model = timm.models.VisionTransformer(
        **SHAPE,
        num_classes=7,
        mlp_ratio=1.5,
        qkv_bias=False,
        class_token=False,
        global_pool="avg",
        block_fn=ResPostBlock,
    )
    assert_same_logits(
        torch, randomize(torch, model), tiny.CONFIGS["gap"], tmp_path / "m.safetensors"
    )


def test_resized_positions(timm, torch, tmp_path):
    model = timm.models.VisionTransformer(**SHAPE, num_classes=7, mlp_ratio=1.5)
    arrays = {k: v.numpy() for k, v in randomize(torch, model).state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(
        model.pos_embed, new_size=[7, 7], num_prefix_tokens=1
    )
    ours = vitjax.load(
        tiny.CONFIGS["plain"], checkpoint=tmp_path / "m.safetensors", image_size=56
    )
    np.testing.assert_allclose(
        ours.params["pos_embedding"], expected.detach().numpy(), atol=2e-6
    )


def test_addresses_are_timms(timm):
    """Every row with a tag: timm knows the tag, and the same address."""
    from timm.models import get_pretrained_cfg

    for row in registry.ROWS:
        tags = [t for t in (row.tag, *row.aliases) if t.startswith("timm/vit_")]
        for name in (tag.removeprefix("timm/") for tag in tags):
            config = get_pretrained_cfg(name)
            assert config is not None, name
            if row.file == "model.safetensors" and f"timm/{name}" == row.tag:
                assert config.url == row.url or f"/timm/{name}/" in row.url, name
            classes = len(row.labels()[0]) or row.config.projection or 0
            assert config.num_classes == classes
            trained = (518, 518) if row.family == "DINOv2" else row.config.shape
            if "_siglip_378" not in name:
                assert config.input_size == (3, *trained)


def test_addresses_are_open_clips(open_clip):
    for row in registry.ROWS:
        for alias in row.aliases:
            name, _, weights = alias.partition(" ")
            if not weights or "-quickgelu" in name:
                continue
            config = open_clip.get_pretrained_cfg(name, weights)
            assert config, alias
            hub = config["hf_hub"].strip("/")
            assert hub in (row.tag, *row.aliases)
            if row.family == "CLIP":
                assert hub == row.tag and config["url"] in ("", row.url)
                assert config["mean"] == row.preprocess.mean
                quick = config.get("quick_gelu", False)
                assert row.config.gelu == ("quick" if quick else "erf")
