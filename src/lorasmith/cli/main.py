"""The ``lorasmith`` command: a table of commands, each imported only when it is used, and how errors end.

Exit codes: 0 done, 1 problems found by a check or a fault in lorasmith itself, 2 something the user can mend,
130 stopped with Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from lorasmith import __version__
from lorasmith.errors import DeviceError, LorasmithError

COMMANDS = {
    "demo": "See the whole work on the built-in model, in minutes.",
    "check": "Find what is wrong with pictures and captions.",
    "curate": "Make a clean copy of folders of pictures.",
    "caption": "Write, edit and check the captions of pictures.",
    "new": "Start a project: a folder with a recipe that suits the pictures.",
    "train": "Train a LoRA on folders of pictures.",
    "runs": "List runs and how they stand.",
    "stop": "Let a training save its work and end.",
    "save": "Let a training write a checkpoint now.",
    "sample": "Let a training draw its sample pictures now.",
    "reproduce": "Train a run again from its record, and compare.",
    "generate": "Make pictures from a base and LoRAs.",
    "grid": "Compare prompts, weights, seeds, ... in one picture.",
    "inspect": "Say what is in files of weights, and whether they are safe.",
    "convert": "Write a base as one file or a folder, in another precision.",
    "bench": "Measure speed beside the usual scripts.",
    "doctor": "Check this machine and say how to mend what is wrong.",
}
_DEBUG = "LORASMITH_DEBUG"


class _Table(click.Group):
    """Commands by name; a command's module, ``lorasmith.cli.<name>``, is imported when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lorasmith.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" The commands are {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Table, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lorasmith")
def cli() -> None:
    """From a folder of photos to a Stable Diffusion LoRA that is proved good.

    \b
    Examples:
      lorasmith demo
      lorasmith train pictures/axe pictures/spear
      lorasmith generate --lora runs/axe-001/lora.safetensors --prompt "an axe" --out pictures
    """


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is said on stderr without a traceback."""
    _calm()
    try:
        return cli.main(list(arguments), prog_name="lorasmith", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        click.echo("Stopped.", err=True)
        return int(getattr(stop.__cause__ or stop, "code", 130))  # 143 after SIGTERM; click wraps what it was
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        known = explain(error)
        click.echo(f"Error: {known or _fault(error)}", err=True)
        return 2 if known else 1


def explain(error: Exception) -> LorasmithError | None:
    """Return the error in words a user can act on, or None for a fault in lorasmith itself."""
    if isinstance(error, LorasmithError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return DeviceError(
            "The memory is used up.",
            fix="Use a smaller batch or size (to train, --preset low-memory), or close other programs.",
        )
    if isinstance(error, RuntimeError) and re.search(r"allocate memory|not enough memory", str(error)):  # torch's too
        return explain(MemoryError())
    if isinstance(error, OSError) and error.strerror:
        if error.filename:
            return LorasmithError(f"{error.strerror}.", where=os.fsdecode(error.filename), fix="Check the path.")
        return LorasmithError(f"{error.strerror}.", fix="Check the disk that is written to, and where the output goes.")
    return None


def _fault(error: Exception) -> LorasmithError:
    what = f"Something is wrong in lorasmith itself ({type(error).__name__}: {error})."
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="lorasmith-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(details)
    except OSError:  # no place for it, as on a full disk
        return LorasmithError(what, fix=f"Please report it with what {_DEBUG}=1 shows.")
    fix = f"Please report it with that file; {_DEBUG}=1 shows the details here."
    return LorasmithError(what, where=file.name, fix=fix)


def _calm() -> None:
    """Keep libraries from writing their own progress and warnings between ours, and never fail on a character."""
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("PYTHONWARNINGS", "ignore"),
    ):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 -- for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
