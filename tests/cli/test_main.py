"""The table of commands: light help, and no traceback whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lorasmith.cli import main as cli_main
from lorasmith.cli.main import COMMANDS, run
from lorasmith.errors import DataError, LorasmithError

SOURCE = str(Path(__file__).parents[2] / "src")
HEAVY = ("torch", "numpy", "pydantic", "diffusers", "transformers", "gradio", "peft", "PIL", "cv2", "rich")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    loaded = f"[name for name in {HEAVY!r} if name in sys.modules]"
    text = python(f"import sys\nfrom lorasmith.cli.main import run\nrun(['--help'])\nprint('LOADED', {loaded})")
    assert "LOADED []" in text
    for name, summary in COMMANDS.items():
        assert f"{name} " in text
        assert summary in text  # on one line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_and_loads_no_torch(name: str) -> None:
    call = f"run(['{name}', '--help'])"
    text = python(f"import sys\nfrom lorasmith.cli.main import run\n{call}\nassert 'torch' not in sys.modules")
    assert "Examples:" in text
    assert f"lorasmith {name}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert "lorasmith" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean train?"),
        (["sing"], "The commands are demo, "),
        (["train"], "Missing argument"),
        (["generate", "--out", "x"], "There is no prompt."),
        (["generate", "--prompt", "a", "--stpes", "3", "--out", "x"], "No such option"),
    ],
)
def test_wrong_usage_is_one_message_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("Bad.", where="a.png", fix="Mend it."), 2, ["Bad.", "a.png", "Mend it."]),
        (FileNotFoundError(2, "No such file or directory", "x/y"), 2, ["No such file", "x/y"]),
        (MemoryError(), 2, ["memory is used up"]),
        (KeyboardInterrupt(), 130, ["Stopped."]),
        (ZeroDivisionError("oh"), 1, ["wrong in lorasmith itself", "oh", "report"]),
    ],
)
def test_every_error_ends_in_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: list[str],
) -> None:
    @click.command("demo")
    def failing() -> None:
        raise error

    monkeypatch.setattr("lorasmith.cli.demo.command", failing)
    assert run(["demo"]) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_a_fault_leaves_a_report_with_the_details(tmp_path: object) -> None:
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError as error:
        fault = cli_main._fault(error)
    assert isinstance(fault, LorasmithError)
    with open(str(fault.where), encoding="utf-8") as report:  # noqa: PTH123
        assert "ZeroDivisionError: oh" in report.read()
