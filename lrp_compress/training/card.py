"""The card of an agent: how it was trained and how it plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.config.schema import GameConfig
from lrp_compress.environments.returns import Evaluation
from lrp_compress.support.files import atomic_path

LIBRARIES = ("stable-baselines3", "sb3-contrib", "torch", "ale-py", "gymnasium")


def write_card(
    path: Path,
    agent: Agent,
    game: GameConfig,
    overrides: Sequence[str],
    evaluations: Mapping[str, Evaluation],
    action_names: Sequence[str],
) -> None:
    """Write the Markdown page that goes with an agent's file.

    Parameters
    ----------
    path : Path
        The page to write.
    agent : Agent
        The agent; its lineage holds ``trained_by``, ``steps`` and ``seed``.
    game : GameConfig
        The game, for its title and published scores.
    overrides : sequence of str
        What was given to the training command.
    evaluations : mapping of str to Evaluation
        By protocol.
    action_names : sequence of str
        Of its outputs.
    """
    lineage, network = agent.info.lineage, agent.network
    fire = "; FIRE is pressed for it after a lost life" if agent.info.fire_on_life_loss else ""
    steps = f"{lineage['steps']:,} agent steps"
    if before := lineage.get("started_from", {}).get("steps"):
        steps += f" after the {before:,} of the agent it started from"
    rows = {
        "file": f"`{game.name}.safetensors`, float16; loads with `lrp_compress.agents.checkpoints.load_agent`",
        "network": f"Nature CNN, widths {', '.join(map(str, network.widths.values()))}, {network.head_kind} head with "
        f"{network.actions} actions ({' '.join(action_names)}), no normalisation layers",
        "input": "uint8 (N, 4, 84, 84), oldest frame first, divided by 255",
        "trained by": f"{lineage['trained_by']}, {steps}, seed {lineage['seed']}; the learner "
        f"saw clipped rewards and episodes that end with a life, no sticky actions{fire}",
        "command": f"`python -m lrp_compress.train {' '.join(overrides)}`",
        **{f"return, `{protocol}`": _score(evaluation) for protocol, evaluation in evaluations.items()},
        "for comparison": f"random play {_published(game.random_score)}, human {_published(game.human_score)}",
        "versions": ", ".join(f"{library} {version(library)}" for library in LIBRARIES),
    }
    lines = [f"# {game.title}", "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _score(evaluation: Evaluation) -> str:
    returns = evaluation.returns
    odd = {end: evaluation.ended(end) for end in ("stalled", "capped")}
    cut = "".join(f", {count} {end}" for end, count in odd.items() if count)
    return (
        f"{evaluation.mean:.1f} (interval {evaluation.ci_low:.1f} to {evaluation.ci_high:.1f}) over {len(returns)} "
        f"full games, unclipped, {returns.min():g} to {returns.max():g}; actions: {evaluation.action}{cut}"
    )


def _published(score: float | None) -> str:
    return "unpublished" if score is None else f"{score:g}"
