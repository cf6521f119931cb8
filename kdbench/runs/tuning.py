"""Equal tuning: the same trials of one factor on a method's weights, judged on validation, before its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from kdbench.errors import KDBenchError
from kdbench.records.schema import Tuning

if TYPE_CHECKING:
    from kdbench.runs.trainings import Trainings

#: By factor the validation score of each seed; None of a trial that diverged.
Scores = Mapping[float, Sequence[float | None]]


def tune(trainings: Trainings) -> Tuning | None:
    """Chooses the factor on the method's weights; None where nothing is tuned.

    With several seeds (``tuning.seed=[1000,1001]``) each factor is tried under all of them and judged by the mean.

    Raises:
        Diverged: No factor came to a score under every seed.
        KDBenchError: Validation holds nothing to score.
    """
    config, own = trainings.config, trainings.config["tuning"]
    factors = own["factors"][: own["trials"]]
    if not factors or not trainings.distils:
        return None
    from kdbench.training.history import Diverged

    seeds = own["seed"] if isinstance(own["seed"], list) else [own["seed"]]
    scores: dict[float, list[float | None]] = {}
    # Seeds that run side by side begin at different ends instead of waiting for each other.
    for factor in factors if config["seed"] % 2 == 0 else reversed(factors):
        scores[factor] = [_score(trainings, factor, seed) for seed in seeds]
    means = {factor: mean(scores[factor]) for factor in factors}
    best = best_of(means, trainings.task.higher_is_better)
    if best is None:
        raise Diverged("every tuning trial diverged: lower trainer.optimizer.lr or the factors")
    return Tuning(
        trials=len(factors),
        factor=best,
        seed=own["seed"],
        scores={f"{f:g}": means[f] for f in factors},
        by_seed={f"{f:g}": scores[f] for f in factors} if len(seeds) > 1 else None,
    )


def mean(scores: Sequence[float | None]) -> float | None:
    """Returns the mean over seeds; None where one of them has no score: a factor that may diverge is none to take."""
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None


def best_of(means: Mapping[float, float | None], higher_is_better: bool) -> float | None:
    """Returns the factor of the best score, of equal ones the earliest; None without a score."""
    sign = 1.0 if higher_is_better else -1.0
    finite = {factor: sign * score for factor, score in means.items() if score is not None}
    return max(finite, key=finite.__getitem__) if finite else None


def _score(trainings: Trainings, factor: float, seed: int) -> float | None:
    from kdbench.training.history import Diverged

    recipe = trainings.student_recipe().trial(factor, seed, trainings.config["tuning"]["length"])
    try:
        product = trainings.make(recipe)
    except Diverged:
        return None
    name = trainings.task.selection
    score: float | None = product.manifest["scores"]["val"].get(name)
    if score is None:
        raise KDBenchError(f"tuning needs {name} on validation, which holds nothing to score")
    return score
