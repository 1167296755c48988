"""Image models of transformers, timm and open_clip: saved by them, read by us."""

import json

import formats
import jax
import numpy as np
import pytest
import tiny
from libraries import TIMM, TRANSFORMERS, compare, difference, randomize, save, unit

import vitjax
from vitjax.checkpoints import registry

safetensors_torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

EXACT, TOLERANCE = 2e-5, 1e-4
CLASSES = tuple("abcde")
HF_TEXT = dict(
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    vocab_size=30,
    max_position_embeddings=6,
)
HF_CLASSES = TRANSFORMERS | dict(num_labels=7)


def draw_texts(torch):
    return torch.randint(0, 30, (5, 6), generator=torch.Generator().manual_seed(0))


def with_classes(model, texts):
    """The model with class embeddings: unit rows of the library's own text tower."""
    head = dict(model.params["head"], kernel=unit(texts.numpy()).T)
    head["bias"] = np.zeros(len(texts), np.float32)
    params = jax.device_put(dict(model.params, head=head))
    return model.replace(params=params, classes=CLASSES, class_ids=CLASSES)


def compare_towers(torch, model, loaded) -> float:
    """Of a model of transformers whose classes are texts."""
    texts = draw_texts(torch)
    call = lambda pixels: model(input_ids=texts, pixel_values=pixels)  # noqa: E731
    with torch.no_grad():
        embeddings = call(torch.zeros(1, 3, *loaded.config.shape)).text_embeds
    ours = with_classes(loaded, embeddings)
    return max(compare(torch, model, each, call) for each in (loaded, ours))


@pytest.mark.parametrize("kind", ("ViT", "DeiT"))
@pytest.mark.parametrize("options", ({}, {"qkv_bias": False, "layer_norm_eps": 1e-3}))
def test_vit_of_transformers(kind, options, transformers, torch, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**HF_CLASSES, **options)
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
        assert compare(torch, model, ours) < EXACT


@pytest.mark.parametrize("size", (16, 24, 48, 56))
def test_positions_resize_as_transformers_does(size, transformers, torch, tmp_path):
    config = transformers.ViTConfig(**HF_CLASSES)
    model = transformers.ViTForImageClassification(config)
    randomize(torch, model).save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path, image_size=size)
    call = lambda pixels: model(pixels, interpolate_pos_encoding=True)  # noqa: E731
    assert compare(torch, model, ours, call) < EXACT


def test_distilled_deit(transformers, torch, tmp_path):
    config = transformers.DeiTConfig(**HF_CLASSES)
    model = transformers.DeiTForImageClassificationWithTeacher(config)
    randomize(torch, model).save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    (tmp_path / "five").mkdir()
    torch.save(model.state_dict(), tmp_path / "five" / "pytorch_model.bin")
    text = (tmp_path / "whole" / "config.json").read_text()
    (tmp_path / "five" / "config.json").write_text(text)
    for folder in ("whole", "shards", "five"):
        assert compare(torch, model, vitjax.load(tmp_path / folder)) < EXACT


