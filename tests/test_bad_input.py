"""A newcomer's mistakes, through the command line: one clear message, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from lorasmith.cli.main import run
from lorasmith.events import CheckpointSaved, Event, Progress, StepDone
from lorasmith.run import Run
from lorasmith.train.board import Board

FAST = ("--steps=2", "--device=cpu", "--precision=fp32")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a space and more in its name, and a cache of its own."""
    folder = tmp_path / "Größe 大"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def train(tiny_base: Path, here: Path) -> Callable[..., int]:
    """Return a function that runs the shortest training on what is named."""
    settings = {"train.steps": 1, "train.batch": 1, "lora.rank": 2, "samples.steps": 1, "train.device": '"cpu"'}
    options = [f"--set={key}={value}" for key, value in settings.items()]

    def call(*arguments: str) -> int:
        return run(["train", "--base", str(tiny_base), "--set=train.precision=fp32", *options, *arguments])

    return call


@pytest.fixture
def draw(tiny_base: Path, here: Path) -> Callable[..., int]:
    def call(command: str, *arguments: str) -> int:
        return run([command, "--base", str(tiny_base), *FAST, *arguments])

    return call


def picture(path: Path, seed: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 36, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def folder_of(path: Path, count: int = 4, more: tuple[str, ...] = ()) -> Path:
    """Write pictures 0.png, 1.png, ... and a metadata.jsonl with ``more`` lines at its end."""
    for number in range(count):
        picture(path / f"{number}.png", number)
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"an axe {number}"}) for number in range(count)]
    (path / "metadata.jsonl").write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return path


def refused(captured: Captured, *words: str) -> str:
    """Check that one message with ``words`` was said, what, where and what to do, and return it."""
    text = captured.readouterr().err
    assert text.count("Error:") == 1
    assert "Traceback" not in text and "lorasmith itself" not in text
    assert "to do:" in text
    for word in words:
        assert word in text
    return text


# Pictures and captions


def test_folders_that_cannot_be_used(train: Callable[..., int], here: Path, capsys: Captured) -> None:
    (here / "empty").mkdir()
    picture(here / "axe" / "0.png")
    assert train("missing", "empty", "axe/0.png") == 2
    refused(capsys, "3 problems", "missing is not there", "empty has no pictures", "0.png is not a folder")
    assert not list((here / "runs").iterdir())


FLAWS = {
    '{"file_name": "0.png", "text": "again"}': "names 0.png again, after line 1",
    "{bad": "is not JSON",
    '{"file_name": "no.png", "text": "x"}': "names no.png, which is not there",
    '{"file_name": "../secret.png", "text": "x"}': "names ../secret.png, which is outside the folder",
    '{"file_name": "..\\\\secret.png", "text": "x"}': "secret.png, which is outside the folder",
    '{"file_name": "cut.png", "text": "x"}': "cut.png is damaged or cut short",
    '{"file_name": "text.png", "text": "x"}': "text.png is not a picture",
    '{"file_name": "empty.jpg", "text": "x"}': "empty.jpg is empty",
}


@pytest.fixture
def flawed(here: Path) -> Path:
    """A folder with five good pictures, one of them without a caption, and every flaw."""
    picture(here / "secret.png")
    folder = folder_of(here / "axe", 4, (*FLAWS, '{"file_name": "bare.png", "text": ""}'))
    picture(folder / "bare.png", 9)
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("hello", encoding="utf-8")
    (folder / "empty.jpg").touch()
    with (folder / "metadata.jsonl").open("ab") as stream:
        stream.write('{"file_name": "1.png", "text": "é"}\n'.encode("latin-1"))
    return folder


def test_every_flaw_is_told_and_the_good_pictures_are_used(
    train: Callable[..., int], flawed: Path, capsys: Captured
) -> None:
    assert train("axe", "--out", "run") == 0
    text = capsys.readouterr().out
    assert "8 pictures found, 5 used, 3 left out" in text
    for words in (*FLAWS.values(), "is not UTF-8", 'bare.png has no caption; "axe" is used'):
        assert words in text
    assert Path("run/lora.safetensors").is_file()


def test_strict_tells_all_of_them_at_once_and_trains_nothing(
    train: Callable[..., int], flawed: Path, capsys: Captured
) -> None:
    assert train("axe", "--strict", "--out", "run") == 2
    refused(capsys, "9 problems", "is not UTF-8", *FLAWS.values())
    assert not Path("run").exists()


