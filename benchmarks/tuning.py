"""Whether rules and widths tuned on the agent do better than the epsilon rule and one ratio for all layers.

    python benchmarks/tuning.py

Tunes `criterion=lrp_tuned` on each shipped agent, prunes the agent by the rules found and by `epsilon`, and once more
by `epsilon` with the widths that `prune=auto` chooses for the parameters or MACs that one ratio leaves. The networks
are repaired and compared with their teacher in states of other games than those anything was tuned, solved or scored
on. Prints a Markdown table of KL divergences in nats and of greedy actions that agree. Rollouts and figures are kept in
a folder, so a command that was cut off goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from criteria import OTHER_GAMES, Judge, defaults, play
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.budgets import Costs, choose_widths, measure_curves, with_widths
from lrp_compress.compression.criteria import ChannelScores, score_channels
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning
from lrp_compress.compression.repair import lessons, repair
from lrp_compress.compression.tuning import TUNED, tune
from lrp_compress.config.checks import conf_dir, register_schemas
from lrp_compress.config.schema import PruneConfig
from lrp_compress.support.files import read_json, write_json

RATIOS = (0.3, 0.5, 0.7)
Figures = dict[str, Any]


class Bench:
    """Measures one agent, as far as the folder does not have the figures."""

    def __init__(self, game: str, options: argparse.Namespace) -> None:
        self.path = options.folder / f"tuning-{game}-{options.seed}.json"
        self.known: Figures = read_json(self.path) if self.path.exists() else {}
        self.seed, self.game = options.seed, game
        agent = load_agent(teachers_dir() / f"{game}.safetensors")
        self.teacher, self.judge = agent.network, Judge(agent, game, options.folder)
        self.rollouts = play(agent, game, options.states, options.seed, options.folder)
        held_out, seed = self.rollouts.held_out(), options.seed
        self.training, self.checked = (
            lessons(self.teacher, self.rollouts.part(part).observations, seed) for part in (~held_out, held_out)
        )
        self.criterion = dataclasses.replace(defaults().criterion, trials=options.trials)
        self.found: dict[str, list[float]] = {}  # by the channels kept

    def tuned(self, repaired: bool) -> None:
        """Tune, and prune by the rules found and by the default ones."""
        key = "tuned" if repaired else "tuned before repair"
        if key not in self.known:
            start = time.process_time()
            how = dataclasses.replace(self.criterion, name=TUNED)
            result = tune(self.teacher, self.rollouts, how, defaults().prune, self.seed, repaired)
            self._keep(key, dataclasses.asdict(result) | {"cpu_s": time.process_time() - start})
        for name in (f"{key} ", "epsilon "):
            wanted = [ratio for ratio in RATIOS if f"{name}{ratio}" not in self.known]
            if wanted:
                scores = self._scores("epsilon" if name == "epsilon " else self.known[key]["composite"])
                for ratio in wanted:
                    self._keep(f"{name}{ratio}", self._figures(scores, defaults().prune, ratio))

    def widths(self, budget: str) -> None:
        """Prune by the default rules to the widths chosen for what one ratio leaves of a budget."""
        auto = f"auto, equal {budget}"
        wanted = [ratio for ratio in RATIOS if f"{auto} {ratio}" not in self.known]
        if not wanted:
            return
        scores, prune = self._scores("epsilon"), defaults().prune
        if "curves" not in self.known:
            start = time.process_time()
            curves = measure_curves(self.teacher, scores, self.rollouts, prune, self.seed)
            self._keep("curves", {name: list(curve.items()) for name, curve in curves.items()})
            self._keep("curves, cpu_s", time.process_time() - start)
        curves = {name: dict(map(tuple, curve)) for name, curve in self.known["curves"].items()}
        costs = Costs(self.teacher, budget)
        for ratio in wanted:
            uniform = {name: len(kept) for name, kept in self._plan(scores, prune, ratio).keep.items()}
            share = costs(uniform) / costs(self.teacher.widths)
            chosen = choose_widths(self.teacher, curves, dataclasses.replace(prune, budget=budget, share=share))
            settled = with_widths(prune, self.teacher.widths, chosen)
            self._keep(f"{auto} {ratio}", self._figures(scores, settled, settled.ratio))
            self._keep(f"{auto} widths {ratio}", chosen)

    def _scores(self, composite: str) -> ChannelScores:
        seen = self.rollouts.observations(torch.arange(len(self.rollouts)))
        how = dataclasses.replace(self.criterion, composite=composite)
        return score_channels(self.teacher, seen, self.rollouts.outputs, how, self.seed)

    def _plan(self, scores: ChannelScores, prune: PruneConfig, ratio: float) -> PruningPlan:
        widths = self.teacher.widths
        return plan_pruning(scores, self.teacher, widths, all_channels(widths), prune, ratio)

    def _figures(self, scores: ChannelScores, prune: PruneConfig, ratio: float) -> list[float]:
        plan = self._plan(scores, prune, ratio)
        if str(plan.keep) not in self.found:
            pruned = apply_pruning(self.teacher, plan)
            repaired = repair(pruned, plan.kept_original, self.training, self.checked).network
            self.found[str(plan.keep)] = self.judge.compare(repaired)
        return self.found[str(plan.keep)]

    def _keep(self, key: str, value: object) -> None:
        self.known[key] = value
        write_json(self.path, self.known)


def table(known: dict[str, Figures]) -> Iterator[str]:
    yield (
        "| agent | | "
        + " | ".join(f"ratio {ratio}" for ratio in RATIOS)
        + " | rules, widths |\n|---|---|---|---|---|---|"
    )
    for game, figures in known.items():
        for name in ("epsilon", "tuned", "tuned before repair", "auto, equal params", "auto, equal macs"):
            cells = [figures.get(f"{name} {ratio}") for ratio in RATIOS]
            if any(cells):
                told = [f"{cell[0]:.2g}, {cell[1]:.0%}" if cell else "" for cell in cells]
                widths = (figures.get(f"{name} widths {ratio}") for ratio in RATIOS)
                note = "; ".join(", ".join(map(str, one.values())) for one in widths if one)
                yield f"| {game} | {name} | {' | '.join(told)} | {figures.get(name, {}).get('composite', note)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    games = sorted(path.stem for path in teachers_dir().glob("*.safetensors"))
    parser.add_argument("--games", nargs="+", choices=games, default=games)
    parser.add_argument("--states", type=int, default=2048, help="states to score, tune and repair from")
    parser.add_argument("--seed", type=int, default=0, help=f"of those games, and of the search; not {OTHER_GAMES}")
    parser.add_argument("--trials", type=int, default=20, help="composites tried")
    parser.add_argument("--before-repair", action="store_true", help="also tune by networks that are not repaired")
    parser.add_argument("--folder", type=Path, default=Path("outputs/criteria"), help="where figures are kept")
    parser.add_argument("--only-print", action="store_true", help="measure nothing more")
    options = parser.parse_args()
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str)
    options.folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for game in () if options.only_print else options.games:
            bench = Bench(game, options)
            bench.tuned(repaired=True)
            bench.widths("params")
            bench.widths("macs")
            if options.before_repair:
                bench.tuned(repaired=False)
    paths = {game: options.folder / f"tuning-{game}-{options.seed}.json" for game in options.games}
    print("\n".join(table({game: read_json(path) for game, path in paths.items() if path.exists()})))


if __name__ == "__main__":
    main()
