"""Which criterion chooses the channels that matter: pruned and repaired networks beside their teachers, undistilled.

    python benchmarks/criteria.py

Prunes the shipped agents by every criterion, `lrp` by every composite, and by random draws, repairs the networks and
compares both with the teacher in states of other games. Prints a Markdown table of KL divergences from the teacher in
nats and of greedy actions that agree with it, the mean (lowest to highest) over the calibration sets, or over all
draws; then a summary. A calibration set is a teacher's play from a seed of its own. 2,048 states a set are enough to
rank criteria, though a run repairs from 8,192 by default and so better.

Every figure is kept in a folder, so a command that was cut off goes on, and the parts of the whole can be computed one
by one: `--games pong --ratios 0.5 --sets 1`. Hours of a core for the whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.composites import COMPOSITES
from lrp_compress.compression.criteria import CRITERIA, ChannelScores, score_channels
from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.compression.repair import lessons, repair
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config, CriterionConfig
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts, load_rollouts, save_rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.support.files import read_json, write_json

JUDGED = 1024  # states of other games
OTHER_GAMES = 1000  # their seed
Figures = list[float]  # KL divergence and agreement of the pruned network, then of the repaired one


@functools.cache
def defaults() -> Config:
    """Compose the settings of a run, whatever the game."""
    return check_config(compose("config", ["+game=pong"]), Config)


def criteria(draws: int) -> dict[str, tuple[CriterionConfig, int]]:
    """List each criterion's settings and seed, by its name in the table."""
    standard = defaults().criterion
    named = {f"lrp {name}": (dataclasses.replace(standard, composite=name), 0) for name in COMPOSITES.names()}
    others = [name for name in CRITERIA.names() if name not in ("lrp", "lrp_tuned", "random")]
    named |= {name: (dataclasses.replace(standard, name=name), 0) for name in others}
    random = dataclasses.replace(standard, name="random")
    return named | {f"random {draw}": (random, draw) for draw in range(draws)}


