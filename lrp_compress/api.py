"""The package in Python, ``import lrp_compress as lc``: the functions that the command line calls, one by one.

Each takes the settings of a run (`settings`), by default those that the command line has for the agent's game.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as compose_settings
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from rich.console import Console
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent, all_channels, is_own
from lrp_compress.agents.checkpoints import load_agent as load_own
from lrp_compress.agents.checkpoints import save_agent as save_own
from lrp_compress.commands.arguments import written_out
from lrp_compress.commands.play import watched
from lrp_compress.commands.table import COMMANDS, register_starts
from lrp_compress.commands.wording import MISTAKES, one_line
from lrp_compress.compression import attribution, distillation
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.compression.quantization import quantize_static
from lrp_compress.compression.repair import repair_from_play
from lrp_compress.compression.tuning import score_by_play
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.ranges import RATIO
from lrp_compress.config.schema import Config, config_hash
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.evaluation import evaluate as play_episodes
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.returns import Evaluation
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts
from lrp_compress.pictures.videos import write_video
from lrp_compress.pipeline import carry_out, find_teacher, preflight
from lrp_compress.stages.publishing import STUDENT
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import file_digest
from lrp_compress.support.seeding import stage_seed


@dataclass(frozen=True)
class Compressed:
    """What a whole run gave.

    Attributes
    ----------
    student : Agent
        The small agent.
    metrics : dict of str to float
        Everything measured, by the names that MLflow has: ``student/return_kept``, ``student/speedup`` and so on.
    folder : Path
        The run's files: agents, exports, pictures, ``result.md``.
    """

    student: Agent
    metrics: dict[str, float]
    folder: Path


def settings(game: str, *overrides: str) -> Config:
    """Compose the settings of a run.

    Parameters
    ----------
    game : str
        As on the command line, e.g. ``"pong"``.
    *overrides : str
        As on the command line, e.g. ``"criterion=taylor"``, ``"distill.samples=20000"``.

    Returns
    -------
    Config
        A dataclass; its parts are dataclasses too and may be changed.

    Raises
    ------
    UserError
        For a value that is unknown, of the wrong type, out of range or at odds with another one.
    """
    register_schemas()
    register_starts()
    command = COMMANDS["compress"]
    try:
        arguments = written_out([f"game={game}", *overrides], command)
        with _hydra_of_our_own(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return check_config(compose_settings(command.start, arguments), Config)
    except MISTAKES as error:
        raise UserError(one_line(error, Config)) from error


def load_agent(source: str | Path, game: str | None = None, *overrides: str) -> Agent:
    """Load an agent.

    Parameters
    ----------
    source : str or Path
        A file of this project or of another library, an address on a hub, or ``"auto"`` for the agent that is shipped
        for the game; all that ``teacher.source`` takes.
    game : str, optional
        What it plays; files of this project say so themselves.
    *overrides : str
        Further settings, e.g. ``"teacher.frame_skip=3"``.

    Returns
    -------
    Agent
        Its network is a `torch.nn.Module` from uint8 observations of shape (N, 4, 84, 84) to float32 outputs of shape
        (N, actions), in evaluation mode.

    Raises
    ------
    UserError
        If there is no such file, it is not read whole, its agent plays another game, or the game is needed.
    """
    if game is None:
        if not Path(source).is_file() or not is_own(Path(source)):
            raise UserError(f"{source} is no file that says which game its agent plays; add the game, e.g. game='pong'")
        return load_own(source)
    return find_teacher(_of_source(settings(game, *overrides), source))[0]


def save_agent(
    path: str | Path, agent: Agent, calibration: Rollouts | None = None, config: Config | None = None
) -> None:
    """Write an agent.

    Parameters
    ----------
    path : str or Path
        Ends in ``.safetensors`` for a file of this project, in ``.onnx`` for one of ONNX.
    agent : Agent
        What to write.
    calibration : Rollouts, optional
        States of the agent's play; with them an ONNX file is int8. Their last games choose among ways to quantise.
    config : Config, optional
        Its ``quantize`` says how many of the states are used.

    Raises
    ------
    UserError
        If the path ends in something else, or states are given for a file that is not ONNX.
    """
    path = Path(path)
    if path.suffix == ".onnx" and calibration is not None:
        held_out = calibration.held_out()
        count = _settings(agent, config).quantize.states
        ranges, judged = (calibration.part(chosen, count).observations.numpy() for chosen in (~held_out, held_out))
        quantize_static(path, agent, ranges, judged)
    elif path.suffix == ".onnx":
        save_float(path, agent)
    elif path.suffix == ".safetensors" and calibration is None:
        save_own(path, agent)
    else:
        raise UserError(f"agent file {path} ends in neither .safetensors nor .onnx, or is to be int8 and not .onnx")


def rollouts(agent: Agent, config: Config | None = None) -> Rollouts:
    """Let an agent play, and keep states spread over its games.

    Parameters
    ----------
    agent : Agent
        The player.
    config : Config, optional
        Its ``rollouts`` say how many.
    """
    config = _settings(agent, config)
    return collect_rollouts(agent, config.rollouts, _acting(agent, config, "rollouts"))


def relevance(agent: Agent, states: Rollouts, config: Config | None = None) -> ChannelScores:
    """Score every channel of an agent on states of its play; those of the highest scores matter most.

    Parameters
    ----------
    agent : Agent
        Whose channels.
    states : Rollouts
        The states.
    config : Config, optional
        Its ``criterion`` says how, by default by layer-wise relevance propagation.
    """
    config = _settings(agent, config)
    seed = stage_seed(config.seed, "criterion", 1)
    return score_by_play(agent.network, states, config.criterion, config.prune, seed)[0]


def heat_maps(agent: Agent, observations: Tensor, config: Config | None = None) -> Tensor:
    """Show what an agent looks at.

    Parameters
    ----------
    agent : Agent
        Who looks.
    observations : Tensor of uint8, shape (N, 4, 84, 84)
    config : Config, optional
        Its ``criterion`` has the rules of the hidden layers, and what the relevance starts from.

    Returns
    -------
    Tensor of float64, shape (N, 84, 84)
        The relevance of the pixels, summed over the frames: above 0 for the chosen action, below against it.
    """
    criterion = _settings(agent, config).criterion
    return attribution.heat_maps(agent.network, observations, criterion.composite, criterion.relevance_seed)


def prune(agent: Agent, scores: ChannelScores, ratio: float, config: Config | None = None) -> Agent:
    """Remove an agent's channels of the lowest scores.

    Parameters
    ----------
    agent : Agent
        Left as it is.
    scores : ChannelScores
        Of its channels (`relevance`).
    ratio : float
        Fraction of the channels that go, in [0, 1).
    config : Config, optional
        Its ``prune`` says of which layers, and whether layers compete.

    Raises
    ------
    UserError
        If the ratio is none, or the settings are of another game.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio not in RATIO:
        raise UserError(f"ratio={ratio} is not allowed; it must be {RATIO}")
    how = _settings(agent, config).prune
    widths, kept = agent.network.widths, all_channels(agent.network.widths)
    plan = plan_pruning(scores, agent.network, widths, kept, dataclasses.replace(how, ratio=ratio), ratio)
    return Agent(apply_pruning(agent.network, plan), dataclasses.replace(agent.info, kept=plan.kept_original))


