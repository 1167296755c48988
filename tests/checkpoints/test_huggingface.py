"""What a Hugging Face config.json says."""

import pytest

from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.huggingface import architecture, class_names
from vitjax.types import Config


def test_what_is_absent_has_their_default():
    base = dict(dim=768, depth=12, heads=12, mlp_dim=3072, epsilon=1e-12)
    assert architecture({"model_type": "vit"}) == Config(224, 16, **base)
    deit = architecture({"model_type": "deit", "image_size": [64, 32]})
    assert deit == Config((64, 32), 16, **base, registers=1)


def test_what_a_config_cannot_say_is_an_error():
    with pytest.raises(CheckpointError, match="not square"):
        architecture({"model_type": "vit", "patch_size": [8, 16]})
    with pytest.raises(CheckpointError, match="'relu' is none of gelu"):
        architecture({"model_type": "vit", "hidden_act": "relu"})


def test_classes_stand_in_the_order_of_their_numbers():
    names = {str(n): f"name {n}" for n in (10, 2, 0, 1)}
    assert class_names({"id2label": names}) == ("name 0", "name 1", "name 2", "name 10")
    assert class_names({}) == ()