def play(agent: Agent, game: str, states: int, seed: int, folder: Path) -> Rollouts:
    path = folder / f"{game}-{states}-{seed}.safetensors"
    config = defaults()
    if not path.exists():
        # fewer states than a run keeps, of play as long as a run's: the first of each game alone are but its opening
        spread = max(1, config.rollouts.states * config.rollouts.every // states)
        wanted = dataclasses.replace(config.rollouts, states=states, every=spread)
        rule = action_rule(config.evaluate.action, agent.network.head_kind, config.evaluate.epsilon)
        save_rollouts(path, collect_rollouts(agent, wanted, Acting(rule, config.protocol, seed)))
    return load_rollouts(path, config.protocol, seed)


class Judge:
    """Compares networks with a teacher in states of games that no criterion and no repair has seen."""

    def __init__(self, agent: Agent, game: str, folder: Path) -> None:
        rollouts = play(agent, game, JUDGED, OTHER_GAMES, folder)
        self.observations = rollouts.observations(torch.arange(len(rollouts)))
        self.outputs = rollouts.outputs
        self.temperature = default_temperature(agent.network.head_kind, self.outputs)

    def compare(self, network: Network) -> Figures:
        """KL divergence in nats, and share of the states with the same greedy action."""
        outputs = batched_outputs(network, self.observations)
        agreement = (outputs.argmax(1) == self.outputs.argmax(1)).float().mean()
        return [kl(outputs, self.outputs, self.temperature).item(), agreement.item()]


def scored(path: Path, name: str, make: Callable[[], ChannelScores]) -> ChannelScores:
    known = read_json(path) if path.exists() else {}
    if name not in known:
        known[name] = {layer: shares.tolist() for layer, shares in make().scores.items()}
        write_json(path, known)
    return ChannelScores({layer: torch.tensor(shares) for layer, shares in known[name].items()}, name, 0)


def measure(game: str, seed: int, options: argparse.Namespace) -> None:
    """Measure all criteria on one agent from one calibration set, as far as the folder does not have them."""
    path = options.folder / f"{game}-{seed}.json"
    known: dict[str, Figures] = read_json(path) if path.exists() else {}
    settings = criteria(options.draws)
    wanted = [(name, ratio) for name in settings for ratio in options.ratios if f"{ratio} {name}" not in known]
    if not wanted:
        return
    agent = load_agent(teachers_dir() / f"{game}.safetensors")
    teacher = agent.network
    judge = Judge(agent, game, options.folder)
    rollouts = play(agent, game, options.states, seed, options.folder)
    held_out = rollouts.held_out()
    training, checked = (lessons(teacher, rollouts.part(part).observations, seed) for part in (~held_out, held_out))
    seen = rollouts.observations(torch.arange(len(rollouts)))
    found: dict[tuple[str, float], Figures] = {}  # by the channels kept: some criteria choose the same
    for name, ratio in wanted:
        config, draw = settings[name]
        make = functools.partial(score_channels, teacher, seen, rollouts.outputs, config, 100 * seed + draw)
        scores = scored(options.folder / f"{game}-{seed}-scores.json", name, make)
        plan = plan_pruning(scores, teacher, teacher.widths, all_channels(teacher.widths), defaults().prune, ratio)
        choice = (str(plan.keep), ratio)
        if choice not in found:
            pruned = apply_pruning(teacher, plan)
            repaired = repair(pruned, plan.kept_original, training, checked).network
            found[choice] = judge.compare(pruned) + judge.compare(repaired)
        known[f"{ratio} {name}"] = found[choice]
        write_json(path, known)


def collected(options: argparse.Namespace) -> dict[tuple[str, float, str], list[Figures]]:
    """By game, ratio and criterion the figures of all calibration sets, and of all draws."""
    results: dict[tuple[str, float, str], list[Figures]] = {}
    for game, seed in itertools.product(options.games, range(options.sets)):
        path = options.folder / f"{game}-{seed}.json"
        for key, figures in (read_json(path) if path.exists() else {}).items():
            ratio, _, name = key.partition(" ")
            if float(ratio) in options.ratios:
                criterion = "random" if name.startswith("random") else name
                results.setdefault((game, float(ratio), criterion), []).append(figures)
    return results


def cell(figures: list[Figures]) -> str:
    pruned_kl, pruned_agreement, repaired_kl, repaired_agreement = zip(*figures, strict=True)

    def told(divergences: Sequence[float], agreements: Sequence[float]) -> str:
        low, high = min(divergences), max(divergences)
        spread = f" ({low:.2g} to {high:.2g})" if len(divergences) > 1 else ""
        return f"{fmean(divergences):.2g}{spread}, {fmean(agreements):.0%}"

    return f"{told(pruned_kl, pruned_agreement)} → {told(repaired_kl, repaired_agreement)}"


def table(results: dict[tuple[str, float, str], list[Figures]]) -> Iterator[str]:
    games, ratios, names = (list(dict.fromkeys(key[i] for key in results)) for i in range(3))
    ratios = sorted(ratios)
    yield "| agent | criterion | " + " | ".join(f"ratio {ratio}" for ratio in ratios) + " |"
    yield "|---|---|" + "---|" * len(ratios)
    for game, name in itertools.product(games, names):
        cells = (results.get((game, ratio, name)) for ratio in ratios)
        yield f"| {game} | {name} | " + " | ".join(cell(figures) if figures else "" for figures in cells) + " |"


def summary(results: dict[tuple[str, float, str], list[Figures]]) -> Iterator[str]:
    """Mean divergences in shares of those of the mean random draw, before and after repair."""
    names = list(dict.fromkeys(name for _, _, name in results))
    cells = {(game, ratio) for game, ratio, _ in results}
    yield "| criterion | pruned: geometric mean | worst | repaired: geometric mean | worst |\n|---|---|---|---|---|"
    for name in names:
        row = []
        for column in (0, 2):
            shares = [
                fmean(figures[column] for figures in results[game, ratio, name])
                / fmean(figures[column] for figures in results[game, ratio, "random"])
                for game, ratio in cells
                if (game, ratio, name) in results and (game, ratio, "random") in results
            ]
            row += [math.exp(fmean(map(math.log, shares))), max(shares)] if shares else []
        yield f"| {name} | " + " | ".join(f"{share:.2f}" for share in row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    games = sorted(path.stem for path in teachers_dir().glob("*.safetensors"))
    parser.add_argument("--games", nargs="+", choices=games, default=games)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--sets", type=int, default=3, help="calibration sets per agent")
    parser.add_argument(
        "--states", type=int, default=2048, help="states of a calibration set, to score and repair from"
    )
    parser.add_argument("--draws", type=int, default=5, help="random choices of channels per calibration set")
    parser.add_argument("--folder", type=Path, default=Path("outputs/criteria"), help="where figures are kept")
    parser.add_argument("--only-print", action="store_true", help="measure nothing more")
    options = parser.parse_args()
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str)
    options.folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for seed, game in itertools.product(range(options.sets), () if options.only_print else options.games):
            measure(game, seed, options)
    results = collected(options)
    print("\n".join([*table(results), "", *summary(results)]))


if __name__ == "__main__":
    main()