@pytest.mark.parametrize("act", ("quick_gelu", "gelu"))
def test_clip_of_transformers(act, transformers, torch, tmp_path):
    config = transformers.CLIPConfig(
        vision_config=dict(TRANSFORMERS, hidden_act=act),
        text_config=HF_TEXT,
        projection_dim=10,
    )
    model = randomize(torch, transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    loaded = vitjax.load(tmp_path)
    assert loaded.classes == () and loaded.config.epsilon == 1e-5
    assert loaded.config.gelu == {"quick_gelu": "quick", "gelu": "erf"}[act]
    assert any("text tower" in line for line in loaded.provenance.ignored)
    assert compare_towers(torch, model, loaded) < TOLERANCE


TOWERS = (
    ("CLIPVisionModel", ""),
    ("CLIPVisionModel", "vision_model."),
    ("CLIPVisionModelWithProjection", ""),
    ("CLIPVisionModelWithProjection", "vision_model."),
    ("SiglipVisionModel", ""),
)


@pytest.mark.parametrize(("kind", "prefix"), TOWERS)
def test_vision_towers(kind, prefix, transformers, torch, tmp_path):
    config = getattr(transformers, kind.partition("Model")[0] + "Config")
    config = config(**TRANSFORMERS, projection_dim=10)
    model = randomize(torch, getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = safetensors_torch.load_file(path)
    if prefix and not any(key.startswith(prefix) for key in arrays):  # transformers 4
        arrays = {prefix + key: value for key, value in arrays.items()}
        arrays[prefix + "embeddings.position_ids"] = torch.arange(17)[None]
        safetensors_torch.save_file(arrays, path)
    ours = vitjax.load(tmp_path)
    if kind == "CLIPVisionModel":
        assert (ours.config.head, ours.config.projection) == ("linear", None)
    else:
        assert "assumed" in ours.provenance.sources["temperature"]
    assert compare(torch, model, ours) < TOLERANCE


@pytest.mark.parametrize("size", (32, 38))
def test_siglip_of_transformers(size, transformers, torch, tmp_path):
    config = transformers.SiglipConfig(
        vision_config=dict(TRANSFORMERS, image_size=size), text_config=HF_TEXT
    )
    config.text_config.projection_size = 16
    model = randomize(torch, transformers.SiglipModel(config))
    model.save_pretrained(tmp_path)
    loaded = vitjax.load(tmp_path)
    assert loaded.config.truncate == (size == 38) and loaded.config.gelu == "tanh"
    assert compare_towers(torch, model, loaded) < TOLERANCE


def test_siglip_classifier(transformers, torch, tmp_path):
    config = transformers.SiglipConfig(
        vision_config=TRANSFORMERS, text_config=HF_TEXT, num_labels=7
    )
    model = randomize(torch, transformers.SiglipForImageClassification(config))
    model.save_pretrained(tmp_path)
    assert compare(torch, model, vitjax.load(tmp_path)) < TOLERANCE


def test_clip_classifier_is_refused_with_the_reason(transformers, torch, tmp_path):
    config = transformers.CLIPConfig(
        vision_config=TRANSFORMERS, text_config=HF_TEXT, num_labels=7
    )
    transformers.CLIPForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(vitjax.CheckpointError, match="before the final norm"):
        vitjax.load(tmp_path)


DINO = dict(TRANSFORMERS, mlp_ratio=2)
del DINO["intermediate_size"]


@pytest.mark.parametrize("head", ("Model", "ForImageClassification"))
@pytest.mark.parametrize("kind", ("Dinov2", "Dinov2WithRegisters"))
@pytest.mark.parametrize("swiglu", (False, True))
def test_dinov2_of_transformers(kind, head, swiglu, transformers, torch, tmp_path):
    config = getattr(transformers, f"{kind}Config")(
        **DINO, use_swiglu_ffn=swiglu, num_labels=7
    )
    model = randomize(torch, getattr(transformers, kind + head)(config))
    model.save_pretrained(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    safetensors_torch.save_file(dict(model.state_dict()), new / "model.safetensors")
    text = (tmp_path / "config.json").read_text()
    (new / "config.json").write_text(text)
    for folder in (tmp_path, new):
        ours = vitjax.load(folder)
        kind_of_head = len(ours.classes), ours.config.pooling
        assert kind_of_head == ((0, "cls") if head == "Model" else (7, "cls_mean"))
        assert compare(torch, model, ours) < TOLERANCE


@pytest.mark.parametrize("kind", ("Dinov2", "Dinov2WithRegisters"))
@pytest.mark.parametrize("size", (16, 48, 56))
def test_dinov2_positions_resize_as_transformers_does(
    kind, size, transformers, torch, tmp_path
):
    config = getattr(transformers, f"{kind}Config")(**DINO)
    model = randomize(torch, getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path, image_size=size)
    assert compare(torch, model, ours) < TOLERANCE


@pytest.mark.parametrize("size", (40, 56, 64, 96))
def test_positions_resize_as_dinov2_does(size, torch, tmp_path):
    """Its call, by a scale of the grid enlarged by 0.1."""
    config = vitjax.Config(**dict(tiny.SHAPE, image_size=72), layer_scale=True)
    model = tiny.make(config)
    arrays = formats.LAYOUTS["dinov2"](model)
    ours = formats.load(tmp_path, arrays, config, image_size=size)
    assert ours.provenance.position_resize == "offset_bicubic"
    grid = torch.tensor(np.asarray(model.params["pos_embedding"])[:, 1:])
    grid = grid.reshape(1, 9, 9, 16).permute(0, 3, 1, 2)
    side = size // 8
    scale = (side + 0.1) / 9
    expected = torch.nn.functional.interpolate(
        grid, mode="bicubic", antialias=False, scale_factor=(scale, scale)
    )
    assert expected.shape[-2:] == (side, side)
    expected = expected.permute(0, 2, 3, 1).reshape(1, side**2, 16)
    assert difference(ours.params["pos_embedding"][:, 1:], expected) < 2e-6


VISION = dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8)
VISION["mlp_ratio"] = 1.5
TEXT = dict(context_length=6, vocab_size=30, width=12, heads=2, layers=1)
OPEN_CLIP = {
    "plain": dict(),
    "quick": dict(quick_gelu=True),
    "apart": dict(custom_text=True, vision_cfg=VISION | dict(ls_init_value=0.3)),
    "clipa": dict(
        vision_cfg=VISION
        | dict(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)
    ),
    "mean": dict(vision_cfg=VISION | dict(pool_type="avg", norm_kwargs=dict(eps=1e-3))),
}


def make_open_clip(torch, open_clip, name, folder):
    """A random model of open_clip, and its folder."""
    config = dict(embed_dim=10, vision_cfg=VISION, text_cfg=TEXT) | OPEN_CLIP[name]
    fields = {key: value for key, value in config.items() if key != "custom_text"}
    kind = "CustomTextCLIP" if config.get("custom_text") else "CLIP"
    model = randomize(torch, getattr(open_clip, kind)(**fields))
    save(model, folder / "open_clip_model.safetensors")
    description = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return model


def compare_open_clip(torch, model, loaded) -> float:
    """Of a model of open_clip whose classes are texts."""
    texts = draw_texts(torch)
    with torch.no_grad():
        ours = with_classes(loaded, model.encode_text(texts))
    call = lambda pixels: model.get_logits(pixels, texts)[0]  # noqa: E731
    return compare(torch, model, ours, call)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name, open_clip, torch, tmp_path):
    model = make_open_clip(torch, open_clip, name, tmp_path)
    ours = vitjax.load(tmp_path)
    assert compare_open_clip(torch, model, ours) < TOLERANCE
    assert ours.preprocess.mean == (0.1,) * 3 and ours.preprocess.resize == "shorter"
    assert "open_clip_config" in ours.provenance.sources["preprocess"]


@pytest.mark.parametrize("gelu", ("tanh", "erf"))
def test_open_clip_with_an_image_tower_of_timm(gelu, timm, open_clip, torch, tmp_path):
    """SigLIP's, with the GELU of timm or of the weights."""
    text = TEXT | dict(width=16, no_causal_mask=True, pool_type="last", proj_bias=True)
    small = timm.models.VisionTransformer(
        **TIMM | dict(num_classes=0, class_token=False, global_pool="map"),
        act_layer="gelu_tanh" if gelu == "tanh" else "gelu",
    )
    model = open_clip.CustomTextCLIP(
        embed_dim=16,
        vision_cfg=VISION,
        text_cfg=text,
        init_logit_bias=-10.0,
    )
    model.visual = torch.nn.Module()
    model.visual.trunk = small
    model.visual.forward = small.forward
    randomize(torch, model)
    path = tmp_path / "open_clip_model.safetensors"
    save(model, path)
    row = vitjax.Config(
        **tiny.SHAPE, class_token=False, gelu=gelu, pool="map", head="cosine"
    )
    ours = vitjax.load(row, checkpoint=path)
    assert compare_open_clip(torch, model, ours) < TOLERANCE


def test_torchscript_archives(open_clip, torch, tmp_path):
    """As OpenAI publishes CLIP, in half precision."""
    model = make_open_clip(torch, open_clip, "quick", tmp_path)
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 6, dtype=torch.long))
    traced = torch.jit.trace(model, example, check_trace=False)
    traced.half()
    torch.jit.save(traced, tmp_path / "ViT.pt")
    loaded = vitjax.load(tmp_path)
    again = vitjax.load(loaded.config, checkpoint=tmp_path / "ViT.pt")
    assert again.config == loaded.config
    for one, other in zip(*map(jax.tree.leaves, (again.params, loaded.params))):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


