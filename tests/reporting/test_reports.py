"""Reports of runs whose figures are known, from folders, studies and MLflow."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

import lrp_compress
from lrp_compress.config.checks import conf_dir, register_schemas
from lrp_compress.config.schema import SearchConfig, SpaceConfig, TrackingConfig
from lrp_compress.environments.returns import Episode, Evaluation, save_evaluation
from lrp_compress.reporting.charts import _on_front, criteria_chart, front_chart
from lrp_compress.reporting.collections import Elsewhere, _front, from_filter, from_folder, from_folders, from_study
from lrp_compress.reporting.page import PAGE, TABLE, render, table, write_report
from lrp_compress.reporting.records import differing, find_runs, group_seeds, seed_interval
from lrp_compress.search.studies import open_study
from lrp_compress.search.trials import run_trials
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import write_json
from lrp_compress.tracking.journal import JOURNAL, Journal
from lrp_compress.tracking.runs import open_run
from tests.search.test_studies import launcher

pytestmark = pytest.mark.slow

RANDOM = 1.7  # Breakout's
NOWHERE = Elsewhere(TrackingConfig(uri=None, experiment="test", timeout_s=5), Path("unused"))


@functools.cache
def settings_file(criterion: str, ratio: float, seed: int) -> str:
    """Give the settings of a run as Hydra keeps them."""
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = ["+game=breakout", f"criterion={criterion}", f"prune.ratio={ratio}", f"seed={seed}"]
        return OmegaConf.to_yaml(compose("config", overrides=overrides))


def made_run(
    sweep: Path,
    criterion: str,
    ratio: float,
    seed: int,
    student: float,
    teacher: float = 101.7,
    int8: float | None = None,
    distilled: bool = False,
) -> Path:
    """Write the files of a finished run that a report reads."""
    folder = sweep / f"breakout-{criterion}-r{ratio:.2f}-s{seed}"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(settings_file(criterion, ratio, seed))
    files = {"teacher": teacher, "student": student}
    if int8 is not None:
        files |= {"int8": 0.0, "int8-distilled": int8} if distilled else {"int8": int8}
    for name, mean in files.items():
        returns = [mean - 10, mean + 10] * 10
        episodes = [Episode(0, index, score, 100, "over") for index, score in enumerate(returns)]
        evaluation = Evaluation(episodes, "noop", "sample", seed, mean, mean - 5, mean + 5, mean, 1.0)
        save_evaluation(folder / "stages" / f"evaluation-{name}.json", evaluation)
    widths = {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}
    write_json(folder / "stages" / "step-1" / "scores.json", {"scores": {n: [1.0] * w for n, w in widths.items()}})
    keep = {name: list(range(round(width * (1 - ratio)))) for name, width in widths.items()}
    write_json(folder / "stages" / "step-1" / "plan.json", {"keep": keep})
    metrics = {
        "student/return_mean": student,
        "teacher/return_mean": teacher,
        "student/return_kept": (student - RANDOM) / (teacher - RANDOM),
        "student/params": 1e6 * (1 - ratio),
        "student/params_kept": 1 - ratio,
        "student/size_bytes": 4e6 * (1 - ratio),
        "teacher/size_bytes": 4e6,
        "student/speedup": 1 / (1 - ratio),
        "student/speedup_spread": 0.1,
    }
    if int8 is not None:
        metrics |= {
            "int8/return_mean": int8,
            "int8/return_kept": (int8 - RANDOM) / (teacher - RANDOM),
            "int8/size_bytes": 1e6 * (1 - ratio),
            "int8/compression": 4 / (1 - ratio),
            "int8/speedup": 2 / (1 - ratio),
            "int8/distilled": float(distilled),
        }
    write_json(folder / "result.json", metrics)
    (folder / "figures").mkdir()
    Image.new("RGB", (20, 30), "red").save(folder / "figures" / "relevance-maps.png")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "multirun" / "sweep"
    for seed, student in ((0, 81.7), (1, 101.7)):
        made_run(folder, "lrp", 0.5, seed, student)
        made_run(folder, "random", 0.5, seed, student - 20)
    made_run(folder, "lrp", 0.8, 0, 51.7)
    return folder


class Reader(HTMLParser):
    """Notes what a page refers to and its tables' cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.tags: list[str] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "td":
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def test_seeds_are_one_row(sweep: Path):
    groups = group_seeds(find_runs(sweep))
    assert [(group.records[0].criterion, len(group.records)) for group in groups] == [
        ("lrp", 2),
        ("lrp", 1),
        ("random", 2),
    ]
    assert [group.kept.mean for group in groups] == pytest.approx([0.9, 0.5, 0.7])
    two = groups[0].kept
    half = stats.sem([0.8, 1.0]) * stats.t.ppf(0.975, 1)  # the seeds are the sample, with one degree of freedom
    assert (two.low, two.high, two.over) == (pytest.approx(0.9 - half), pytest.approx(0.9 + half), "2 seeds")
    one = group_seeds(groups[0].records[:1])[0].kept
    assert one.low < 0.8 < one.high
    assert one.high - one.low < 0.3  # of the mean of 20 games
    assert one.over == "games"
    assert differing(find_runs(sweep)) == ["criterion.name", "prune.ratio"]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_interval_over_seeds_covers_what_it_says(seeds: int, spread: float):
    """Each seed has its own true value and the noise of its games; the mean of all seeds is 1."""
    rng = np.random.default_rng(0)
    true = 1 + 0.1 * spread * rng.standard_normal((2000, seeds))
    seen = true + 0.1 * rng.standard_normal(true.shape)
    low, high = np.transpose([seed_interval(values) for values in seen.tolist()])
    assert 0.935 < np.mean((low <= 1) & (high >= 1)) < 0.965  # 95 % and three standard errors