def repair(pruned: Agent, teacher: Agent, states: Rollouts, config: Config | None = None) -> Agent:
    """Solve the layers of a pruned agent again, so that they say what its teacher's say.

    Parameters
    ----------
    pruned : Agent
        From `prune`; left as it is.
    teacher : Agent
        What was pruned.
    states : Rollouts
        Of the teacher's play.
    config : Config, optional
        Its ``repair`` says from how many states, and how strongly it holds on to the weights there are.

    Raises
    ------
    UserError
        If the teacher is not what was pruned, or the settings are of another game.
    """
    _check_pruned(pruned, teacher)
    config = _settings(teacher, config)
    seed = stage_seed(config.seed, "repair", 1)
    solved = repair_from_play(pruned.network, pruned.info.kept, teacher.network, states, config.repair, seed)
    return Agent(solved.network, pruned.info)


def distill(student: Agent, teacher: Agent, states: Rollouts, config: Config | None = None) -> Agent:
    """Teach a pruned agent what its teacher does in the states that the student gets into.

    Parameters
    ----------
    student : Agent
        From `prune` or `repair`, or any other network; left as it is.
    teacher : Agent
        What was pruned.
    states : Rollouts
        Of the teacher's play.
    config : Config, optional
        Its ``distill`` says how and how long, its ``device`` where.

    Raises
    ------
    UserError
        If the two play other games or give other outputs, or the settings are of another game.
    """
    _check_task(student, teacher)
    config = _settings(teacher, config)
    learning, taught_by = (Agent(copy.deepcopy(a.network).to(config.device), a.info) for a in (student, teacher))
    acting = _acting(teacher, config, "distill", 1)
    learned = distillation.distill(learning, taught_by, states, config.distill, acting)
    return Agent(learned.network.cpu(), student.info)


