"""A user's mistake: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent, save_agent
from lrp_compress.agents.teachers import teachers_dir
from tests.commands.running import Command

# What was typed, and what the line must hold.
MISTAKES = {
    "game=breakout export=onnx": ["export=onnx is not a list; write 'export=[onnx]'"],
    "game=breakout export=[onx]": ["export=onx is unknown (did you mean onnx?)"],
    "game=breakout export=[c] quantize=none": ["export=c is made of the int8 file; choose quantize=int8"],
    "game=breakout prune.round_to=8": ["prune.round_to=8 is unknown; choose from: cortex_m, desktop, none"],
    "": ["no game was chosen", "game=breakout", "--help", "seaquest"],
    "trian game=pong": ["there is no command trian (did you mean train?)", "help"],
    "game=brekout": ["game=brekout", "did you mean breakout?", "seaquest"],
    "game=breakout criterion=lpr": ["criterion=lpr", "did you mean lrp?", "apoz"],
    "game=breakout +criterion=random": ["criterion is chosen more than once"],
    "game=breakout criterio=lrp": ["criterio", "did you mean criterion?"],
    "game=breakout experiment=smok": ["experiment=smok", "did you mean smoke?"],
    "game=breakout prune.ration=0.5": ["prune.ration", "did you mean prune.ratio?"],
    "game=breakout ratio=0.5": ["ratio", "did you mean prune.ratio?"],
    "game=breakout +prune.extra=1": ["there is no setting prune.extra", "min_width"],
    "game=breakout prune.ratio=abc": ["prune.ratio=abc", "could not be converted to Float"],
    "game=breakout prune.ratio=1.7": ["prune.ratio=1.7", "[0, 1)"],
    "game=breakout prune.ratio=nan": ["prune.ratio=nan", "[0, 1)"],
    "game=breakout prune.layer_ratios={fc:1.2}": ["prune.layer_ratios.fc=1.2", "[0, 1)"],
    "game=breakout prune.layer_ratios.fc=-1": ["prune.layer_ratios.fc=-1", "[0, 1)"],
    "game=breakout prune.scope=globl": ["prune.scope=globl", "did you mean global?"],
    "game=breakout prune.steps=4": ["prune.steps=4", "prune=cubic"],
    "game=breakout prune.ratio": ["cannot read prune.ratio", "KEY=VALUE"],
    "game=breakout prune.ratio=0.3,0.5": ["prune.ratio=0.3,0.5", "add -m"],
    "game=breakout criterion=3": ["must be a string"],
    "game=breakout seed=1.5": ["seed=1.5", "could not be converted to Integer"],
    "game=breakout ~prune": ["prune has no value"],
    "game=breakout prune.ratio=${nothing}": ["prune.ratio", "nothing"],
    "game=breakout hydra.run.dirr=x": ["hydra.run.dirr", "--hydra-help"],
    "game=breakout --config-dir nowhere": ["nowhere", "not found"],
    "game=breakout --config-name nowhere": [
        "there is no nowhere.yaml in conf/ or in the folder that --config-dir names"
    ],
    "game=breakout --config-dir": ["--config-dir", "expected one argument", "--help"],
    "game=breakout --fast": ["unrecognized arguments: --fast", "--help"],
    "game=breakout prune.ratio=1.0": ["prune.ratio=1.0", "[0, 1)"],
    "game=breakout prune.ratio=-0.1": ["prune.ratio=-0.1", "[0, 1)"],
    "game=breakout criterion.composite=gama": ["criterion.composite=gama", "did you mean gamma?"],
    "game=breakout device=tpu": ["device=tpu", "cpu, cuda"],
    "game=freeway finetune=ppd": ["finetune=ppd learns a policy", "choose finetune=none"],
    "game=breakout finetune=pdd": ["finetune=pdd", "did you mean ppd?"],
    "game=breakout finetune=ppd finetune.gamma=1.5": ["finetune.gamma=1.5", "[0, 1]"],
    "game=breakout distill.loss=kll": ["distill.loss=kll", "did you mean kl?"],
    "game=breakout prune=cubic prune.schedule=cubik": ["prune.schedule=cubik", "did you mean cubic?"],
    "game=breakout prune.layer_ratios={fc2:0.5}": ["prune.layer_ratios.fc2", "fc1"],
    "game=breakout teacher.source={bad}/missing.safetensors": ["missing.safetensors does not exist"],
    "game=breakout teacher.source={bad}/truncated.safetensors": ["truncated.safetensors cannot be read", "whole"],
    "game=breakout teacher.source={bad}/pickle.pt": ["pickle.pt", "belong to no known library", "Stable-Baselines3"],
    "game=breakout teacher.source={bad}/bomb.zip": ["bomb.zip", "pickled objects, which are never loaded"],
    "game=breakout teacher.source={bad}/truncated.zip": ["truncated.zip cannot be read"],
    "game=pong teacher.source={bad}/four.cleanrl_model": ["among 4 actions", "pong has 6 (minimal) or 18 (full)"],
    "game=breakout teacher.source=hf://org/repo/agent.zip tracking.timeout_s=1": ["does not answer", "give its path"],
    "game=breakout teacher.source=runs:/1/agent tracking.uri=null": ["runs:/1/agent needs an MLflow store"],
    "game=breakout teacher.source={bad}/shapes.safetensors": ["shapes.safetensors does not fit", "conv1.weight"],
    "game=pong teacher.source={bad}/breakout.safetensors": ["plays breakout, not pong", "game=breakout"],
    "game=pong teacher.source={bad}/actions.safetensors": ["4 actions", "pong's minimal action set has 6"],
    "game=breakout cache_dir={bad}/pickle.pt/cache": ["cache_dir=", "not a folder that can be written to"],
    "game=breakout tracking=server tracking.uri=http://127.0.0.1:9 tracking.timeout_s=1": [
        "tracking.uri=http://127.0.0.1:9 does not answer",
        "mlflow server",
    ],
    "game=breakout tracking.uri=file:mlruns": ["file:mlruns", "sqlite"],
    "game=klax": ["no agent is shipped for game klax", "teacher.source=FILE"],
    "game=breakout teacher.source=https://somewhere/agent.zip": ["is an address", "hf://ORG/REPO/FILE"],
    "game=breakout teacher.source=file:///agent.zip": ["is an address", "give its path"],
    "game=breakout teacher.source=hf://a/b/../..": ["names no file of the repository"],
    f"game=breakout teacher.source={'a' * 300}.zip": ["cannot be read: File name too long"],
    "game=breakout teacher.source={bad}/game": ["is a folder", "give the agent's file"],
    "game=breakout search=smoke search.storage=journal.log": ["journal.log is no address of a database", "sqlite:///"],
    "game=breakout search=smoke search.storage=sqlite://": ["is in memory", "sqlite:///FILE.db"],
    "game=breakout search=smoke search.storage='sqlite:///file:x?mode=memory&uri=true'": ["is in memory"],
    "game=breakout search=smoke search.storage='sqlite:///file::memory:?uri=true'": ["is in memory"],
    "game=breakout search=smoke search.storage=postgresql://a:word@host/b": [
        "holds a password",
        "PGPASSWORD",
    ],
    "experiment=adds --config-dir {bad}": ["game is chosen more than once", "'override /game: OPTION'"],
    "experiment=typo --config-dir {bad}": ["experiment/typo.yaml overrides gam, which is in no defaults list"],
    "game=mine --config-dir {bad}": ["game/mine.yaml: game.titel: Key 'titel' not in 'GameConfig'"],
    "-m prune.ratio=0.3,0.5": ["no game was chosen"],
    "-m game=breakout,pongg": ["game=pongg", "did you mean pong?"],
    "-m game=breakout criterion=lrp,rndom": ["criterion=rndom", "did you mean random?"],
    "-m game=breakout prune.ratio=0.5,abc": ["prune.ratio=abc"],
    "-m game=breakout prune.ratio=1.5,2": ["prune.ratio=1.5"],
    "-m game=breakout --cfg job": ["--multirun"],
}


def write_bad_agents(folder: Path) -> None:
    """Write agent files that cannot be compressed, each for another reason."""
    shipped = teachers_dir() / "breakout.safetensors"
    agent = load_agent(shipped)
    (folder / "breakout.safetensors").write_bytes(shipped.read_bytes())
    (folder / "truncated.safetensors").write_bytes(shipped.read_bytes()[:100_000])
    torch.save(agent.network.state_dict(), folder / "pickle.pt")
    (folder / "bomb.zip").write_bytes(pickle.dumps(os.system))
    (folder / "truncated.zip").write_bytes((folder / "pickle.pt").read_bytes()[:100_000])
    names = {"conv1": "0", "conv2": "2", "conv3": "4", "fc1": "7", "head": "9"}
    split = {key: key.split(".") for key in agent.network.state_dict()}
    renamed = {f"network.{names[name]}.{kind}": agent.network.state_dict()[k] for k, (name, kind) in split.items()}
    torch.save(renamed, folder / "four.cleanrl_model")
    save_agent(folder / "actions.safetensors", Agent(agent.network, dataclasses.replace(agent.info, game="pong")))
    wrong = copy.deepcopy(agent.network)
    wrong.conv1 = torch.nn.Conv2d(4, 16, 8, 4)
    save_agent(folder / "shapes.safetensors", Agent(wrong, agent.info))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what is wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "game").mkdir()
    (folder / "game" / "mine.yaml").write_text("name: breakout\ntitel: Mine\n")
    (folder / "experiment").mkdir()
    for name, entry in {"adds": "/game: pong", "typo": "override /gam: pong"}.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\ndefaults:\n  - {entry}\n")
    write_bad_agents(folder)
    return folder


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistake(lrp_compress: Command, bad: Path, tmp_path: Path, typed: str):
    done = lrp_compress(*typed.replace("{bad}", str(bad)).split(), HF_ENDPOINT="http://127.0.0.1:9")
    line = done.stderr.removesuffix("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    assert [part for part in MISTAKES[typed] if part not in line] == []
    assert done.stdout == ""
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(lrp_compress: Command):
    done = lrp_compress("game=breakout", "prune.ratio=1.7", HYDRA_FULL_ERROR="1")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: prune.ratio=1.7")
    assert done.returncode == 2