OURS = {
    "plain": (dict(), dict()),
    "no qkv bias": (dict(qkv_bias=False), dict(qkv_bias=False)),
    "layer scale": (dict(init_values=0.3), dict(layer_scale=True)),
    "registers": (dict(reg_tokens=3, no_embed_class=True), dict(registers=3)),
    "mean": (dict(class_token=False, global_pool="avg"), dict(class_token=False)),
    "wide": (dict(img_size=(16, 40)), dict(image_size=(16, 40))),
    "residual post": (
        dict(qkv_bias=False, class_token=False, global_pool="avg"),
        dict(norm="residual_post", qkv_bias=False, class_token=False),
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_vit_of_timm(name, timm, torch, tmp_path):
    from timm.models.vision_transformer import Block, ResPostBlock

    theirs, ours = OURS[name]
    block = ResPostBlock if name == "residual post" else Block
    model = timm.models.VisionTransformer(**TIMM | theirs, block_fn=block)
    save(randomize(torch, model), tmp_path / "m.safetensors")
    config = vitjax.Config(**tiny.SHAPE | ours)
    loaded = vitjax.load(config, checkpoint=tmp_path / "m.safetensors")
    assert compare(torch, model, loaded) < EXACT


@pytest.mark.parametrize("kind", ("distilled", "deit3", "swiglu", "gated"))
def test_other_architectures_of_timm(kind, timm, torch, tmp_path):
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
    ours = vitjax.load(tiny.CONFIGS["plain"], checkpoint=tmp_path / "m.pth")
    assert compare(torch, model, ours) < EXACT


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
    assert compare(torch, model, ours) < TOLERANCE


def test_positions_resize_as_timm_does(timm, torch, tmp_path):
    from timm.layers import resample_abs_pos_embed

    model = randomize(torch, timm.models.VisionTransformer(**TIMM))
    path = tmp_path / "m.safetensors"
    save(model, path)
    expected = resample_abs_pos_embed(
        model.pos_embed, new_size=[7, 7], num_prefix_tokens=1
    )
    ours = vitjax.load(tiny.CONFIGS["plain"], checkpoint=path, image_size=56)
    assert difference(ours.params["pos_embedding"], expected.detach()) < 2e-6


def siglip(gap=False):
    pool = dict(global_pool="avg", fc_norm=False) if gap else dict(global_pool="map")
    return dict(class_token=False, num_classes=0, **pool)


CLIP = dict(pre_norm=True, norm_layer="clip")
FOLDERS = {
    "vit_base_patch16_clip_224": (CLIP, dict(embed_norm=True, projection=None)),
    "vit_base_patch16_clip_quickgelu_224": (
        CLIP | dict(act_layer="quick_gelu"),
        dict(gelu="quick", epsilon=1e-5),
    ),
    "vit_base_patch16_siglip_224": (
        siglip() | dict(act_layer="gelu_tanh"),
        dict(pool="map", head="cosine", gelu="tanh"),
    ),
    "vit_base_patch16_siglip_gap_224": (
        siglip(gap=True) | dict(act_layer="gelu_tanh", num_classes=7),
        dict(pool="mean", pool_norm="before"),
    ),
    "vit_base_patch16_224 (mae)": (
        dict(global_pool="avg"),
        dict(class_token=True, pool="mean", pool_norm="after"),
    ),
    "vit_base_patch16_reg4_gap_256": (
        dict(class_token=False, reg_tokens=3, global_pool="avg", no_embed_class=True),
        dict(registers=3, pool="mean"),
    ),
    "vit_base_patch14_reg4_dinov2": (
        dict(init_values=0.3, reg_tokens=3, no_embed_class=True),
        dict(registers=3, layer_scale=True),
    ),
    "vit_base_patch16_224 (no norm after)": (
        dict(global_pool="avg", fc_norm=False, reg_tokens=2, qk_norm=True),
        dict(pool="mean", pool_norm="before", qk_norm=True),
    ),
    "vit_base_patch16_224 (fc_norm of [CLS])": (dict(fc_norm=False), dict(pool="cls")),
    "vit_base_patch16_siglip_224 (classifier)": (
        siglip() | dict(act_layer="gelu_tanh", num_classes=7),
        dict(pool="map", head="linear"),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_timm(name, timm, torch, tmp_path):
    options, expected = FOLDERS[name]
    options = TIMM | options
    description = {
        "architecture": name.split(" ")[0],
        "model_args": {"num_heads": 2, "img_size": 32},
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    description["model_args"] |= {"global_pool": options.get("global_pool")}
    if "clip" in name:
        options = options | dict(norm_layer=torch.nn.LayerNorm)  # its epsilon is 1e-5
    model = randomize(torch, timm.models.VisionTransformer(**options))
    save(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(description))
    ours = vitjax.load(tmp_path)
    fields = {field: getattr(ours.config, field) for field in expected}
    assert {**fields, "pool": ours.config.pooling} == {"pool": "cls", **expected}
    assert compare(torch, model, ours) < TOLERANCE


def test_a_head_of_timm_without_bias_is_clips_projection(timm, torch, tmp_path):
    options = TIMM | dict(pre_norm=True, norm_layer=torch.nn.LayerNorm)
    model = randomize(torch, timm.models.VisionTransformer(**options))
    model.head.bias.data.zero_()
    path = tmp_path / "model.safetensors"
    save(model, path)
    description = {
        "architecture": "vit_base_patch16_clip_224",
        "model_args": {"num_heads": 2, "img_size": 32},
        "pretrained_cfg": {"tag": "laion2b"},
    }
    for tag, gelu in (("laion2b", "erf"), ("openai", "quick")):
        description["pretrained_cfg"]["tag"] = tag
        (tmp_path / "config.json").write_text(json.dumps(description))
        ours = vitjax.load(tmp_path)
        assert (ours.config.projection, ours.config.gelu) == (7, gelu)
        assert ours.classes == ()
        if gelu == "erf":
            assert compare(torch, model, ours) < TOLERANCE
    # A Config without a projection reads it as a classifier.
    (tmp_path / "config.json").unlink()
    plain = vitjax.Config(**tiny.SHAPE, epsilon=1e-5)
    classifier = vitjax.load(plain, checkpoint=path)
    assert len(classifier.classes) == 7
    assert compare(torch, model, classifier) < TOLERANCE


@pytest.mark.parametrize("blocks", (1, 2))
def test_heads_of_dinov2_in_files_of_their_own(blocks, timm, torch, tmp_path):
    """[CLS] of the last blocks, then the mean of the patches, each normalized."""
    options = dict(init_values=0.3, reg_tokens=3, no_embed_class=True, num_classes=0)
    model = randomize(torch, timm.models.VisionTransformer(**TIMM | options))
    head = randomize(torch, torch.nn.Linear(16 * (blocks + 1), 7))
    path, file = tmp_path / "m.pth", tmp_path / "head.pth"
    arrays = dict(model.state_dict())
    arrays["register_tokens"] = arrays.pop("reg_token")
    arrays["mask_token"] = torch.zeros(1, 16)
    torch.save(arrays, path)
    torch.save(head.state_dict(), file)
    config = vitjax.Config(**tiny.SHAPE, registers=3, layer_scale=True)
    ours = vitjax.load(config, checkpoint=path, head=file, classes=list("abcdefg"))
    assert (ours.config.pooling, ours.config.head_blocks) == ("cls_mean", blocks)

    def call(pixels):
        states = model.get_intermediate_layers(
            pixels, blocks, return_prefix_tokens=True, norm=True
        )
        tokens = [prefix[:, 0] for _, prefix in states]
        return head(torch.cat([*tokens, states[-1][0].mean(1)], 1))

    assert compare(torch, model, ours, call) < TOLERANCE
    assert vitjax.load(config, checkpoint=path).classes == ()


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