def test_charts_show_the_means_where_intervals_are_wide(sweep: Path):
    groups = group_seeds(find_runs(sweep))
    assert groups[0].kept.high > 2
    for figure in (front_chart(groups, "student/speedup", "speedup", True, None), criteria_chart(groups, joined=True)):
        low, high = figure.axes[0].get_ylim()
        assert low <= 0
        assert 0.9 < high < 1.6


def test_int8_files_have_a_ladder(tmp_path: Path):
    for ratio, student, int8 in ((0.5, 101.7, 91.7), (0.75, 91.7, 71.7)):
        for seed in (0, 1):
            made_run(tmp_path, "lrp", ratio, seed, student, int8=int8, distilled=ratio > 0.6)
    half, quarter = group_seeds(find_runs(tmp_path))
    assert half.int8_kept is not None
    assert quarter.int8_kept is not None
    assert (half.int8_kept.mean, quarter.int8_kept.mean) == pytest.approx((0.9, 0.7))
    one = group_seeds(quarter.records[:1])[0].int8_kept
    assert one is not None
    assert one.low < 0.7 < one.high  # of the file that was kept, the distilled one
    page = render(from_folder(tmp_path, NOWHERE), tmp_path)
    assert page.count("<svg") == 4  # two fronts, the ladder, the layers
    cells = Reader(page).cells
    at = [cells.index(widths) for widths in ("16 32 32 256", "8 16 16 128")]
    assert at == sorted(at)  # the largest first
    assert cells[at[1] + 1 : at[1] + 5] == ["250,000", "16.0", "71.7", "70.0%"]
    made_run(tmp_path, "random", 0.5, 0, 101.7, int8=51.7)  # of a size that is there already
    assert render(from_folder(tmp_path, NOWHERE), tmp_path).count("<svg") == 5  # the criteria too


def test_the_page_needs_no_network_and_says_it_all(sweep: Path):
    page = write_report(from_folder(sweep, NOWHERE), sweep)
    assert page == sweep / PAGE
    read = Reader(page.read_text())
    assert "Student&#39;s t interval of the seeds&#39; values" in page.read_text()
    assert [cell.partition("(")[2] for cell in read.cells if " to " in cell] == ["2 seeds)", "games)", "2 seeds)"]
    assert read.addresses
    assert all(address.startswith(("#", "breakout-", "data:image/jpeg;base64,")) for address in read.addresses)
    assert not re.search(r"@import|url\((?!#)", page.read_text())
    assert read.tags.count("svg") == 4  # two fronts, the criteria, the layers
    assert [cell for cell in read.cells if cell in ("0, 1", "90.0%", "50.0%", "70.0%")]
    text = page.read_text()
    assert "<h1>Breakout: 5 finished runs, 3 settings</h1>" in text
    assert f'lrp_compress {lrp_compress.__version__}, <span class="whole">20' in text
    assert text.count("<figure") == 7
    assert text.count('role="img" aria-label="') == 4  # for screen readers; charts with links have other names
    assert text.count('role="group" aria-label="') == 3
    assert text.count('tabindex="0"') == text.count("<table") == 1  # scrolled by keys
    assert "prefers-color-scheme: dark" in text
    rows = list(csv.DictReader(io.StringIO((sweep / TABLE).read_text())))
    assert len(rows) == 5
    assert {row["criterion.name"] for row in rows} == {"lrp", "random"}
    kept = {(row["criterion.name"], row["prune.ratio"], row["seed"]): float(row["student/return_kept"]) for row in rows}
    assert kept["lrp", "0.8", "0"] == pytest.approx(0.5)


