"""The whole path on real Breakout with the shipped agent, small: what it leaves, and that no kill changes it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.config.schema import TrackingConfig
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.returns import Evaluation, load_evaluation
from lrp_compress.reporting.records import find_runs
from lrp_compress.support.files import SUMS
from lrp_compress.tracking.downloads import download_folder
from tests.commands.forks import Forks
from tests.commands.running import REPOSITORY

MainJob = Callable[..., str]

SMALL = [
    "game=breakout",
    "prune=linear",
    "prune.steps=2",
    "rollouts={states: 128, envs: 2, every: 2}",
    "criterion.states=32",
    "criterion.batch_size=16",
    "repair.strength=0.1",
    # a set precision, because a measured one may differ from run to run
    "distill={samples: 2000, step_samples: 300, batch_size: 128, envs: 4, replay_states: 2048, precision: float32}",
    "evaluate={episodes: 2, envs: 1, stall_limit: 200, max_frames: 400}",
    "quantize={states: 4, min_agreement: 0.2, distill: always, samples: 300}",
    "latency={rounds: 2, decisions: 5, warmup: 2, max_rounds: 2}",
]
UNDISTILLED = ["prune=one_shot", "prune.steps=1", "distill.samples=0", "quantize=none", "export=[]"]
UNDISTILLED += ["prune.evaluate=false", "latency.rounds=1", "latency.max_rounds=1"]


@pytest.fixture
def main_job(forks: Forks, new_store: Callable[[Path], Path]) -> MainJob:
    """Return a function that does the small job with further arguments in a folder, and gives what it has printed."""

    def run(folder: Path, *extra: str) -> str:
        if not (folder / "mlflow.db").exists():
            new_store(folder / "mlflow.db")
        done = forks.run("lrp_compress", [*SMALL, *extra], folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def run_folder(folder: Path) -> Path:
    (found,) = (path for path in (folder / "outputs").iterdir() if path.name.startswith("breakout-"))
    return found


def runs(folder: Path, experiment: str = "lrp_compress") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics without those that come from a clock."""
    timed = ("latency", "late_", "speedup", "samples_per_s", "load_ms", "first_ms", "memory_bytes")
    return {key: value for key, value in metrics.items() if not any(word in key for word in timed)}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks, new_store: Callable[[Path], Path]
) -> tuple[Path, str]:
    """Folder and output of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    new_store(folder / "mlflow.db")
    done = forks.run("lrp_compress", SMALL, folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_prints_the_result_and_where_to_look(undisturbed: tuple[Path, str]):
    folder, printed = undisturbed
    shown = (
        "return mean",
        "95 % interval",
        "human-normalised",
        "parameters",
        "MACs",
        "size, kB",
        "latency p50",
        "int8",
    )
    for line in (*shown, "times smaller", "speedup"):
        assert line in printed
    assert "return kept" in printed
    assert str(run_folder(folder) / "student.safetensors") in printed
    assert "mlflow ui --backend-store-uri sqlite:///" in printed
    assert "runs?workflowType=machine_learning" in printed


def test_says_when_a_stage_begins_and_ends(undisturbed: tuple[Path, str]):
    folder, printed = undisturbed
    log = (run_folder(folder) / "lrp_compress.log").read_text()
    assert printed.startswith(log)
    begun, done = (re.findall(rf"^\S+ \S+ (.*): {word}", log, re.MULTILINE) for word in ("begins", "done in"))
    assert sorted(begun) == sorted(done)
    steps = [f"{stage}, step {step}" for step in (1, 2) for stage in ("score", "plan", "prune", "repair", "distill")]
    agents = [f"evaluate {name}" for name in ("teacher", "pruned", "repaired", "student")]
    assert [stage for stage in done if stage in steps + agents] == steps + agents
    assert {"rollouts", "quantize int8", "distill for int8", "latency", "export onnx", "publish"} < set(done)
    for figure in (r"distill, step 2: .*, agreement \d", r"evaluate student: .*, return -?\d.*, 2 games", "speedup"):
        assert re.search(figure, log)


def test_student_file_is_the_pruned_teacher(undisturbed: tuple[Path, str]):
    folder, _ = undisturbed
    student = load_agent(run_folder(folder) / "student.safetensors")
    assert student.network.widths == {"conv1": 16, "conv2": 32, "conv3": 32, "fc1": 256}
    assert {name: len(kept) for name, kept in student.info.kept.items()} == student.network.widths
    assert student.info.lineage["criterion"] == "lrp"
    assert student.info.lineage["ratio"] == 0.5


def test_distillation_moved_the_student(undisturbed: tuple[Path, str]):
    step = run_folder(undisturbed[0]) / "stages" / "step-2"
    pruned, repaired, student = (
        load_agent(step / f"{name}.safetensors").network for name in ("pruned", "repaired", "student")
    )
    assert pruned.widths == repaired.widths == student.widths
    assert repaired.conv1.weight.equal(pruned.conv1.weight)  # it lost no input
    assert not repaired.conv2.weight.equal(pruned.conv2.weight)
    assert not student.conv1.weight.equal(repaired.conv1.weight)
    curve = json.loads((step / "distillation.json").read_text())["curve"]
    assert curve[-1]["samples"] >= 2000
    assert min(check["held_out_loss"] for check in curve) < curve[0]["held_out_loss"]


def test_mlflow_has_the_contract(undisturbed: tuple[Path, str]):
    folder, _ = undisturbed
    (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "breakout-lrp-r0.50-s0"
    assert run.data.tags["game"] == "breakout"
    assert run.data.tags["criterion"] == "lrp"
    assert len(run.data.tags["config_hash"]) == 8
    assert run.data.params["prune.ratio"] == "0.5"
    assert run.data.params["distill.loss"] == "kl"
    figures = ["return_mean", "return_ci_low", "return_ci_high", "return_human_normalised", "params", "macs"]
    figures += ["size_bytes", "latency_p50_ms", "latency_p99_ms"]
    for agent in ("teacher", "pruned", "repaired", "student"):
        for figure in figures:
            assert f"{agent}/{figure}" in run.data.metrics
    metrics = run.data.metrics
    for figure in (*figures[:4], *figures[6:], "return_kept", "agreement", "speedup", "load_ms", "memory_bytes"):
        assert f"int8/{figure}" in metrics
    assert metrics["int8/distilled"] in (0, 1)
    assert 0 <= metrics["int8/default_session_differs"] <= 1
    assert metrics["int8/compression"] == metrics["teacher/size_bytes"] / metrics["int8/size_bytes"]
    assert metrics["export/onnx/float32/max_difference"] < 1e-3
    assert {"student/torch_speedup", "teacher/latency_cpu_p50_ms", "int8/distill_loss"} <= set(metrics)
    assert metrics["student/params_kept"] == pytest.approx(metrics["student/params"] / metrics["teacher/params"])
    assert {"student/return_kept", "student/speedup", "distill/loss", "prune/ratio_reached"} <= set(metrics)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "prune/ratio_reached")] == [1, 2]
    top = {Path(artifact.path).name for artifact in client.list_artifacts(run.info.run_id)}
    assert {"student.safetensors", "figures", "stages", "evaluation", "export", "images", ".hydra"} <= top
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.name, model.source_run_id, model.status.value) == ("student", run.info.run_id, "READY")
    images = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    for key in ("relevance~maps", "relevance~channels", "returns~episodes", "distill~curve"):
        assert any(key in path for path in images)


def test_mlflow_shows_the_result_on_the_runs_page(undisturbed: tuple[Path, str]):
    folder, printed = undisturbed
    (run,) = runs(folder)
    page = (run_folder(folder) / "result.md").read_text()
    assert page.startswith("The student of **breakout-lrp-r0.50-s0** keeps ")
    assert page.count("| return kept |") == 2
    shown = f"get-artifact?path=figures%2Frelevance-maps-small.png&run_uuid={run.info.run_id}"
    assert run.data.tags["mlflow.note.content"] == page.replace("figures/relevance-maps.png", shown)
    with Image.open(run_folder(folder) / "figures" / "relevance-maps-small.png") as maps:
        assert maps.width == 800
    sections = sorted({name.rpartition("/")[0] for name in run.data.metrics})
    assert sections[0] == "at_a_glance"  # MLflow shows them in this order
    for figure in ("return_kept", "return_mean", "size_bytes", "speedup"):
        assert run.data.metrics[f"at_a_glance/{figure}"] == run.data.metrics[f"student/{figure}"]
        assert run.data.metrics[f"at_a_glance/{figure}_int8"] == run.data.metrics[f"int8/{figure}"]
    assert run.data.tags["mlflow.source.name"] == "lrp_compress"
    assert run.data.tags["mlflow.source.git.commit"] == run.data.tags["git_sha"]
    assert f"/runs/{run.info.run_id}?workflowType=machine_learning" in printed
    assert f"lrp-compress play game=breakout agent='{run_folder(folder) / 'student.safetensors'}'" in printed


def test_a_report_can_be_made_of_what_mlflow_keeps(undisturbed: tuple[Path, str], tmp_path: Path):
    own = run_folder(undisturbed[0])
    tracking = TrackingConfig(f"sqlite:///{undisturbed[0] / 'mlflow.db'}", "lrp_compress", 5)
    copied = download_folder(str(own.resolve()), tmp_path, tracking)
    assert copied.name == own.name
    (here,), (there,) = find_runs(own), find_runs(copied)
    assert (here.widths, here.settings) == (there.widths, there.settings)
    assert here.metrics.items() <= there.metrics.items()
    assert all(np.array_equal(here.returns[agent], there.returns[agent]) for agent in ("teacher", "student", "int8"))


def test_files_decide_as_the_student(undisturbed: tuple[Path, str]):
    run_dir = run_folder(undisturbed[0])
    observations = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    policy = OnnxPolicy(run_dir / "export" / "onnx" / "student.onnx")
    student = load_agent(run_dir / "student.safetensors").network
    torch.testing.assert_close(policy.outputs(observations.numpy()), student(observations), rtol=1e-4, atol=1e-4)
    int8 = run_dir / "export" / "onnx" / "student-int8.onnx"
    metrics = json.loads((run_dir / "result.json").read_text())
    assert int8.stat().st_size == metrics["int8/size_bytes"] < 0.3 * metrics["student/size_bytes"]

    def evaluated(name: str) -> Evaluation:
        return load_evaluation(run_dir / "stages" / f"evaluation-{name}.json")

    chosen = max("int8", "int8-distilled", key=lambda name: evaluated(f"{name}-choosing").mean)
    assert metrics["int8/distilled"] == (chosen == "int8-distilled")
    assert metrics["int8/return_mean"] == evaluated(chosen).mean
    assert evaluated(chosen).seed == evaluated("student").seed != evaluated(f"{chosen}-choosing").seed


def test_video_shows_both_agents(undisturbed: tuple[Path, str]):
    with Image.open(run_folder(undisturbed[0]) / "figures" / "teacher-and-student.gif") as video:
        assert video.n_frames > 20
        assert video.size == ((84 + 4 + 84) * 3, 84 * 3)


def test_evaluation_metrics_are_those_of_its_episodes(undisturbed: tuple[Path, str]):
    run_dir = run_folder(undisturbed[0])
    evaluation = load_evaluation(run_dir / "stages" / "evaluation-student.json")
    metrics = json.loads((run_dir / "result.json").read_text())
    assert metrics["student/return_mean"] == evaluation.returns.mean()
    assert len(evaluation.episodes) == metrics["student/episodes"] == 2


def test_again_is_skipped(undisturbed: tuple[Path, str], main_job: MainJob):
    folder, printed = undisturbed
    start = time.monotonic()
    again = main_job(folder)
    assert time.monotonic() - start < 30
    assert "has finished before" in again
    table = printed[printed.index("return mean") :]
    assert table in again
    assert len(runs(folder)) == 1


def test_force_runs_again(main_job: MainJob, tmp_path: Path):
    results = []
    for extra in ([], ["force=true"]):
        assert "has finished before" not in main_job(tmp_path, *UNDISTILLED, *extra)
        results.append(comparable(json.loads((run_folder(tmp_path) / "result.json").read_text())))
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"] * 2
    assert results[0] == results[1]


def kill_when(forks: Forks, folder: Path, sign: str, delay: float) -> None:
    """Start the job and kill it with SIGKILL `delay` seconds after a file that matches `sign` has appeared."""
    with forks.start("lrp_compress", SMALL, folder) as process:
        process.until(lambda: list((folder / "outputs").glob(sign)))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL


def test_killed_in_every_stage_it_ends_with_the_same_result(
    undisturbed: tuple[Path, str],
    main_job: MainJob,
    forks: Forks,
    new_store: Callable[[Path], Path],
    tmp_path: Path,
):
    new_store(tmp_path / "mlflow.db")
    for sign, delay in (
        ("breakout-*/identity.json", 0.1),  # rollouts
        ("breakout-*/stages/step-1/pruned.safetensors", 0.0),  # repair
        ("breakout-*/stages/step-1/repaired.safetensors", 0.5),  # distillation
        ("breakout-*/stages/step-2/student.safetensors", 0.3),  # evaluation
    ):
        kill_when(forks, tmp_path, sign, delay)
        assert not (run_folder(tmp_path) / "result.json").exists()
    printed = main_job(tmp_path)
    assert "prune, step 1: there already, " in printed
    assert "evaluate student: begins" in printed
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    results = [json.loads((run_folder(folder) / "result.json").read_text()) for folder in (undisturbed[0], tmp_path)]
    assert comparable(results[1]) == comparable(results[0])
    networks = [load_agent(run_folder(folder) / "student.safetensors").network for folder in (undisturbed[0], tmp_path)]
    for name, tensor in networks[0].state_dict().items():
        assert tensor.equal(networks[1].state_dict()[name]), name
    leftovers = [path for path in tmp_path.rglob("*.part*") if path.stat().st_size]
    assert len(leftovers) <= 4  # one file that a kill cut off each, under its temporary name


def test_nothing_pruned_is_nothing_to_distil(main_job: MainJob, tmp_path: Path):
    main_job(tmp_path, *UNDISTILLED, "distill.samples=2000", "prune.ratio=0")
    student = load_agent(run_folder(tmp_path) / "student.safetensors").network.state_dict()
    teacher = load_agent(teachers_dir() / "breakout.safetensors").network.state_dict()
    assert all(student[name].equal(teacher[name]) for name in teacher)
    (run,) = runs(tmp_path)
    played = {key.split("/")[0] for key in run.data.metrics if key.endswith("/return_human_normalised")}
    assert played == {"teacher", "student"}


def test_finetuned_after_the_last_distillation(main_job: MainJob, tmp_path: Path):
    finetune = "finetune={steps: 740, envs: 4, n_steps: 10, batch_size: 50}"
    main_job(tmp_path, *UNDISTILLED, "distill.samples=600", "finetune=ppd", finetune)
    stages = run_folder(tmp_path) / "stages"
    distilled, student = (
        load_agent(path).network.state_dict()
        for path in (stages / "step-1" / "student.safetensors", run_folder(tmp_path) / "student.safetensors")
    )
    assert not student["conv1.weight"].equal(distilled["conv1.weight"])
    (run,) = runs(tmp_path)
    history = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_metric_history(
        run.info.run_id, "finetune/divergence"
    )
    assert [point.step for point in history] == [680, 720, 760]  # before that only the critic learned
    charts = {key.removeprefix("finetune/") for key in run.data.metrics if key.startswith("finetune/")}
    assert charts >= {"divergence", "entropy", "clip_fraction", "explained_variance"}
    assert "steps" not in charts  # that is the axis
    assert run.data.params["finetune.divergence"] == "0.2"
    assert not list(stages.glob("*.pt"))


def test_sweep_shares_the_teacher_and_is_skipped_when_repeated(main_job: MainJob, tmp_path: Path):
    sweep = ["-m", "criterion=weight_l1,random", *UNDISTILLED]
    main_job(tmp_path, *sweep)
    (sweep_name,) = {run.data.tags["sweep"] for run in runs(tmp_path)}
    assert sorted(run.info.run_name for run in runs(tmp_path)) == [
        "breakout-random-r0.50-s0",
        "breakout-weight_l1-r0.50-s0",
    ]
    (report,) = runs(tmp_path, "lrp_compress-reports")
    assert report.info.run_name == sweep_name
    page = (tmp_path / "multirun" / sweep_name / "report.html").read_text()
    assert page.count("<svg") == 4
    cached = sorted(path.name.split("-")[0] for path in (tmp_path / "outputs" / "cache").iterdir())
    assert cached == ["SHA256SUMS", "evaluation", "rollouts"]
    again = main_job(tmp_path, *sweep)
    assert again.count("has finished before") == 2
    assert (len(runs(tmp_path)), len(runs(tmp_path, "lrp_compress-reports"))) == (2, 1)


def test_a_job_that_fails_in_another_process_does_not_cost_the_report(
    forks: Forks, new_store: Callable[[Path], Path], tmp_path: Path
):
    new_store(tmp_path / "mlflow.db")
    launcher = ["hydra/launcher=machine", "hydra.launcher.n_jobs=2", "teacher.source=auto,nowhere.safetensors"]
    done = forks.run("lrp_compress", ["-m", *SMALL, *UNDISTILLED, "criterion=weight_l1", *launcher], tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: agent file nowhere.safetensors does not exist"
    (report,) = (tmp_path / "multirun").glob("*/report.html")
    assert "breakout-weight_l1" in report.read_text()


def test_a_failed_export_costs_no_result_and_is_repeated_alone(
    forks: Forks, new_store: Callable[[Path], Path], tmp_path: Path
):
    own = tmp_path / "own"
    blocked = own / "export" / "onnx"
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    job = [*SMALL, *UNDISTILLED, "export=[onnx]", "criterion=weight_l1", f"hydra.run.dir={own}"]
    new_store(tmp_path / "mlflow.db")
    done = forks.run("lrp_compress", job, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: export/onnx failed, all else is done")
    assert f"export=onnx failed: [Errno 17] File exists: '{blocked}'" in done.stdout
    assert "return kept" in done.stdout
    first = json.loads((own / "result.json").read_text())
    assert first["export/onnx/failed"] == 1
    assert first["student/return_mean"] == load_evaluation(own / "stages" / "evaluation-student.json").mean
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.metrics["export/onnx/failed"]) == ("FINISHED", 1)
    others = [path for folder in ("stages", "figures") for path in (own / folder).rglob("*") if path.is_file()]
    made = {path: path.stat().st_mtime_ns for path in others if "channels-step" not in path.name and path.name != SUMS}

    blocked.unlink()
    done = forks.run("lrp_compress", job, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has finished before" not in done.stdout
    assert (blocked / "student.onnx").is_file()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    second = json.loads((own / "result.json").read_text())
    assert second["export/onnx/failed"] == 0
    assert first.items() - second.items() == {("export/onnx/failed", 1.0)}
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.metrics["export/onnx/failed"]) == ("FINISHED", 0)
    assert "has finished before" in forks.run("lrp_compress", job, tmp_path).stdout


def test_a_criterion_of_ones_own_as_the_documentation_has_it(main_job: MainJob, forks: Forks, tmp_path: Path):
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    command = shlex.split(page.partition("python -m lrp_compress game=breakout ")[2].partition("\n")[0])
    main_job(tmp_path, *UNDISTILLED, *command)
    scores = json.loads((run_folder(tmp_path) / "stages" / "step-1" / "scores.json").read_text())
    teacher = load_agent(teachers_dir() / "breakout.safetensors").network
    expected = teacher.fc1.weight.std(1) / teacher.fc1.weight.std(1).sum()
    torch.testing.assert_close(torch.tensor(scores["scores"]["fc1"]), expected)
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    changed = forks.run("lrp_compress", [*SMALL, *UNDISTILLED, *command], tmp_path)
    assert changed.returncode == 2
    assert "holds another run, made with other settings or another agent" in changed.stderr


@pytest.mark.parametrize(
    ("code", "told"),
    [(None, "is neither in"), ("import nowhere", "No module named 'nowhere'"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_plugin_that_cannot_be_imported(forks: Forks, tmp_path: Path, code: str | None, told: str):
    if code:
        (tmp_path / "mine.py").write_text(code)
    done = forks.run("lrp_compress", ["game=breakout", "plugins=[mine]"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: plugins: module mine ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def save_untrained(path: Path, seed: int) -> None:
    """Write an agent of CleanRL that has learned nothing."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(4, 8, 8, 4), torch.nn.Conv2d(8, 8, 4, 2), torch.nn.Conv2d(8, 8, 3)]
    layers += [torch.nn.Linear(8 * 49, 16), torch.nn.Linear(16, 4)]
    parts = zip((0, 2, 4, 7, 9), layers, strict=True)
    torch.save({f"network.{i}.{k}": v for i, layer in parts for k, v in layer.state_dict().items()}, path)


def test_untrained_agents_of_another_library_under_the_same_name(main_job: MainJob, forks: Forks, tmp_path: Path):
    job = ["teacher.source=dqn_atari.cleanrl_model", *UNDISTILLED]
    save_untrained(tmp_path / "dqn_atari.cleanrl_model", 0)
    printed = main_job(tmp_path, *job)
    assert "the teacher plays breakout no better than random actions" in printed
    assert "try teacher.fire_on_life_loss=false" in printed
    student = load_agent(run_folder(tmp_path) / "student.safetensors")
    assert student.network.widths == {"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}
    assert (student.network.head_kind, student.info.fire_on_life_loss) == ("q", True)
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["teacher/probe_random_reward"] >= 0
    scores = run_folder(tmp_path) / "stages" / "step-1" / "scores.json"
    first = scores.read_text()
    save_untrained(tmp_path / "dqn_atari.cleanrl_model", 1)
    refused = forks.run("lrp_compress", [*SMALL, *job], tmp_path)
    assert refused.returncode == 2
    assert "holds another run, made with other settings or another agent" in refused.stderr
    assert scores.read_text() == first
