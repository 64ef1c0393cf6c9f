from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorasmith.errors import LoraError, RunError
from lorasmith.model.formats import write_diffusers, write_kohya
from lorasmith.model.lora import Lora
from lorasmith.model.stable_diffusion import load_base
from lorasmith.recipe.schema import Recipe
from lorasmith.train.checkpoint import LORA_FILE, STATE_FILE, read_checkpoint, write_lora
from lorasmith.train.trainer import Trainer

from .helpers import latent_set, text_set


@pytest.fixture
def make_trainer(tiny_base: Path, make_recipe: Callable[..., Recipe]) -> Callable[[], Trainer]:
    def make() -> Trainer:
        sd = load_base(str(tiny_base))
        recipe = make_recipe(lora={"dropout": 0.2}, train={"caption_dropout": 0.3})
        return Trainer(sd, recipe, latent_set(), text_set(sd))

    return make


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([t.flatten() for t in trainer.lora().tensors.values()])


def test_a_checkpoint_holds_all_that_is_needed_to_go_on(make_trainer: Callable[[], Trainer], tmp_path: Path) -> None:
    through = make_trainer()
    figures = [through.advance() for _ in range(6)]

    first = make_trainer()
    for _ in range(3):
        first.advance()
    first.save(tmp_path, {})
    torch.manual_seed(99)  # no state outside the checkpoint may matter
    second = make_trainer()
    second.restore(tmp_path)
    again = [second.advance() for _ in range(3)]

    assert second.step == 6
    assert torch.equal(weights(second), weights(through))
    assert torch.equal(torch.stack(again), torch.stack(figures[3:]))


def test_what_is_in_the_files(make_trainer: Callable[[], Trainer], tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.advance()
    trainer.save(tmp_path, {"note": "x"})
    saved = read_checkpoint(tmp_path)
    assert (saved.lora.rank, saved.lora.alpha) == (4, 2.0)
    assert saved.state["step"] == 1 and saved.weights == []
    assert len(saved.moments) == len(trainer.parameters)
    assert set(saved.moments[0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [LORA_FILE, STATE_FILE]


@pytest.mark.parametrize("damage", ["absent", "short", "foreign"])
def test_a_damaged_state_is_told(make_trainer: Callable[[], Trainer], tmp_path: Path, damage: str) -> None:
    make_trainer().save(tmp_path, {})
    path = tmp_path / STATE_FILE
    if damage == "absent":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:20])
    else:
        save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="cannot be read"):
        read_checkpoint(tmp_path)


def test_weights_that_are_not_finite_are_never_saved(make_trainer: Callable[[], Trainer], tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.parameters[3].data[0] = float("nan")
    with pytest.raises(RunError, match=r"1 of the LoRA's \d+ weights"):
        trainer.save(tmp_path, {})
    with pytest.raises(RunError, match="no longer finite"):
        write_lora(trainer.lora(), tmp_path / "lora.safetensors", write_diffusers, {})
    assert not any(p.is_file() for p in tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_the_lora_is_read_back_and_compared(
    make_trainer: Callable[[], Trainer], tmp_path: Path, write: Callable[..., None]
) -> None:
    trainer = make_trainer()
    trainer.advance()
    path = tmp_path / "lora.safetensors"
    assert write_lora(trainer.lora(), path, write, {"steps": "1"}) == path

    def write_badly(lora: Lora, path: Path, metadata: dict[str, str]) -> None:
        write(lora, path, metadata)
        tensors = load_file(path)
        name = next(name for name in tensors if tensors[name].ndim > 1)
        tensors[name].view(-1)[0] += 1
        with safe_open(path, "pt") as file:
            about = file.metadata()
        save_file(tensors, path, about)

    with pytest.raises(LoraError, match="does not read back"):
        write_lora(trainer.lora(), path, write_badly, {})
