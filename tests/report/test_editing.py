"""The section of edited memories, from rows made up."""

import numpy as np
import pytest
from fake_runs import fake_run


def test_images_count_alike_and_random_memories_are_the_control(report):
    run = fake_run("editing", images=40)
    figures, tables, sentences = report(run)
    role, correct = run["edited_role"].values, run["edited_correct_random_zero"].values
    mine = [i for i in range(40) if (role[i] == 1).any()]
    values = [correct[i, role[i] == 1, 1].mean() for i in mine]
    (row,) = (
        tables["editing"]
        .data.query(
            "edit == 'zero' and images_of == 'its confusions' and memories == 5"
        )
        .to_dict("records")
    )
    assert row["images"] == len(mine) > 20
    assert row["random_accuracy"] == pytest.approx(np.mean(values))
    assert row["accuracy_difference"] == pytest.approx(
        row["accuracy"] - row["random_accuracy"]
    )
    before = (run["prediction"].values == run["label"].values)[mine].mean()
    assert row["before"] == pytest.approx(before)
    lines = figures["editing"].data
    assert len(figures["editing"].panels()) == 4 * 3
    assert lines["memories"].unique().tolist() == [0, 1, 5]
    own = lines.query("panel == 'its confusions, set to zero' and style == 1")
    assert own["mean"].tolist()[::2] == pytest.approx([before, np.mean(values)])
    assert len(sentences) == 4 and f"n = {len(mine)}" in sentences[0]
