"""How far an exported file is from the network that it was made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Deviation:
    """Differences of outputs on the same states.

    Attributes
    ----------
    agreement : float
        Share of the states in which both prefer the same action.
    error : float
        Root mean square of the difference, after each state's mean over the actions is taken off: a shift of all
        outputs changes no action.
    max_difference : float
        Largest absolute difference of an output.
    margin : float
        Median gap between the network's two largest outputs.
    margin_where_differing : float
        The same over the states in which they disagree; 0 where there is none. Near 0 the network itself was torn.
    """

    agreement: float
    error: float
    max_difference: float
    margin: float
    margin_where_differing: float


def deviation(outputs: Tensor, reference: Tensor) -> Deviation:
    """Compare outputs with those of the network they should equal.

    Parameters
    ----------
    outputs, reference : Tensor of float32, shape (N, actions)
        On the same states.
    """
    differences = outputs - reference
    relative = differences - differences.mean(1, keepdim=True)
    same = outputs.argmax(1) == reference.argmax(1)
    top = reference.topk(min(2, reference.shape[1]), dim=1).values
    margins = top[:, 0] - top[:, -1]
    return Deviation(
        agreement=float(same.float().mean()),
        error=float(relative.square().mean().sqrt()),
        max_difference=float(differences.abs().max()),
        margin=float(margins.median()),
        margin_where_differing=0.0 if same.all() else float(margins[~same].median()),
    )
