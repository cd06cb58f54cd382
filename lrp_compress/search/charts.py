"""Charts of a study: its hypervolume over the trials, and which dimensions matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lrp_compress.pictures.figures import KEPT, chart, open_frame
from lrp_compress.search.objectives import RETURN_KEPT
from lrp_compress.search.studies import SETTINGS

FEWEST = 4  # trials that importances are computed from


def hypervolume_chart(study: Study) -> Figure | None:
    """Draw the hypervolume that the feasible trials dominate, trial by trial; None with fewer than two of them.

    The reference point is the worst value of each objective seen in any complete trial.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(trials) < 2 or len(study.directions) != 2:
        return None
    losses = np.array([_losses(study, trial) for trial in trials])
    reference = losses.max(axis=0)
    feasible = np.array([_feasible(study, trial) for trial in trials])
    volumes = [_area(losses[: i + 1][feasible[: i + 1]], reference) for i in range(len(trials))]
    figure, axis = chart(5.2, 3)
    axis.step(range(1, len(volumes) + 1), volumes, where="post", color=KEPT)
    axis.set_xlabel("complete trials")
    axis.set_ylabel("hypervolume")
    return figure


def importance_chart(study: Study) -> Figure | None:
    """Draw how much of each objective's variance each dimension explains (fANOVA); None with too few trials.

    Dimensions that only some trials have, such as the steps of an iterative schedule, are left out.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    names = study.metric_names or []
    if len(trials) < FEWEST:
        return None
    shares: dict[str, dict[str, float]] = {}
    for i, name in enumerate(names):

        def objective(trial: FrozenTrial, i: int = i) -> float:
            return float(trial.values[i])

        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            shares[name] = optuna.importance.get_param_importances(study, target=objective, evaluator=evaluator)
        except (ValueError, RuntimeError):  # no dimension varied
            continue
    dimensions = list(dict.fromkeys(name for own in shares.values() for name in own))
    if not dimensions:
        return None
    figure = Figure(figsize=(5.2, 0.6 + 0.34 * len(dimensions)), layout="constrained")
    panels: Any = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axis, (name, own) in zip(panels, shares.items(), strict=True):
        axis.barh(range(len(dimensions)), [own.get(one, 0.0) for one in dimensions], color=KEPT)
        axis.set_yticks(range(len(dimensions)), labels=dimensions, fontsize=8)
        axis.set_title(name, fontsize=10)
        open_frame(axis)
    panels[0].invert_yaxis()
    return figure


def _losses(study: Study, trial: FrozenTrial) -> list[float]:
    pairs = zip(trial.values, study.directions, strict=True)
    return [-value if direction == StudyDirection.MAXIMIZE else value for value, direction in pairs]


def _feasible(study: Study, trial: FrozenTrial) -> bool:
    floor = study.user_attrs[SETTINGS]["floor"]
    return floor is None or trial.user_attrs[RETURN_KEPT] >= floor


def _area(losses: Any, reference: Sequence[float]) -> float:
    """Area below and left of the reference point that some points dominate."""
    total, lowest = 0.0, reference[1]
    for x, y in sorted(map(tuple, losses)):
        if y < lowest:
            total += (reference[0] - x) * (lowest - y)
            lowest = y
    return total
