"""What is printed of an error."""

from __future__ import annotations

import pytest

from lrp_compress.commands.wording import one_line, report
from lrp_compress.config.schema import Config
from lrp_compress.support.errors import UserError, printable


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("http://user:SECRET@host/x.zip is an address", "http://…@host/x.zip is an address"),
        ("hf://user:SE@CRET@org/repo/x.zip", "hf://…@org/repo/x.zip"),
        ("(http://host/x.zip?token=SECRET)", "(http://host/x.zip?…"),
        ("hf://org/repo@revision/x.zip: no such file", "hf://org/repo@revision/x.zip: no such file"),
        ("sqlite:///a.db at 10:30, see a@b", "sqlite:///a.db at 10:30, see a@b"),
        ("a\x1b[31m", "a\\x1b[31m"),
    ],
)
def test_no_password_and_no_control_character_is_printed(given: str, printed: str):
    assert printable(given) == printed


def test_an_error_is_printed_without_passwords(capsys: pytest.CaptureFixture[str]):
    assert report(UserError("teacher.source=http://user:SECRET@host/x.zip"), Config, full=False) == 2
    assert capsys.readouterr().err == "error: teacher.source=http://…@host/x.zip\n"


def test_too_little_memory_is_told_in_one_line():
    assert one_line(MemoryError("Unable to allocate 6.27 PiB"), Config) == (
        "there is not enough memory (Unable to allocate 6.27 PiB); lower the settings that say how many"
    )
