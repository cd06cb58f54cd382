"""The wheel holds everything and works from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lrp_compress

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what goes into it, without the network."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("lrp_compress", "hydra_plugins", "conf", "teachers"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_code_settings_and_agents(wheel: Path):
    assert wheel.name.startswith(f"lrp_compress-{lrp_compress.__version__}-")
    held = set(zipfile.ZipFile(wheel).namelist())
    places = {"lrp_compress": "", "hydra_plugins": "", "conf": "lrp_compress/", "teachers": "lrp_compress/"}
    for folder, inside in places.items():
        files = [
            path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert {f"{inside}{path.relative_to(REPOSITORY).as_posix()}" for path in files} <= held
    assert any(name.endswith(".safetensors") for name in held)


def test_unpacked_wheel_works_from_another_folder(wheel: Path, tmp_path: Path):
    installed, folder = tmp_path / "installed", tmp_path / "folder"
    zipfile.ZipFile(wheel).extractall(installed)
    folder.mkdir()
    for arguments, expected in (
        (["--help"], "seaquest"),
        (["--cfg", "job", "+game=breakout"], "title: Breakout"),
        (["--cfg", "hydra", "game=breakout", "search=smoke"], "StudySweeper"),
    ):
        command = [sys.executable, "-m", "lrp_compress", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    code = "import lrp_compress.config.checks as c; print(c.conf_dir())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == installed / "lrp_compress" / "conf"


def test_every_dependency_is_constrained():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    pins = [line.partition("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines()]
    names = {line.partition(">")[0].partition("[")[0] for line in wanted}
    assert names - {project["name"]} <= set(pins)


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed; CI has it")
@pytest.mark.parametrize(("password", "said"), [("secret", ""), ("", "set it to a password of your choice")])
def test_the_compose_file_is_one(password: str, said: str):
    """Read by the docker-compose that Debian has, which knows all of the file but its name, and needs no engine."""
    file = (REPOSITORY / "docker" / "compose.yaml").read_text()
    nameless = "".join(line for line in file.splitlines(keepends=True) if not line.startswith("name:"))
    command = ["docker-compose", "-f", "-", "--project-directory", str(REPOSITORY / "docker"), "config"]
    variables = {**os.environ, "POSTGRES_PASSWORD": password, "STUDY": "game=pong search=smoke"}
    done = subprocess.run(command, input=nameless, env=variables, capture_output=True, text=True)
    if said:
        assert (done.returncode, said in done.stderr) == (1, True)
        return
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services.keys() == {"postgres", "mlflow", "worker"}
    assert services["worker"]["environment"]["STUDY"].startswith("game=pong search=smoke search.storage=postgresql")
    assert all(service["cap_drop"] == ["ALL"] for service in services.values())
