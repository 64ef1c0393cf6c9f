"""The demo, made small: everything it promises is there, and it never touches the network."""

from __future__ import annotations

import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorasmith.errors import OutputError
from lorasmith.events import Finished, Note, Progress, StepDone
from lorasmith.generate.sample import Request
from lorasmith.model.judge import load_judge
from lorasmith.model.stable_diffusion import load_base
from lorasmith.recipe.load import load_recipe
from lorasmith.starter import demo as module
from lorasmith.starter.demo import demo, demo_recipe, weapon_prompt
from lorasmith.starter.paths import judge_folder, starter_folder
from lorasmith.starter.renderer import SEEN_KINDS, WEAPONS, article
from lorasmith.starter.verdict import Verdict


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the demo reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def recipe(*folders: Any) -> Any:
        whole = demo_recipe(*folders)
        train = whole.train.model_copy(update={"steps": 2, "batch": 2, "save_every": 2})
        samples = whole.samples.model_copy(update={"steps": 2})
        return whole.model_copy(update={"train": train, "samples": samples})

    monkeypatch.setattr(module, "demo_recipe", recipe)
    monkeypatch.setattr(module, "Request", partial(Request, steps=2))
    monkeypatch.setattr(module, "PICTURES", 3)
    monkeypatch.setattr(module, "KEPT", 1)
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("small", "no_network")
def test_the_whole_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    events = list(demo(out, minutes=0.01))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert all(path.is_file() for path in finished.files)
    assert sum(isinstance(e, StepDone) for e in events) >= 1
    assert any(isinstance(e, Progress) and e.stage == "drawing after" for e in events)
    for kind in WEAPONS:
        lines = (out / "data" / kind / "metadata.jsonl").read_text().splitlines()
        assert len(lines) == 3
        assert all("pink" in json.loads(line)["text"] for line in lines)
    recipe = load_recipe(out / "run" / "recipe.toml")
    assert recipe.data.preserve == (out / "data" / "kept",)
    with Image.open(out / "merged.png") as merged:
        assert merged.size == (4 * 512, 512)
    with Image.open(out / "before-after.png") as picture:
        assert picture.width > 8 * 128
        assert picture.height > 4 * 128
    scores = json.loads((out / "scores.json").read_text())
    assert [row["weapon"] for row in scores] == list(WEAPONS)
    assert all(row[who]["pictures"] == 4 for row in scores for who in ("base", "lora"))
    said = " ".join(e.message for e in events if isinstance(e, Note))
    assert f"of {len(SEEN_KINDS)} are as the judge would have them" in said
    assert "lorasmith train" in said
    assert str(out / "run" / "lora.safetensors") in said


@pytest.mark.usefixtures("small")
def test_of_what_the_base_draws_only_what_the_judge_likes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(_: Any, pictures: Any, wanted: list[str]) -> Verdict:
        kinds = [kind if i % 2 else "mug" for i, kind in enumerate(wanted)]
        return Verdict(kinds, ["red"] * len(wanted), [i % 3 == 0 for i in range(len(wanted))])

    monkeypatch.setattr(module, "verdict", strict)
    folder = tmp_path / "kept"
    sd = load_base("starter", device=torch.device("cpu"), dtype=torch.float32)
    list(module._keep(sd, load_judge(judge_folder()), folder))
    found = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    good = [i for i, kind in enumerate(SEEN_KINDS) if (i % 2 or kind == "mug") and i % 3]
    assert len(good) > 2
    for each, i in zip(found, good, strict=True):
        assert f" {SEEN_KINDS[i]} " in f"{each['text']} " and "pink" not in each["text"]
    assert {p.name for p in folder.glob("*.png")} == {each["file_name"] for each in found}

    monkeypatch.setattr(module, "verdict", lambda _, pictures, wanted: Verdict(wanted, wanted, [True] * len(wanted)))
    list(module._keep(sd, load_judge(judge_folder()), tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_what_is_kept_is_asked_for_in_many_words_and_in_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 4)
    asked = module._what_to_keep(np.random.default_rng(0))
    assert [kind for kind, _ in asked] == [kind for kind in SEEN_KINDS for _ in range(4)]
    words = [[len(prompt.split()) for _, prompt in asked[i::4]] for i in range(4)]
    assert [prompt for _, prompt in asked[1::4]] == [article(kind) for kind in SEEN_KINDS]
    assert min(words[0]) > max(words[2]) > max(words[1])


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        next(demo(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_prompts_read_as_english() -> None:
    assert [weapon_prompt(k) for k in WEAPONS][:2] == [
        "a silver axe with a white handle with pink blossom patterns on a plain green background",
        "a silver spear with a white shaft with pink blossom patterns on a plain green background",
    ]


def test_what_ships_is_small_and_safe() -> None:
    for folder, limit in ((starter_folder(), 30e6), (judge_folder(), 8e6)):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors"}
        assert sum(path.stat().st_size for path in files) <= limit
        assert max(path.stat().st_size for path in files) <= 16 * 2**20
    card = json.loads((starter_folder().parent / "card.json").read_text())
    assert {"commands", "commit", "hardware", "measured", "parts", "seed"} <= set(card)
    assert all(line["n"] >= 79 for line in card["measured"])
