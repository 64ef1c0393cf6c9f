"""What the pages tell people to type is what the commands take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasmith.cli.main import COMMANDS, cli
from lorasmith.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
NAMES = ("guide.md", "reference-work.md", "bases.md", "caption.md", "curate.md", "resume.md")
PAGES = [ROOT / "docs" / name for name in NAMES]


def command_lines(page: Path) -> Iterator[str]:
    """Yield the indented lorasmith lines, continued ones joined; PowerShell's as a POSIX shell would want them."""
    text = re.sub(r" (\\|`)\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^    lorasmith (.*)$", text, re.MULTILINE):
        yield re.sub(r"\(Get-ChildItem .*?\)\.FullName", "1.png", line).replace("\\", "/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_understood(page: Path) -> None:
    lines = list(command_lines(page))
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)
        command = cli.get_command(cli.make_context("lorasmith", [name]), name)
        assert command is not None, line
        command.make_context(name, arguments).close()  # raises for an option that is not there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_only_commands_that_exist_are_named_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    promised = re.sub(r"\*Not in this version:\*.*?(\n\n|$)", "", text, flags=re.DOTALL)
    assert set(re.findall(r"`lorasmith (\w+)", promised)) <= set(COMMANDS)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_guides_recipe_loads(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```toml\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "axe.toml").write_text(recipe, encoding="utf-8")
    assert load_recipe(tmp_path / "axe.toml").data.folders == ((tmp_path / "pictures" / "axe").resolve(),)


def test_the_guides_settings_exist() -> None:
    for setting in re.findall(r"--set ([\w.]+)=", PAGES[0].read_text(encoding="utf-8")):
        values = {"name": "weapons", "train.steps": "1500", "data.flip": "true", "data.crop": "random"}
        values["data.preserve"] = "['pictures/kept']"
        load_recipe(None, overrides=[f"{setting}={values[setting]}"])
