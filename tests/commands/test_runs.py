"""Folders, sweeps, exit codes and signals, with a pipeline that ends as the seed says."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lrp_compress.commands.cli import sweep_folder
from tests.commands.forks import Forks
from tests.commands.running import Command

FAKE = "tests.commands.fake_pipeline"


@pytest.fixture
def fake(lrp_compress: Command) -> Command:
    return functools.partial(lrp_compress, module=FAKE)


def folders(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """Run folder and sweep of each job that the pipeline was given."""
    return re.findall(r"^run \S+ \S+ (\S+) (\S+)$", done.stdout, flags=re.MULTILINE)


def test_same_configuration_same_folder(fake: Command, tmp_path: Path):
    typed = [
        ["game=breakout"],
        ["+game=breakout", "prune.ratio=0.50", "tracking=none", "force=true"],
        ["game=breakout", "seed=5"],
    ]
    done = [fake(*arguments) for arguments in typed]
    first, same, other = (folders(one)[0] for one in done)
    assert re.fullmatch(r"outputs/breakout-lrp-r0\.50-s0-[0-9a-f]{8}", first[0])
    assert first[1] == "None"
    assert same == first
    assert other != first
    assert [one.returncode for one in done] == [0, 0, 0]
    assert not (tmp_path / first[0] / ".hydra").exists()  # a run writes it, once it knows that the folder is its own


def test_sweep_finds_its_folder_again(fake: Command):
    sweep = "breakout-criterion=lrp,random-prune.ratio=0.3,0.5"
    found = folders(fake("-m", "game=breakout", "criterion=lrp,random", "prune.ratio=0.3,0.5", "tracking=none"))
    assert [name for _, name in found] == [sweep] * 4
    assert [Path(folder).parent for folder, _ in found] == [Path("multirun", sweep)] * 4
    names = [Path(folder).name[:-9] for folder, _ in found]
    assert names == [f"breakout-{one}-r{ratio}-s0" for one in ("lrp", "random") for ratio in ("0.30", "0.50")]
    again = fake("prune.ratio=0.3,0.5", "+game=breakout", "-m", "force=true", "criterion=lrp,random")
    assert sorted(folders(again)) == sorted(found)


def test_one_wrong_job_refuses_a_sweep_before_the_first(fake: Command, tmp_path: Path):
    done = fake("-m", "game=breakout", "criterion=lrp,random", "prune.ratio=0.3,0.5,1.7")
    assert done.stderr.startswith("error: job 2 (game=breakout criterion=lrp prune.ratio=1.7): prune.ratio=1.7 ")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, folders(done), list(tmp_path.iterdir())) == (2, [], [])


def test_sweep_tells_mistakes_from_failures(fake: Command):
    done = fake("-m", "game=breakout", "seed=1,2,0")
    assert len(folders(done)) == 3
    assert "RuntimeError: out of luck\nerror: job 0 (" in done.stderr
    assert "error: job 1 (game=breakout seed=2): a mistake found late\n" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "stderr"),
    [
        (["seed=1"], 1, r"Traceback.*\nRuntimeError: out of luck\n"),
        (["seed=2"], 2, r"error: a mistake found late\n"),
        (["seed=3"], 130, r"interrupted; the same command goes on from what has finished\n"),
    ],
)
def test_how_a_run_ends(fake: Command, arguments: list[str], code: int, stderr: str):
    done = fake("game=breakout", *arguments)
    assert re.fullmatch(stderr, done.stderr, flags=re.DOTALL)
    assert done.returncode == code


def test_the_log_is_printed_and_kept(fake: Command, tmp_path: Path):
    done = fake("game=breakout")
    ((folder, _),) = folders(done)
    kept = (tmp_path / folder / "lrp_compress.log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d at work\n", kept)
    assert kept in done.stdout


def test_the_log_of_a_sweep_names_its_jobs(fake: Command, tmp_path: Path):
    done = fake("-m", "game=breakout", "prune.ratio=0.3,0.5")
    names = ["#0 breakout-lrp-r0.30-s0: at work", "#1 breakout-lrp-r0.50-s0: at work"]
    assert re.findall(r"#.*: at work$", done.stdout, flags=re.MULTILINE) == names
    for (folder, _), name in zip(folders(done), names, strict=True):
        assert name in (tmp_path / folder / "lrp_compress.log").read_text()


def test_preflight_comes_before_any_folder(fake: Command, tmp_path: Path):
    done = fake("game=breakout", "teacher.source=nowhere.safetensors")
    assert done.stderr == "error: no such file: nowhere.safetensors\n"
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_interrupt_ends_the_whole_sweep(fake: Command):
    done = fake("-m", "game=breakout", "seed=3,0")
    assert len(folders(done)) == 1
    assert done.returncode == 130


def test_sigterm_closes_what_is_open(forks: Forks, tmp_path: Path):
    with forks.start(FAKE, ["game=breakout", "seed=4"], tmp_path) as process:
        process.until(lambda: process.told()[0].endswith("open\n"))
        assert re.fullmatch(r"run .*\n.* at work\nopen\n", process.told()[0])  # at once, although it is a file
        process.send_signal(signal.SIGTERM)
        done = process.wait()
    assert done.stdout.endswith("open\nclosed\n")
    assert done.stderr == "terminated; the same command goes on from what has finished\n"
    assert done.returncode == 143


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["+game=breakout", "prune.ratio=0.3,0.5"], "breakout-prune.ratio=0.3,0.5"),
        (["prune.ratio=0.3,0.5", "criterion=lrp,random", "game=pong,breakout"],
         "pong,breakout-criterion=lrp,random-prune.ratio=0.3,0.5"),
        (["+game=pong", "tracking.uri=http://127.0.0.1:5000", "tracking=none", "force=true", "cache_dir=/x"], "pong"),
        ([], "sweep"),
    ],
)  # fmt: skip
def test_sweep_folder(overrides: list[str], name: str):
    assert sweep_folder(overrides) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["teacher.source=a/b"], ["teacher.source=a_b"]),
        (["prune.layer_ratios={fc:.2},{fc:.3}"], ["prune.layer_ratios={fc:.2},{fc:.4}"]),
        (["seed=" + ",".join(map(str, range(100)))], ["seed=" + ",".join(map(str, range(101)))]),
        (["cache=.."], ["cache=..."]),
    ],
)
def test_sweep_folder_is_one_short_safe_name(one: list[str], other: list[str]):
    names = [sweep_folder(one), sweep_folder(other)]
    assert names[0] != names[1]
    for name in names:
        assert re.fullmatch(r"\w[\w.,=-]{0,95}", name, flags=re.ASCII)
