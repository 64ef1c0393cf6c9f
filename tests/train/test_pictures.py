"""A picture that fails once the training has begun is told and left out, and every picture found is accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasmith.errors import DataError, RunError
from lorasmith.events import CheckpointSaved, Event, Finished, Note
from lorasmith.model.formats import read_lora
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.loop import train

from .injected import of, without_forecast, words

MakeRecipe = Callable[..., Recipe]
TRAIN = {"steps": 4, "save_every": 2, "log_every": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_forecast(monkeypatch)


def losing(run: Run, *pictures: Path, until: int | None = None) -> list[Event]:
    """Train, with ``pictures`` gone between their being read and their being encoded, and there again after it."""
    events: list[Event] = []
    aside = [(path, path.with_suffix(".gone")) for path in pictures]
    with run:
        for event in train(run.recipe, run):
            if not events:
                for path, away in aside:
                    path.rename(away)
            events.append(event)
            if isinstance(event, CheckpointSaved) and event.step == until:
                break
    for path, away in aside:
        away.rename(path)
    return events


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["pictures"]
    return found


def test_the_counts_add_up(make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path) -> None:
    (folders[1] / "broken.png").write_bytes(b"no picture")  # this one is left out when it is read
    run = tmp_path / "run"
    events = losing(Run.create(run, make_recipe(train=TRAIN)), folders[0] / "2.png", folders[0] / "3.png")
    told = words(events)
    assert told.count("Left out: ") == 3 and "2.png" in told and "broken.png" in told
    counts = record(run)
    assert counts["found"] == 10 and counts["left_out"] == 3
    assert counts["trained_on"] + counts["held_out"] == 7
    assert sorted(entry["picture"] for entry in counts["failed"]) == ["axe/2.png", "axe/3.png"]
    (note,) = [e.message for e in of(events, Note) if "could not be encoded" in e.message]
    assert note.startswith("10 pictures found: ") and "3 left out, 2 of them because they could not be encoded" in note
    (finished,) = of(events, Finished)
    assert read_lora(finished.files[0]).metadata["pictures"] == str(counts["trained_on"])


def test_gone_on_with_it_stays_left_out(make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path) -> None:
    """Even if it is well again: else the others would come in another order."""
    lost, recipe = folders[0] / "2.png", make_recipe(train=TRAIN)
    losing(Run.create(tmp_path / "run", recipe), lost, until=2)
    before = record(tmp_path / "run")
    events = losing(Run.open(tmp_path / "run"))
    assert "Left out: axe/2.png, as when the run began." in words(events)
    assert record(tmp_path / "run") == before
    losing(Run.create(tmp_path / "whole", recipe), lost)
    one, other = ((tmp_path / name / "lora.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_another_one_that_fails_is_a_change(
    make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path, cache: Path
) -> None:
    losing(Run.create(tmp_path / "run", make_recipe(train=TRAIN, data={"validation": 0.0})), until=2)
    shutil.rmtree(cache)
    with pytest.raises(RunError, match=r"which pictures are used; some could not be encoded: axe/1\.png"):
        losing(Run.open(tmp_path / "run"), folders[0] / "1.png")


def test_a_strict_recipe_stops_at_the_first_that_fails(
    make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data\.strict is on: axe/2\.png") as caught:
        losing(Run.create(tmp_path / "run", make_recipe(train=TRAIN, data={"strict": True})), folders[0] / "2.png")
    assert caught.value.fix and "mend the pictures" in caught.value.fix
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_any_there_is_no_training(make_recipe: MakeRecipe, folders: list[Path], tmp_path: Path) -> None:
    everyone = [path for folder in folders for path in folder.glob("*.png")]
    with pytest.raises(DataError, match="None of the pictures could be encoded"):
        losing(Run.create(tmp_path / "run", make_recipe(train=TRAIN)), *everyone)
