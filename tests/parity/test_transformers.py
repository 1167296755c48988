"""transformers' ViT and DeiT, saved by transformers, read by us."""

import numpy as np
import pytest
import tiny

import vitjax

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=32,
    patch_size=8,
    num_labels=7,
)


@pytest.mark.parametrize("kind", ("ViT", "DeiT"))
@pytest.mark.parametrize("options", ({}, {"qkv_bias": False, "layer_norm_eps": 1e-3}))
def test_logits(kind, options, transformers, torch, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for leaf in model.parameters():
        leaf.data = leaf.data + 0.2 * torch.randn(leaf.shape)
    model.save_pretrained(tmp_path)
    images = tiny.images(tiny.CONFIGS["plain"])
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).logits.numpy()
    shape = dict(tiny.SHAPE, qkv_bias=options.get("qkv_bias", True))
    file = tmp_path / "model.safetensors"
    for ours in (
        vitjax.load(tmp_path),
        vitjax.load(vitjax.Config(**shape), checkpoint=file, classes=7),
    ):
        assert ours.config.epsilon == options.get("layer_norm_eps", 1e-12)
        assert ours.config.prefix == {"ViT": 1, "DeiT": 2}[kind]
        logits, _ = vitjax.forward(ours, images)
        np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", (16, 24, 48, 56))
def test_positions_resize_as_transformers_does(size, transformers, torch, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path, image_size=size)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    with torch.no_grad():
        theirs = model(
            torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32),
            interpolate_pos_encoding=True,
        )
    logits, _ = vitjax.forward(ours, images.astype(np.float32))
    np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=2e-5, rtol=1e-5)
