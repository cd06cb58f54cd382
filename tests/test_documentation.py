"""What README and documentation say can be typed is composed and checked, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lrp_compress.commands.arguments import written_out
from lrp_compress.commands.table import COMMANDS, register_starts
from lrp_compress.config.checks import check_config, check_search, conf_dir, register_schemas, settings

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m lrp_compress(?:\.(?P<name>\w+))?(?P<arguments>(?:[^`\n]|\n(?!\n|```|python|#))*)")
PLACEHOLDERS = {"seed=S": "seed=1", "game=GAME": "game=pong"}


def commands() -> list[tuple[str, str, str]]:
    """Page, command and arguments of all that is to be typed, but of reports, which take no settings."""
    found = []
    for page in PAGES:
        text = re.sub(r"```\n.*?```", "", page.read_text(), flags=re.DOTALL)  # what is printed
        for match in COMMAND.finditer(text):
            arguments = match["arguments"]
            in_block = text.count("```", 0, match.start()) % 2
            line = arguments.partition("\n")[0] if in_block else arguments.replace("\n", " ")
            if match["name"] != "report":
                found.append((page.name, match["name"] or "compress", line.split(" #")[0].strip()))
    return found


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    register_schemas()
    register_starts()
    for resolver in ("run_folder", "job_label", "sweep_folder"):
        OmegaConf.register_new_resolver(resolver, str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name", "line"), commands())
def test_a_command_of_the_documentation_is_a_right_one(page: str, name: str, line: str):
    command = COMMANDS[name]
    arguments = [PLACEHOLDERS.get(part, part) for part in shlex.split(line) if part != "-m"]
    if "--help" in arguments:
        return
    firsts = []
    for override in OverridesParser.create().parse_overrides(written_out(arguments, command)):
        discrete = override.is_sweep_override() and override.is_discrete_sweep()
        if discrete:
            firsts.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
        elif not override.is_sweep_override():
            firsts.append(str(override.input_line))
    config = compose(command.start, overrides=firsts, return_hydra_config=True)
    check_config(settings(config), command.schema)
    if any(part.startswith("search=") for part in arguments):
        sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        assert isinstance(sweeper, dict)
        check_search({str(key): value for key, value in sweeper.items() if key != "_target_"})


def test_the_commands_are_found():
    found = commands()
    assert len(found) > 30
    assert {name for _, name, _ in found} == set(COMMANDS)


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_to_files_and_headings_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        file, _, heading = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_bytes()) <= 8192