def test_odd_pictures_are_used(train: Callable[..., int], here: Path, capsys: Captured) -> None:
    folder = here / "odd"
    for mode in ("RGBA", "LA", "P", "1"):
        picture(folder / f"{mode}.png", mode=mode)
    picture(folder / "cmyk.jpg", mode="CMYK")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(folder / "deep.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=exif)
    assert train("odd", "--strict") == 0
    assert "7 pictures found, 7 used, 0 left out" in capsys.readouterr().out


# The recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.stps=4"], ["unknown key", "Did you mean train.steps?"]),
        (["--set", "train.steps=0"], ["--set train.steps=0", "greater than or equal to 1"]),
        (["--set", "train.learning_rate=nan"], ["train.learning_rate"]),
        (["--set", "samples.prompts=an axe"], ["samples.prompts", 'a list in brackets, as ["an axe"]']),
        (["--set", "base="], ["base", "must not be empty"]),
        (["--set", "train.steps"], ["key=value"]),
        (["--set", "train.precision=fp16"], ["CPU cannot compute in fp16"]),
        (["--base", "nowhere"], ["no base", "nowhere"]),
        (["--preset", "fast"], ["no preset", "low-memory"]),
    ],
)
def test_what_a_recipe_cannot_say(
    train: Callable[..., int], here: Path, capsys: Captured, arguments: list[str], words: list[str]
) -> None:
    picture(here / "axe" / "0.png")
    assert train("axe", "--out", "run", *arguments) == 2
    refused(capsys, *words)
    assert not Path("run").exists()


# LoRAs


@pytest.fixture
def foreign_lora(other_base: Path, here: Path) -> Path:
    from lorasmith.model.formats import write_diffusers
    from lorasmith.model.lora import LoraConfig, attach, lora_state
    from lorasmith.model.stable_diffusion import load_base

    sd = load_base(str(other_base))
    attach(sd, LoraConfig(rank=2))
    write_diffusers(lora_state(sd), here / "foreign.safetensors")
    return here / "foreign.safetensors"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--lora", "foreign.safetensors", "--out", "new"],
        ["grid", "--lora", "foreign.safetensors", "--columns", "weight=0,1", "--out", "new.png"],
        ["grid", "--lora", "foreign.safetensors", "--merge", "--out", "new.png"],
    ],
)
def test_a_lora_for_another_architecture(
    draw: Callable[..., int], foreign_lora: Path, capsys: Captured, arguments: list[str]
) -> None:
    assert draw(*arguments, "--prompt", "a") == 2
    refused(capsys, "does not fit the base", "architecture")
    assert not Path("new").exists() and not Path("new.png").exists()


@pytest.mark.parametrize("name", [r"C:\loras\axe.safetensors", r"C:\loras\axe.safetensors:0.5", "a b:x", "a:nan", ""])
def test_loras_that_are_not_there(draw: Callable[..., int], capsys: Captured, name: str) -> None:
    assert draw("generate", "--lora", name, "--prompt", "a", "--out", "new") == 2
    refused(capsys, "LoRA")


# Where the results go


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--prompt", "a", "--out", "file"], ["file", "in the way"]),
        (["generate", "--prompt", "a", "--out", "file/deeper"], ["file/deeper"]),
        (["generate", "--prompt", "a", "--out", "new", "--width", "1000000", "--height", "1000000"], ["pixels"]),
        (["grid", "--prompt", "a", "--columns", "seed=1", "--out", "file/grid.png"], ["file"]),
        (["grid", "--prompt", "a", "--columns", "seed=1", "--out", "grid.jpg"], [".png"]),
        (["grid", "--prompt", "a", "--columns", "weight=nan", "--out", "grid.png"], ["not a number"]),
        (["grid", "--merge", "axe/0.png", "--height", "1000000", "--out", "strip.png"], ["limit", "smaller height"]),
    ],
)
def test_results_that_cannot_be_written(
    draw: Callable[..., int], here: Path, capsys: Captured, arguments: list[str], words: list[str]
) -> None:
    (here / "file").write_text("mine", encoding="utf-8")
    picture(here / "axe" / "0.png")
    assert draw(*arguments) == 2
    refused(capsys, *words)
    assert (here / "file").read_text(encoding="utf-8") == "mine"


def test_a_strip_of_nothing(here: Path, capsys: Captured) -> None:
    assert run(["grid", "--merge", "--out", "m.png"]) == 2
    assert "no prompt" not in (text := capsys.readouterr().err) and "PICTURES" in text


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, which is how a full disk feels."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_the_start_of_a_training(train: Callable[..., int], here: Path, capsys: Captured) -> None:
    folder_of(here / "axe")
    with files_up_to(500):  # less than the recipe needs
        assert train("axe", "--out", "run") == 2
    refused(capsys, "run", "disk")
    assert not Path("run").exists()
    assert train("axe", "--out", "run") == 0


