"""transformers' ViT and DeiT, saved by transformers, read by us."""

import pytest
import tiny
from libraries import TRANSFORMERS, difference, randomize, run

import vitjax

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = TRANSFORMERS | dict(num_labels=7)


@pytest.mark.parametrize("kind", ("ViT", "DeiT"))
@pytest.mark.parametrize("options", ({}, {"qkv_bias": False, "layer_norm_eps": 1e-3}))
def test_logits(kind, options, transformers, torch, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    randomize(torch, model).save_pretrained(tmp_path)
    shape = dict(tiny.SHAPE, qkv_bias=options.get("qkv_bias", True))
    file = tmp_path / "model.safetensors"
    for ours in (
        vitjax.load(tmp_path),
        vitjax.load(vitjax.Config(**shape), checkpoint=file, classes=7),
    ):
        assert ours.config.epsilon == options.get("layer_norm_eps", 1e-12)
        assert ours.config.prefix == {"ViT": 1, "DeiT": 2}[kind]
        computed = run(torch, model, (), ours)
        assert difference(computed.logits, computed.theirs) < 2e-5


@pytest.mark.parametrize("size", (16, 24, 48, 56))
def test_positions_resize_as_transformers_does(size, transformers, torch, tmp_path):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES))
    randomize(torch, model).save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path, image_size=size)
    call = lambda pixels: model(pixels, interpolate_pos_encoding=True)  # noqa: E731
    computed = run(torch, model, (), ours, call)
    assert difference(computed.logits, computed.theirs) < 2e-5


def test_distilled_deit(transformers, torch, tmp_path):
    config = transformers.DeiTConfig(**SIZES)
    model = transformers.DeiTForImageClassificationWithTeacher(config)
    randomize(torch, model).save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    (tmp_path / "five").mkdir()
    torch.save(model.state_dict(), tmp_path / "five" / "pytorch_model.bin")
    text = (tmp_path / "whole" / "config.json").read_text()
    (tmp_path / "five" / "config.json").write_text(text)
    for folder in ("whole", "shards", "five"):
        computed = run(torch, model, (), vitjax.load(tmp_path / folder))
        assert difference(computed.logits, computed.theirs) < 2e-5
