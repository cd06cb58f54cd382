"""Tab completion in a shell: Hydra's own, for command lines as users write them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import hydra

from lrp_compress.commands.arguments import parse, places, written_out
from lrp_compress.commands.table import COMMANDS, REPORT, VERBS, Command
from lrp_compress.commands.wording import MISTAKES
from lrp_compress.config.checks import conf_dir

SHELL_FLAGS = {"-sc", "--shell-completion"}
PROGRAM = "lrp-compress"
SWEEPER = "hydra/sweeper=study"  # has the settings of a search


@dataclass(frozen=True)
class Line:
    """A command line that is being typed.

    Attributes
    ----------
    verb : str or None
        The command, if it is there.
    words : list of str
        The finished arguments.
    word : str
        The last one, perhaps empty.
    """

    verb: str | None
    words: list[str]
    word: str


def answer_shell() -> None:
    """Answer the shell and exit, if it asks for a word's completion; installing that is left to Hydra."""
    if not SHELL_FLAGS & set(sys.argv):
        return
    sys.argv[0] = PROGRAM  # which Hydra's script is then for
    if query := next((one for one in sys.argv if one.startswith("query=")), None):
        line = os.environ.get("COMP_LINE", "")
        print("\n".join(candidates(line[: int(os.environ.get("COMP_POINT", len(line)))], query)))
        sys.exit()


def read_line(text: str) -> Line | None:
    """Take a command line apart, ``lrp-compress train game=po`` or ``python -m lrp_compress.train game=po``.

    Returns
    -------
    Line or None
        None while the program itself is being typed.
    """
    *words, word = re.split(r"\s+", text.lstrip())
    if match := re.match(r"\s*\S*python[\d.]*\s+-m\s+lrp_compress(?:\.(\w+))?\s", text):
        return Line(match[1], words[3:], word) if match[1] else _with_verb(words[3:], word)
    return _with_verb(words[1:], word) if words else None


def _with_verb(words: list[str], word: str) -> Line:
    known = bool(words) and words[0] in (*COMMANDS, REPORT)
    return Line(words[0], words[1:], word) if known else Line(None, words, word)


def candidates(text: str, query: str) -> list[str]:
    """Complete the last word of a command line.

    Parameters
    ----------
    text : str
        The line up to the cursor, with the program.
    query : str
        What Hydra is asked, e.g. ``query=bash``.

    Returns
    -------
    list of str
        What the word may become; nothing for a line with a mistake, and where the shell itself may offer files.
    """
    line = read_line(text)
    if line is None or line.verb == REPORT:
        return []
    verbs = [] if line.verb or line.words else [verb for verb in VERBS if verb.startswith(line.word)]
    with contextlib.suppress(*MISTAKES, ValueError):
        return sorted({*verbs, *_settings(line, COMMANDS[line.verb or "compress"], query)})
    return verbs


def _settings(line: Line, command: Command, query: str) -> list[str]:
    """Ask Hydra in its own words, and give its answer in the user's."""
    own = {short: long for short, long in command.shorthand.items() if not long.startswith("+")}
    word = line.word
    short, long = next(((short, long) for short, long in own.items() if word.startswith(short)), ("", ""))
    words = list(line.words)
    if short == "search." and not any(re.match(r"\+?search=", typed) for typed in words):
        words.append(SWEEPER)
    asked = [*written_out(words, command), long + word.removeprefix(short)]
    answer = _ask_hydra(command, asked, [*places(parse(words)), query])
    return [short + one.removeprefix(long) for one in answer] + [
        name for name in own if name != word and name.startswith(word)
    ]


def _ask_hydra(command: Command, words: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Call Hydra as its scripts for shells do."""
    os.environ["COMP_LINE"] = " ".join([PROGRAM, *words])
    sys.argv[1:] = ["-sc", *arguments]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.start)(lambda config: None)()
    return told.getvalue().split()