def evaluate(agent: Agent, config: Config | None = None) -> Evaluation:
    """Let an agent play whole games, and give the returns and the interval of their mean.

    Parameters
    ----------
    agent : Agent
        The player.
    config : Config, optional
        Its ``evaluate`` says how many and how the agent acts, its ``protocol`` under which rules.
    """
    config = _settings(agent, config)
    return play_episodes(agent, config.evaluate, config.game, _acting(agent, config, "evaluate"), "evaluate")


def watch(agent: Agent, path: str | Path, seconds: float = 20.0, config: Config | None = None) -> Path:
    """Let an agent play, and draw the game and what the agent looks at beside each other.

    Parameters
    ----------
    agent : Agent
        The player.
    path : str or Path
        The animated GIF to write.
    seconds : float
        How long at most; less if the game ends before.
    config : Config, optional
        Its ``criterion`` has the relevance's rules.
    """
    config = _settings(agent, config)
    return write_video(Path(path), watched(agent, config.criterion, _acting(agent, config, "video"), seconds))


def compress(
    agent: Agent | str | Path, game: str, ratio: float, *overrides: str, folder: str | Path | None = None
) -> Compressed:
    """Do a whole run as the command line does: prune, repair, distil, evaluate, quantise, measure, record.

    The same call again goes on where it was cut off, and finds a run that has finished.

    Parameters
    ----------
    agent : Agent, str or Path
        The teacher, or all that `load_agent` takes.
    game : str
        What it plays.
    ratio : float
        Fraction of the channels that go, in [0, 1).
    *overrides : str
        Further settings, as on the command line.
    folder : str or Path, optional
        Where the run's files go; by default where the command line has them, ``outputs/`` and a name.

    Raises
    ------
    UserError
        For wrong settings, an agent that cannot be used, or a folder that holds another run.
    """
    composed = settings(game, f"prune.ratio={ratio}", *overrides)
    source = _written(agent, Path(composed.cache_dir)) if isinstance(agent, Agent) else agent
    config = _of_source(composed, source)
    preflight(config)
    run_dir = Path(folder or Path("outputs") / f"{config.run_name}-{config_hash(config)}").absolute()
    metrics = carry_out(config, run_dir, None, Console(quiet=True))
    return Compressed(load_own(run_dir / STUDENT), metrics, run_dir)


@contextlib.contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Put the Hydra aside that an application may have set up; there is one for each process."""
    state = Singleton.get_state()
    others = {kind: instance for kind, instance in state["instances"].items() if kind is not GlobalHydra}
    Singleton.set_state(state | {"instances": others})
    try:
        yield
    finally:
        Singleton.set_state(state)


def _of_source(config: Config, source: str | Path) -> Config:
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, source=str(source)))


def _settings(agent: Agent, config: Config | None) -> Config:
    """Take the settings given, if they are of the agent's game, or the defaults."""
    if config is not None and config.game.name != agent.info.game:
        raise UserError(f"the settings are of {config.game.name}, but the agent plays {agent.info.game}")
    return config or settings(agent.info.game)


def _check_task(student: Agent, teacher: Agent) -> None:
    """Refuse a student that plays another game, or gives something else for its actions."""
    if (student.info.game, student.network.decision) != (teacher.info.game, teacher.network.decision):
        raise UserError("the student cannot learn from this teacher: its game or its outputs are others")


def _check_pruned(student: Agent, teacher: Agent) -> None:
    """Refuse a student that was pruned from another network than the teacher's."""
    _check_task(student, teacher)
    kept, widths = student.info.kept, teacher.network.widths
    if kept.keys() != widths.keys() or any(max(kept[name]) >= widths[name] for name in widths):
        raise UserError("the student was not pruned from this teacher: its channels are others")


def _acting(agent: Agent, config: Config, *stage: str | int) -> Acting:
    rule = action_rule(config.evaluate.action, agent.network.head_kind, config.evaluate.epsilon)
    return Acting(rule, config.protocol, stage_seed(config.seed, *stage))


def _written(agent: Agent, folder: Path) -> Path:
    """Write an agent into a file named after its content, so that the same agent is the same run's."""
    with tempfile.TemporaryDirectory() as elsewhere:
        written = Path(elsewhere) / "agent.safetensors"
        save_own(written, agent)
        path = folder / f"agent-{file_digest(written)[:16]}.safetensors"
    if not path.exists():
        save_own(path, agent)
    return path
