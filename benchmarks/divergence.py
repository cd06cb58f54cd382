"""How close students come to their teacher at ratio 0.8, with and without hints and unequal ratios of the layers.

    python benchmarks/divergence.py

Returns of Breakout are so noisy that hundreds of games do not tell good settings apart; the KL divergence from the
teacher on states of its play does. Scores the shipped agent's channels by LRP, prunes, distils each student on the same
number of samples, and prints a Markdown table: parameters kept and mean divergence in nats. 8 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.criteria import score_channels
from lrp_compress.compression.distillation import distill
from lrp_compress.compression.losses import kl
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from lrp_compress.networks.fast import batched_outputs

RATIOS = {
    "the same ratio in every layer": "{}",
    "ratios of experiment=deep": "{conv1: 0.5, conv2: 0.6, conv3: 0.75, fc1: 0.85}",
}


def configured(*overrides: str) -> Config:
    return check_config(compose("config", ["+game=breakout", "prune.ratio=0.8", *overrides]), Config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400_000, help="learned states per student")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str)
    teacher = load_agent(teachers_dir() / "breakout.safetensors")
    network, rule = teacher.network, action_rule("sample", "policy", 0.0)
    print("| ratio 0.8 | parameters kept | hint | KL divergence |\n|---|---|---|---|")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = configured()
        rollouts = collect_rollouts(teacher, config.rollouts, Acting(rule, config.protocol, options.seed))
        observations = rollouts.observations(torch.arange(len(rollouts)))
        scores = score_channels(network, observations, rollouts.outputs, config.criterion, options.seed)
        for label, ratios in RATIOS.items():
            for hint in (0.0, 1.0):
                settings = [f"distill.hint={hint}", "distill.passes=4", "distill.match_likelihood=false"]
                config = configured(f"++prune.layer_ratios={ratios}", *settings)
                kept = all_channels(network.widths)
                plan = plan_pruning(scores, network, network.widths, kept, config.prune, config.prune.ratio)
                info = dataclasses.replace(teacher.info, kept=plan.kept_original)
                how = dataclasses.replace(config.distill, samples=options.samples)
                acting = Acting(rule, config.protocol, options.seed + 1)
                pruned = Agent(apply_pruning(network, plan), info)
                student = distill(pruned, teacher, rollouts, how, acting).network
                share = profile_network(student).params / profile_network(network).params
                divergence = kl(batched_outputs(student, observations), rollouts.outputs, 1.0).item()
                print(f"| {label} | {share:.1%} | {hint:g} | {divergence:.3f} |", flush=True)


if __name__ == "__main__":
    main()
