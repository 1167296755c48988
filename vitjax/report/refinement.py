"""What token-refinement modules answer, block by block."""

import numpy as np

from vitjax.report.per_image import MEASURES, TOKENS, Digest
from vitjax.report.sections import BAND, Curve, Figure
from vitjax.runner.results import Results


def refinement(run: Results, digest: Digest) -> list[Figure]:
    """Identifiability of the answers of a model's refinement modules.

    For rank r of the true class among a module's C class logits 1 - r / C, and whether
    r is 0, beside the same of the state that the head would read after that block.

    Args:
        run: rows of a model with refinement modules, one after every block but the
            last; runs of other models have no such figure.
        digest: of the same run.

    Returns:
        A figure for each of the measures, or none.
    """
    if "rank_refined" not in run or not len(digest.image):
        return []
    ranks = run["rank_refined"][digest.image]
    if not ranks.shape[1]:  # a single block
        return []
    answers = {
        "identifiability": 1 - ranks / len(digest.classes),
        "rate": (ranks == 0).astype(np.float64),
    }
    readout = "cls" if digest.config.class_token else "image"
    figures = []
    for measure in MEASURES:
        projected = digest.of("residual", measure, readout)
        chance = digest.chance(measure)
        panel = "block output"
        curves = [
            Curve(panel, f"{TOKENS[readout]}, projected", 0, projected, chance),
            Curve(panel, "refinement module", 3, answers[measure], chance),
        ]
        figures.append(Figure(KEYS[measure], TITLES[measure], CAPTION, measure, curves))
    return figures


KEYS = {"identifiability": "refined", "rate": "refined_rate"}
TITLES = {
    "identifiability": "What the refinement modules answer",
    "rate": "How often the refinement modules are right",
}
CAPTION = (
    "The module of a block reads its [CLS] and all of its image tokens (Naseer et al. "
    "2022); there is none after the last block. Beside it, the state that the head "
    f"reads, projected after the same block. {BAND} Dashed: chance."
)
