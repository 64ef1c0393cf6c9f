"""The commands from the outside, on a base in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.cli.main import run

SMALL = (
    "--set=train.steps=4", "--set=train.batch=2", "--set=train.log_every=1", "--set=lora.rank=2",
    "--set=samples.steps=2", "--set=train.device=cpu", "--set=train.precision=fp32",
)  # fmt: skip
FAST = ("--steps", "2", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def axes(here: Path) -> Path:
    folder = here / "axe"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 255, (40, 36, 3), np.uint8)).save(folder / f"{number}.png")
    entries = [{"file_name": f"{n}.png", "text": f"an axe {n}"} for n in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return folder


def test_train_generate_and_grid(tiny_base: Path, axes: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (axes / "broken.png").write_bytes(b"no picture")
    assert run(["train", "axe", "--base", str(tiny_base), *SMALL]) == 0
    text = capsys.readouterr().out
    trained = here / "runs" / "axe-001"
    assert "6 used" in text
    assert "broken.png" in text
    assert text.index("6 used") < text.index("step 1 of 4")
    assert (trained / "lora.safetensors").is_file()

    lora = f"{trained / 'lora.safetensors'}:0.5"
    draw = ["--base", str(tiny_base), "--lora", lora, *FAST]
    assert run(["generate", "--prompt", "an axe", "--count", "2", "--out", "pictures", "--json", *draw]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["seed"] for e in events if e["event"] == "PictureMade"] == [0, 1]
    assert len(list((here / "pictures").glob("*.png"))) == 2

    assert run(["grid", "--columns", "weight=0,1", "--rows", "prompt=an axe|a whip", "--out", "g.png", *draw]) == 0
    assert (here / "g.png").is_file()
    base_and_run = f"checkpoint=base,{trained}"
    arguments = ["--columns", base_and_run, "--prompt", "an axe", "--out", "c.png", "--base", str(tiny_base), *FAST]
    assert run(["grid", *arguments]) == 0
    with Image.open(here / "c.png") as image:
        assert image.width > 4 * 32  # base and the run's four checkpoints
    assert run(["grid", "--merge", "--prompt", "a", "--prompt", "b", "--out", "m.png", *draw]) == 0
    with Image.open(here / "m.png") as image:
        assert image.size == (64, 32)


def test_train_from_a_recipe_without_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r.toml").write_text("version = 1\n", encoding="utf-8")
    assert run(["train", "r.toml"]) == 2
    assert "names no pictures" in capsys.readouterr().err
    assert run(["train", "r.toml", "r.toml"]) == 2
    assert "one recipe" in capsys.readouterr().err


def test_a_failed_start_leaves_no_run_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "missing", "--out", "run", "--base", "starter"]) == 2
    text = capsys.readouterr().err
    assert "missing" in text
    assert "Traceback" not in text
    assert not (here / "run").exists()


def test_strict_stops_at_the_first_look(
    axes: Path, here: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (axes / "broken.png").write_bytes(b"no picture")
    assert run(["train", "axe", "--strict", "--base", str(tiny_base), *SMALL]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_a_run_never_overwrites(axes: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "thesis.txt").write_text("x", encoding="utf-8")
    assert run(["train", "axe", "--out", "taken"]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert (here / "taken" / "thesis.txt").is_file()


def test_merge_of_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a.png", (64, 64)), ("b.png", (32, 64))):
        Image.new("RGB", size).save(here / name)
    assert run(["grid", "--merge", "a.png", "b.png", "--out", "deep/m.png"]) == 0
    with Image.open(here / "deep" / "m.png") as image:
        assert image.size == (96, 64)
    assert run(["grid", "--merge", "a.png", "--out", "deep/m.png"]) == 2
    assert "already there" in capsys.readouterr().err
    assert run(["grid", "--merge", "a.png", "missing.png", "--out", "n.png"]) == 2
    assert "missing.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a"], "--columns"),
        (["a.png", "--columns", "seed=1"], "--merge"),
        (["--merge", "a.png", "--rows", "seed=1"], "plain strip"),
        (["--merge", "a.png", "--prompt", "b"], "either"),
        (["--merge", "a.png", "--lora", "x"], "LoRA"),
        (["--merge"], "PICTURES"),
        (["--columns", "sed=1", "--prompt", "a"], "axis"),
        (["--columns", "seed=1", "--prompt", "a", "--prompt", "b"], "prompt=FIRST"),
        (["--columns", "seed=1"], "no prompt"),
    ],
)
def test_grids_that_make_no_sense(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["grid", *arguments, "--out", "g.png"]) == 2
    assert words in capsys.readouterr().err
    assert not (here / "g.png").exists()
