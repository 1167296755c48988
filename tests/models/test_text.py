"""Text towers: embeddings by their formula, and those of classes."""

import jax
import numpy as np
import pytest
import text_towers

import vitjax

CONFIGS = text_towers.CONFIGS
TOWERS = {name: text_towers.make(config) for name, config in CONFIGS.items()}
IDS = text_towers.draw_ids(CONFIGS["clip"])


@pytest.mark.parametrize("name", TOWERS)
def test_embeddings_follow_the_formula(name):
    embeddings = vitjax.encode_text(TOWERS[name], IDS)
    expected = text_towers.reference(TOWERS[name], IDS)
    np.testing.assert_allclose(embeddings, expected, atol=2e-6)


def test_padding_is_seen_by_siglip_alone():
    ends = (IDS == 39).argmax(1)
    other = np.where(np.arange(6) > ends[:, None], 5, IDS).astype(np.int32)
    for name, tower in TOWERS.items():
        before, after = (vitjax.encode_text(tower, ids) for ids in (IDS, other))
        assert np.allclose(before, after, atol=1e-6) == (name != "siglip")


def test_towers_of_one_architecture_share_a_program():
    run = jax.jit(lambda text, ids: vitjax.encode_text(text, ids))
    for seed in range(2):
        run(text_towers.make(CONFIGS["clip"], seed=seed), IDS)
    assert run._cache_size() == 1


def test_ids_that_do_not_fit_are_refused():
    tower = TOWERS["clip"]
    with pytest.raises(ValueError, match=r"ids=40 is out of range \[0, 39\]"):
        vitjax.encode_text(tower, IDS + np.int32(1))
    for number in (40, -1):
        wrong = IDS.copy()
        wrong[0, 0] = number
        rows = jax.jit(vitjax.encode_text)(tower, wrong)
        assert np.isnan(rows[0]).all() and np.isfinite(rows[1:]).all()
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        vitjax.encode_text(tower, IDS[:, :5])
    with pytest.raises(ValueError, match="tokenizer="):
        tower.tokenize("a dog")


@pytest.mark.parametrize(
    "change",
    (dict(length=0), dict(heads=3), dict(pool="first"), dict(end=40), dict(gelu="x")),
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(change):
    value = str(next(iter(change.values())))
    with pytest.raises((ValueError, TypeError), match=value):
        vitjax.TextConfig(**text_towers.SHAPE | change)


def by_letter(texts):
    """Ids of the first letters, end and padding 39."""
    ids = np.full((len(texts), 6), 39, np.int32)
    for row, text in zip(ids, texts):
        row[: min(5, len(text))] = [ord(letter) % 39 for letter in text[:5]]
    return ids


def test_class_embeddings_are_means_of_unit_rows(monkeypatch):
    monkeypatch.setattr("vitjax.models.text.BATCH", 4)
    tower = text_towers.make(CONFIGS["clip"], tokenizer=by_letter)
    names, templates = ("dog", "cat", "{owl}"), ("a {}", lambda name: f"{name}s")
    rows = vitjax.class_embeddings(tower, names, templates=templates)
    for name, row in zip(names, rows):
        ids = by_letter([f"a {name}", f"{name}s"])
        mean = text_towers.reference(tower, ids).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=2e-6)
    for arguments in (("dog",), ((),)):
        with pytest.raises(ValueError, match="names="):
            vitjax.class_embeddings(tower, *arguments)
    with pytest.raises(ValueError, match="'a dog'"):
        vitjax.class_embeddings(tower, ["dog"], templates=["a dog"])