def test_markup_in_a_name_is_text(sweep: Path):
    collection = dataclasses.replace(from_folder(sweep, NOWHERE), title="<script>alert(1)</script>")
    assert "<script>alert" not in render(collection, sweep)


def test_the_reader_s_environment_stays_out_of_a_report(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "tell nobody")
    for path in sweep.glob("*/.hydra/config.yaml"):
        path.write_text(path.read_text() + "\nnote: ${oc.env:SECRET}\n")
    page = render(from_folder(sweep, NOWHERE), sweep)
    assert "tell nobody" not in page + table(from_folder(sweep, NOWHERE).records)


def test_a_date_among_the_settings_is_a_setting(sweep: Path):
    for path in sweep.glob("*/.hydra/config.yaml"):
        path.write_text(path.read_text() + "\nnote: 2020-01-01\n")
    assert render(from_folder(sweep, NOWHERE), sweep)


def test_aliases_are_refused_before_they_are_followed(sweep: Path):
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (sweep / "breakout-lrp-r0.50-s0" / ".hydra" / "config.yaml").write_text(bomb)
    with pytest.raises(UserError, match="YAML aliases"):
        from_folder(sweep, NOWHERE)


def test_a_spreadsheet_finds_no_formula(sweep: Path):
    for path in sweep.glob("*/.hydra/config.yaml"):
        path.write_text(path.read_text() + f"\nnote: '=HYPERLINK(\"{path.parent.parent.name}\")'\n")
    rows = list(csv.DictReader(io.StringIO(table(from_folder(sweep, NOWHERE).records))))
    assert all(row["note"].startswith("'=HYPERLINK") for row in rows)


def test_the_front_is_what_nothing_beats():
    points = [(2.0, 0.95), (3.0, 0.9), (2.5, 0.8), (4.0, 0.3)]
    assert [_on_front(point, points, True, None) for point in points] == [True, True, False, True]
    assert [_on_front(point, points, True, 0.5) for point in points] == [True, True, False, False]
    assert [_on_front(point, points, False, None) for point in points] == [True, False, False, False]


def test_a_study_is_found_by_its_name_and_its_folder(sweep: Path, tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    space = SpaceConfig(name="pruning_schedule", max_steps=2, max_ratio=0.9, min_samples=10, max_samples=20)
    config = SearchConfig("mine", storage, space, ["return_kept", "speedup"], 0.6, "random", 0, 5, 1, 2, 10)
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())

    def end(number: int) -> dict[str, float]:
        return dict(json.loads((runs[number] / "result.json").read_text()))

    def launch(overrides: Any, first: int) -> Any:
        jobs = launcher(end, [])(overrides, first)
        jobs[0].hydra_cfg = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(runs[first])}}})
        return jobs

    study = open_study(config, {"floor": 0.6})
    run_trials(study, config, [], lambda trial: [str(trial.suggest_float("prune.ratio", 0, 0.9))], launch)
    best = study.best_trials[0]
    entry = {
        "trial": best.number,
        "run_dir": best.user_attrs["run_dir"],
        "found": {"return_kept": 0.9, "speedup": 2.0},
        "confirmed": {"return_kept": 0.85, "speedup": 2.1},
        "on_front": True,
        "metrics": end(best.number) | {"student/return_kept_ci_low": 0.8, "student/return_kept_ci_high": 0.9},
    }
    write_json(sweep / "front.json", [entry])
    write_json(sweep / "study.json", {"study": "mine", "storage": storage})
    for collection in (from_study("mine", storage, NOWHERE), from_folder(sweep, NOWHERE)):
        read = Reader(render(collection, sweep))
        assert read.tags.count("svg") >= 5  # the hypervolume too
        assert "80.0% to 90.0%" in read.cells
        assert len(collection.records) == 5
    with pytest.raises(UserError, match=r"study=mne is unknown \(did you mean mine\?\)"):
        from_study("mne", storage, NOWHERE)
    with pytest.raises(UserError, match="there is no database"):
        from_study("mine", f"sqlite:///{tmp_path}/other.db", NOWHERE)
    write_json(sweep / "study.json", {"study": "mine"})
    with pytest.raises(UserError, match=r"study.json is damaged \('storage'\)"):
        from_folder(sweep, NOWHERE)


