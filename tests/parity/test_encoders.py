"""CLIP, SigLIP, DINOv2 and pooled variants: saved by their libraries, read by us."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

import vitjax
from vitjax.types import Edits

safetensors_torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = tuple("abcde")
HF = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=32,
    patch_size=8,
)
HF_TEXT = dict(
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    vocab_size=30,
    max_position_embeddings=6,
)
TIMM = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
TIMM |= dict(num_classes=7, mlp_ratio=1.5)


def randomize(torch, model):
    """Every parameter random, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for name, leaf in model.named_parameters():
        values = torch.randn(leaf.shape, generator=generator) * 0.3
        one = "norm" in name or "ln_" in name or "gamma" in name or "lambda" in name
        leaf.data = values + 1 if one and not name.endswith("bias") else values
    return model.eval()


def run(torch, model, blocks, ours, call=None):
    """(their output, ours) of random images, after all blocks are compared."""
    images, states = tiny.images(ours.config), []

    def keep(module, inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs = (call or model)(pixels)
    for hook in hooks:
        hook.remove()
    theirs = getattr(theirs, "logits", theirs)
    logits, trace = vitjax.forward(ours, images, capture=("residual",))
    assert len(states) == ours.config.depth
    for state, residual in zip(states, trace.residual):
        np.testing.assert_allclose(residual, state, atol=1e-4, rtol=1e-4)
    last = trace.residual[-1]
    embedding = ours.apply(last, Edits(), method="embed_image")
    return theirs, logits, ours.class_space.finish(embedding)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def with_classes(model, texts):
    """The model with class embeddings: unit rows of the library's own text tower."""
    texts = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    head = dict(model.params["head"], kernel=np.asarray(texts.T, np.float32))
    head["bias"] = np.zeros(len(texts), np.float32)
    params = jax.device_put(dict(model.params, head=head))
    return model.replace(params=params, classes=CLASSES, class_ids=CLASSES)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("act", ("quick_gelu", "gelu"))
def test_clip_of_transformers(act, transformers, torch, tmp_path):
    config = transformers.CLIPConfig(
        vision_config=dict(HF, hidden_act=act), text_config=HF_TEXT, projection_dim=10
    )
    model = randomize(torch, transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    loaded = vitjax.load(tmp_path)
    assert loaded.classes == () and loaded.config.epsilon == 1e-5
    assert loaded.config.gelu == {"quick_gelu": "quick", "gelu": "erf"}[act]
    assert any("text tower" in line for line in loaded.provenance.ignored)
    ids = torch.randint(0, 30, (5, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32))
    ours = with_classes(loaded, texts.text_embeds.numpy())
    theirs, logits, embedding = run(
        torch,
        model,
        model.vision_model.encoder.layers,
        ours,
        lambda pixels: model(input_ids=ids, pixel_values=pixels),
    )
    close(logits, theirs.logits_per_image)
    close(embedding, unit(theirs.image_embeds.numpy()))


@pytest.mark.parametrize("prefix", ("", "vision_model."))
@pytest.mark.parametrize("kind", ("CLIPVisionModel", "CLIPVisionModelWithProjection"))
def test_clip_vision_towers(kind, prefix, transformers, torch, tmp_path):
    config = transformers.CLIPVisionConfig(**HF, projection_dim=10)
    model = randomize(torch, getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = safetensors_torch.load_file(path)
    if prefix and not any(key.startswith(prefix) for key in arrays):  # transformers 4
        arrays = {prefix + key: value for key, value in arrays.items()}
        arrays[prefix + "embeddings.position_ids"] = torch.arange(17)[None]
        safetensors_torch.save_file(arrays, path)
    ours = vitjax.load(tmp_path)
    tower = getattr(model, "vision_model", model)
    theirs, _, embedding = run(torch, model, tower.encoder.layers, ours)
    if kind == "CLIPVisionModel":
        assert (ours.config.head, ours.config.projection) == ("linear", None)
        close(embedding, theirs.pooler_output)
    else:
        assert "assumed" in ours.provenance.sources["temperature"]
        close(embedding, unit(theirs.image_embeds.numpy()))


@pytest.mark.parametrize("size", (32, 38))
def test_siglip_of_transformers(size, transformers, torch, tmp_path):
    config = transformers.SiglipConfig(
        vision_config=dict(HF, image_size=size), text_config=HF_TEXT
    )
    config.text_config.projection_size = 16
    model = randomize(torch, transformers.SiglipModel(config))
    model.save_pretrained(tmp_path)
    loaded = vitjax.load(tmp_path)
    assert loaded.config.truncate == (size == 38) and loaded.config.gelu == "tanh"
    ids = torch.randint(0, 30, (5, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = model(input_ids=ids, pixel_values=torch.zeros(1, 3, size, size))
    ours = with_classes(loaded, texts.text_embeds.numpy())
    theirs, logits, embedding = run(
        torch,
        model,
        model.vision_model.encoder.layers,
        ours,
        lambda pixels: model(input_ids=ids, pixel_values=pixels),
    )
    close(logits, theirs.logits_per_image)
    close(embedding, unit(theirs.image_embeds.numpy()))


def test_siglip_vision_tower(transformers, torch, tmp_path):
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF))
    randomize(torch, model).save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path)
    tower = getattr(model, "vision_model", model)
    theirs, _, embedding = run(torch, model, tower.encoder.layers, ours)
    close(embedding, unit(theirs.pooler_output.numpy()))


def test_siglip_classifier(transformers, torch, tmp_path):
    config = transformers.SiglipConfig(
        vision_config=HF, text_config=HF_TEXT, num_labels=7
    )
    model = randomize(torch, transformers.SiglipForImageClassification(config))
    model.save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path)
    blocks = model.vision_model.encoder.layers
    theirs, logits, _ = run(torch, model, blocks, ours)
    close(logits, theirs)


def test_clip_classifier_is_refused_with_the_reason(transformers, torch, tmp_path):
    config = transformers.CLIPConfig(
        vision_config=HF, text_config=HF_TEXT, num_labels=7
    )
    transformers.CLIPForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(vitjax.CheckpointError, match="before the final norm"):
        vitjax.load(tmp_path)


DINO = dict(HF, mlp_ratio=2)
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
    blocks = [m for n, m in model.named_modules() if type(m).__name__ == f"{kind}Layer"]
    for folder in (tmp_path, new):
        ours = vitjax.load(folder)
        theirs, logits, _ = run(torch, model, blocks, ours)
        if head == "Model":
            assert ours.classes == () and ours.config.pooling == "cls"
            embedding = run(torch, model, blocks, ours)[2]
            close(embedding, theirs.pooler_output)
        else:
            assert ours.config.pooling == "cls_mean"
            close(logits, theirs)


@pytest.mark.parametrize("kind", ("Dinov2", "Dinov2WithRegisters"))
@pytest.mark.parametrize("size", (16, 48, 56))
def test_dinov2_positions_resize_as_transformers_does(
    kind, size, transformers, torch, tmp_path
):
    config = getattr(transformers, f"{kind}Config")(**DINO)
    model = randomize(torch, getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path)
    ours = vitjax.load(tmp_path, image_size=size)
    theirs, _, embedding = run(torch, model, model.encoder.layer, ours)
    close(embedding, theirs.pooler_output)


@pytest.mark.parametrize("size", (40, 56, 64, 96))
def test_positions_resize_as_dinov2_does(size, torch, tmp_path):
    """Its call, by a scale of the grid enlarged by 0.1."""
    config = vitjax.Config(**dict(tiny.SHAPE, image_size=72), layer_scale=True)
    model = tiny.make(config)
    arrays = tiny.write_timm(tmp_path / "m.safetensors", model)
    arrays["mask_token"] = np.zeros((1, 16), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    ours = vitjax.load(config, checkpoint=tmp_path / "m.safetensors", image_size=size)
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
    np.testing.assert_allclose(ours.params["pos_embedding"][:, 1:], expected, atol=2e-6)


VISION = dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8)
VISION["mlp_ratio"] = 1.5
TEXT = dict(context_length=6, vocab_size=30, width=12, heads=2, layers=1)
OPEN_CLIP = {
    "plain": dict(embed_dim=10, vision_cfg=VISION, text_cfg=TEXT),
    "quick": dict(embed_dim=10, quick_gelu=True, vision_cfg=VISION, text_cfg=TEXT),
    "apart": dict(
        embed_dim=10,
        custom_text=True,
        vision_cfg=VISION | dict(ls_init_value=0.3),
        text_cfg=TEXT,
    ),
    "clipa": dict(
        embed_dim=10,
        vision_cfg=VISION
        | dict(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
        text_cfg=TEXT,
    ),
    "mean": dict(
        embed_dim=10,
        vision_cfg=VISION | dict(pool_type="avg", norm_kwargs=dict(eps=1e-3)),
        text_cfg=TEXT,
    ),
}


def make_open_clip(torch, open_clip, config, folder):
    """A random model of open_clip, and its folder."""
    fields = {key: value for key, value in config.items() if key != "custom_text"}
    kind = "CustomTextCLIP" if config.get("custom_text") else "CLIP"
    model = randomize(torch, getattr(open_clip, kind)(**fields))
    arrays = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors_torch.save_file(arrays, folder / "open_clip_model.safetensors")
    description = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    return model


def assert_same_as_open_clip(torch, model, blocks, path, *args):
    loaded = vitjax.load(path, *args)
    ids = torch.randint(0, 30, (5, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = model.encode_text(ids).numpy()
    ours = with_classes(loaded, texts)
    theirs, logits, embedding = run(
        torch, model, blocks, ours, lambda pixels: model.get_logits(pixels, ids)[0]
    )
    close(logits, theirs)
    return loaded


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name, open_clip, torch, tmp_path):
    model = make_open_clip(torch, open_clip, OPEN_CLIP[name], tmp_path)
    blocks = model.visual.transformer.resblocks
    ours = assert_same_as_open_clip(torch, model, blocks, tmp_path)
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
    arrays = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors_torch.save_file(arrays, tmp_path / "open_clip_model.safetensors")
    path = tmp_path / "open_clip_model.safetensors"
    row = vitjax.Config(
        **tiny.SHAPE, class_token=False, gelu=gelu, pool="map", head="cosine"
    )
    ids = torch.randint(0, 30, (5, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = model.encode_text(ids).numpy()
    ours = with_classes(vitjax.load(row, checkpoint=path), texts)
    theirs, logits, _ = run(
        torch,
        model,
        small.blocks,
        ours,
        lambda pixels: model.get_logits(pixels, ids)[0],
    )
    close(logits, theirs)


def test_torchscript_archives(open_clip, torch, tmp_path):
    """As OpenAI publishes CLIP, in half precision."""
    model = make_open_clip(torch, open_clip, OPEN_CLIP["quick"], tmp_path)
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 6, dtype=torch.long))
    traced = torch.jit.trace(model, example, check_trace=False)
    traced.half()
    torch.jit.save(traced, tmp_path / "ViT.pt")
    loaded = vitjax.load(tmp_path)
    again = vitjax.load(loaded.config, checkpoint=tmp_path / "ViT.pt")
    assert again.config == loaded.config
    for one, other in zip(*map(jax.tree.leaves, (again.params, loaded.params))):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


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
    arrays = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors_torch.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(description))
    ours = vitjax.load(tmp_path)
    fields = {field: getattr(ours.config, field) for field in expected}
    assert {**fields, "pool": ours.config.pooling} == {"pool": "cls", **expected}
    theirs, logits, embedding = run(torch, model, model.blocks, ours)
    if options["num_classes"]:
        close(logits, theirs)
    else:
        close(embedding, unit(theirs.numpy()))


def test_a_head_of_timm_without_bias_is_clips_projection(timm, torch, tmp_path):
    options = TIMM | dict(pre_norm=True, norm_layer=torch.nn.LayerNorm)
    model = randomize(torch, timm.models.VisionTransformer(**options))
    model.head.bias.data.zero_()
    path = tmp_path / "model.safetensors"
    arrays = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors_torch.save_file(arrays, path)
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
            theirs, _, embedding = run(torch, model, model.blocks, ours)
            close(embedding, unit(theirs.numpy()))
    # A Config without a projection reads it as a classifier.
    (tmp_path / "config.json").unlink()
    plain = vitjax.Config(**tiny.SHAPE, epsilon=1e-5)
    classifier = vitjax.load(plain, checkpoint=path)
    assert len(classifier.classes) == 7
    theirs, logits, _ = run(torch, model, model.blocks, classifier)
    close(logits, theirs)


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

    theirs, logits, _ = run(torch, model, model.blocks, ours, call)
    close(logits, theirs)
    assert vitjax.load(config, checkpoint=path).classes == ()
