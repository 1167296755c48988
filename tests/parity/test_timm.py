"""timm's models, saved by timm, read by us: same logits, same addresses."""

import pytest
import tiny
from libraries import TIMM, difference, randomize, run, save

import vitjax
from vitjax.checkpoints import registry

pytestmark = pytest.mark.filterwarnings("ignore")

OURS = {
    "plain": (dict(), dict()),
    "no qkv bias": (dict(qkv_bias=False), dict(qkv_bias=False)),
    "layer scale": (dict(init_values=0.3), dict(layer_scale=True)),
    "registers": (dict(reg_tokens=3, no_embed_class=True), dict(registers=3)),
    "mean": (dict(class_token=False, global_pool="avg"), dict(class_token=False)),
    "wide": (dict(img_size=(16, 40)), dict(image_size=(16, 40))),
}


def largest_difference(torch, model, path, config) -> float:
    """Of logits and residual streams, by the file of a model."""
    ours = vitjax.load(config, checkpoint=path)
    computed = run(torch, model, model.blocks, ours)
    return max(computed.residual, difference(computed.logits, computed.theirs))


@pytest.mark.parametrize("name", OURS)
def test_logits(name, timm, torch, tmp_path):
    theirs, ours = OURS[name]
    model = randomize(torch, timm.models.VisionTransformer(**TIMM | theirs))
    save(model, tmp_path / "m.safetensors")
    config = vitjax.Config(**tiny.SHAPE | ours)
    assert largest_difference(torch, model, tmp_path / "m.safetensors", config) < 2e-5


def test_residual_post_norm(timm, torch, tmp_path):
    from timm.models.vision_transformer import ResPostBlock

    options = dict(qkv_bias=False, class_token=False, global_pool="avg")
    model = timm.models.VisionTransformer(**TIMM, **options, block_fn=ResPostBlock)
    save(randomize(torch, model), tmp_path / "m.safetensors")
    config = tiny.CONFIGS["gap"]
    assert largest_difference(torch, model, tmp_path / "m.safetensors", config) < 2e-5


@pytest.mark.parametrize("kind", ("distilled", "deit3", "swiglu", "gated"))
def test_other_architectures(kind, timm, torch, tmp_path):
    from timm.layers import SwiGLU, SwiGLUPacked
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    gate = dict(act_layer=torch.nn.SiLU)
    make, options = {
        "distilled": (VisionTransformerDistilled, {}),
        "deit3": (VisionTransformer, dict(no_embed_class=True, init_values=0.3)),
        "swiglu": (
            VisionTransformer,
            gate | dict(mlp_ratio=3.0, mlp_layer=SwiGLUPacked),
        ),
        "gated": (VisionTransformer, gate | dict(mlp_layer=SwiGLU)),
    }[kind]
    model = randomize(torch, make(**TIMM | options))
    torch.save({"model": model.state_dict()}, tmp_path / "m.pth")
    config = vitjax.Config(**tiny.SHAPE)
    assert largest_difference(torch, model, tmp_path / "m.pth", config) < 2e-5


@pytest.mark.parametrize(
    "options",
    (
        dict(),
        dict(in_chans=1),
        dict(class_token=False, global_pool="avg"),
        dict(reg_tokens=2, no_embed_class=True, init_values=0.1),
        dict(qk_norm=True),
        dict(img_size=(32, 48)),
    ),
    ids=str,
)
def test_hub_folders(options, timm, torch, tmp_path):
    from timm.models._hub import save_for_hf

    arguments = dict(img_size=32, patch_size=8, depth=2, num_classes=7) | options
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    randomize(torch, model, 0.1)  # it is wider
    save_for_hf(model, tmp_path, safe_serialization=True, model_args=arguments)
    wide = vitjax.Preprocess(32, 48) if "img_size" in options else None
    ours = vitjax.load(tmp_path, preprocess=wide)
    computed = run(torch, model, model.blocks, ours)
    assert max(computed.residual, difference(computed.logits, computed.theirs)) < 1e-4


def test_resized_positions(timm, torch, tmp_path):
    from timm.layers import resample_abs_pos_embed

    model = randomize(torch, timm.models.VisionTransformer(**TIMM))
    path = tmp_path / "m.safetensors"
    save(model, path)
    expected = resample_abs_pos_embed(
        model.pos_embed, new_size=[7, 7], num_prefix_tokens=1
    )
    ours = vitjax.load(tiny.CONFIGS["plain"], checkpoint=path, image_size=56)
    assert difference(ours.params["pos_embedding"], expected.detach()) < 2e-6


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