def test_runs_are_found_by_a_filter_of_mlflow(sweep: Path, new_store: Callable[[Path], Path], tmp_path: Path):
    tracking = TrackingConfig(uri=f"sqlite:///{new_store(tmp_path / 'mlflow.db')}", experiment="test", timeout_s=5)
    elsewhere = Elsewhere(tracking, tmp_path / "downloads")
    runs = sorted(sweep.iterdir())
    for number, folder in enumerate(runs):
        tags = {"config_hash": str(number), "run_dir": str(folder), "criterion": folder.name.split("-")[1]}
        own = {"name": folder.name, "tags": tags, "journal": Journal(folder / JOURNAL)}
        with open_run(tracking, params={}, **own) as tracker:
            tracker.metrics(json.loads((folder / "result.json").read_text()))
            for part in (".hydra", "stages", "figures"):
                tracker.artifact(folder / part)
    here = from_filter("tags.criterion = 'random'", elsewhere)
    assert len(here.records) == 2
    cells = Reader(render(here, tmp_path)).cells
    sweep.rename(tmp_path / "moved")  # as if they had run on another machine
    there = from_filter("tags.criterion = 'random'", elsewhere)
    assert {record.folder.name for record in there.records} == {record.folder.name for record in here.records}
    assert Reader(render(there, tmp_path)).cells == cells
    assert "Relevance maps" in render(there, tmp_path)
    assert from_filter("tags.criterion = 'random'", elsewhere).records[0].metrics == there.records[0].metrics
    with pytest.raises(UserError, match=r"tags.criterion = 'apoz': 0 finished runs"):
        from_filter("tags.criterion = 'apoz'", elsewhere)
    with pytest.raises(UserError, match="Invalid"):
        from_filter("tags.criterion = ", elsewhere)


def test_runs_of_several_folders_are_counted_once(sweep: Path):
    runs = [folder for folder in sweep.iterdir() if "random" in folder.name]
    assert len(from_folders([*runs, sweep], NOWHERE).records) == 5
    with pytest.raises(UserError, match="empty holds no finished run"):
        from_folders([sweep, sweep / "empty"], NOWHERE)


def test_nothing_to_report_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="holds no finished run"):
        from_folder(tmp_path, NOWHERE)


@pytest.mark.parametrize("file", ["result.json", "stages/evaluation-student.json", ".hydra/config.yaml"])
def test_a_damaged_file_is_named_in_one_line(sweep: Path, file: str):
    (sweep / "breakout-lrp-r0.50-s0" / file).write_text("{")
    with pytest.raises(UserError, match=r"breakout-lrp-r0.50-s0 is damaged \(.*force=true") as caught:
        from_folder(sweep, NOWHERE)
    assert "\n" not in str(caught.value)


def changed(value: Any, path: str, new: Any) -> Any:
    """Replace a part of JSON, or take it away where `new` is not given."""
    *way, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
    part = value
    for step in way:
        part = part[step]
    if new is ...:
        del part[last]
    else:
        part[last] = new
    return value


@pytest.mark.parametrize(
    ("file", "path", "new"),
    [
        ("result.json", "student|return_kept", "high"),
        ("result.json", "student|params", None),
        ("result.json", "student|params", [1]),
        ("stages/evaluation-student.json", "episodes", []),
        ("stages/evaluation-student.json", "episodes/0/score", "one"),
        ("stages/evaluation-student.json", "episodes/0/score", 10**400),
        ("stages/evaluation-student.json", "seed", ...),
        ("stages/step-1/plan.json", "keep", [1]),
        ("stages/step-1/plan.json", "keep/conv1", None),
        ("stages/step-1/scores.json", "scores", ...),
    ],
)
def test_values_of_another_kind_are_refused(sweep: Path, file: str, path: str, new: Any):
    damaged = sweep / "breakout-lrp-r0.50-s0" / file
    value = json.loads(damaged.read_text())
    if "|" in path:
        value[path.replace("|", "/")] = new
    else:
        changed(value, path, new)
    damaged.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"breakout-lrp-r0.50-s0 is damaged \(") as caught:
        from_folder(sweep, NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("0/found", ...),
        ("0/found", []),
        ("0/confirmed/speedup", ...),
        ("0/metrics", None),
        ("0/on_front", ...),
        ("0", 1),
    ],
)
def test_a_front_of_another_kind_is_refused(tmp_path: Path, path: str, new: Any):
    metrics = {f"student/return_kept{end}": 0.8 for end in ("", "_ci_low", "_ci_high")}
    pair = {"return_kept": 0.8, "speedup": 2.0}
    one = {"trial": 0, "run_dir": "x", "found": pair, "confirmed": dict(pair), "on_front": True, "metrics": metrics}
    write_json(tmp_path / "front.json", [one])
    assert _front(tmp_path) == [one]
    write_json(tmp_path / "front.json", changed([one], path, new))
    with pytest.raises(UserError, match=r"front\.json is damaged \("):
        _front(tmp_path)