def test_a_full_disk_in_the_middle_of_a_training(train: Callable[..., int], here: Path, capsys: Captured) -> None:
    folder_of(here / "axe")
    with files_up_to(9_000):  # events and samples fit, a checkpoint does not
        assert train("axe", "--out", "run", "--set=train.steps=3", "--set=lora.rank=8") == 2
    refused(capsys, "disk")
    assert Path("run/samples/step-000000/00.png").is_file()
    assert not list(Path("run/checkpoints").iterdir())


def test_a_full_disk_under_the_events(train: Callable[..., int], here: Path, capsys: Captured) -> None:
    folder_of(here / "axe", more=tuple(f'{{"file_name": "no{number}.png", "text": "x"}}' for number in range(99)))
    with files_up_to(8_000):
        assert train("axe", "--out", "run") == 2
    refused(capsys, "events.jsonl", "disk")


def test_a_full_disk_while_drawing_keeps_what_is_drawn(
    draw: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw("generate", "--prompt", "a", "--out", "new") == 0
    with files_up_to(100):
        assert draw("generate", "--prompt", "a", "--out", "new") == 2
    refused(capsys, "png", "disk")
    assert [path.name for path in Path("new").iterdir()] == ["00000-0.png"]


def test_two_trainings_that_start_at_the_same_time_get_a_folder_each(
    train: Callable[..., int], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(here / "axe")
    real, calls = Run.new_path, 0
    other: list[FileLock] = []

    def late(parent: Path, name: str) -> Path:
        nonlocal calls
        calls += 1
        path = real(parent, name)
        if calls == 1:  # the other one takes the number between our look and our mkdir
            path.mkdir(parents=True)
            other.append(FileLock(path / "run.lock"))
            other[0].acquire()
        return path

    monkeypatch.setattr(Run, "new_path", staticmethod(late))
    assert train("axe") == 0
    assert Path("runs/axe-002/lora.safetensors").is_file()
    other[0].release()


# The output


@contextmanager
def stdout_of(monkeypatch: pytest.MonkeyPatch, handle: int) -> Iterator[None]:
    with monkeypatch.context() as patch, open(handle, "w", encoding="utf-8") as stream:
        patch.setattr(sys, "stdout", stream)
        yield


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_reader_that_has_had_enough_does_not_end_the_work(
    train: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...]
) -> None:
    folder_of(here / "axe")
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_of(monkeypatch, writer):
        assert train("axe", "--out", "run", *as_json) == 0
    assert Path("run/lora.safetensors").is_file()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_log_on_a_full_disk_does_not_end_the_work(
    draw: Callable[..., int], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stdout_of(monkeypatch, os.open("/dev/full", os.O_WRONLY)):
        assert draw("generate", "--prompt", "a", "--out", "new") == 0
    assert len(list(Path("new").iterdir())) == 1
    assert capsys.readouterr().err.count("the work goes on") == 1


def test_without_any_output(draw: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert draw("generate", "--prompt", "a", "--out", "new", "--json") == 0
    assert len(list(Path("new").iterdir())) == 1


# Ctrl-C


@pytest.mark.parametrize(
    ("when", "kept"),
    [
        (lambda event: isinstance(event, Progress) and event.stage == "encoding" and event.done == 1, None),
        (lambda event: isinstance(event, Progress) and event.stage == "validation" and event.done == 0, None),
        (lambda event: isinstance(event, Progress) and event.stage == "samples" and event.done == 0, []),
        (lambda event: isinstance(event, StepDone) and event.step == 2, ["step-000002"]),
        (lambda event: isinstance(event, CheckpointSaved), ["step-000003"]),
    ],
)
def test_ctrl_c_in_every_phase(
    train: Callable[..., int],
    here: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[Event], bool],
    kept: list[str] | None,
) -> None:
    folder_of(here / "axe")
    real = Board.show

    def show(self: Board, event: Event) -> None:
        real(self, event)
        if when(event):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Board, "show", show)
    settings = ("train.steps=9", "train.save_every=3", "train.log_every=1", "data.validation=0.3")
    assert train("axe", "--out", "run", "--json", *(f"--set={setting}" for setting in settings)) == 130
    captured: Any = capsys.readouterr()
    assert captured.err.strip() == "Stopped."
    assert all(json.loads(line) for line in captured.out.splitlines())
    if kept is None:
        assert not Path("run").exists()
    else:
        assert [path.name for path in sorted(Path("run/checkpoints").glob("*"))] == kept
