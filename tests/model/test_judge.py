"""The judge, equal to transformers' own CLIP arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from lorasmith.errors import ModelError
from lorasmith.model.judge import eight_views, load_judge, prepare
from lorasmith.starter.build.judge import SIZE, Student, write_judge
from lorasmith.starter.build.tokenizer import write_tokenizer
from lorasmith.starter.questions import kind_choices
from lorasmith.starter.renderer import render
from lorasmith.starter.verdict import verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge")
    write_judge(Student(write_tokenizer(path)), path)
    return path


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([render(i, size=128, blossom=0.5).image for i in range(5)])


def test_it_fits_in_8_mb(folder: Path) -> None:
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8e6


def test_probabilities_are_those_of_transformers(folder: Path, pictures: np.ndarray) -> None:
    judge = load_judge(folder)
    texts = ["an axe", "a spear with pink blossoms", "a whip"]
    clip = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", return_tensors="pt")
    x = prepare(pictures, SIZE, (0.5,) * 3, (0.5,) * 3)
    with torch.inference_mode():
        expected = clip(input_ids=tokens.input_ids, pixel_values=x).logits_per_image.softmax(-1)
    found = judge.probabilities(pictures, {text: (text,) for text in texts})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_picture_alone_is_judged_as_in_a_batch(folder: Path, pictures: np.ndarray) -> None:
    judge = load_judge(folder)
    together = judge.embed_pictures(pictures)
    alone = torch.cat([judge.embed_pictures(pictures[i : i + 1]) for i in range(len(pictures))])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_eight_views_are_moved_and_mirrored() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    views = eight_views(x, 2)
    assert len(views) == 8
    assert {tuple(v.shape) for v in views} == {(1, 1, 8, 8)}
    # what lies in the middle is moved by two pixels along both axes, and mirrored in the second half
    assert [float(v[0, 0, 3, 3]) for v in views[:4]] == [float(x[0, 0, 3 + y, 3 + z]) for y in (-2, 2) for z in (-2, 2)]
    assert all(torch.equal(a.flip(3), b) for a, b in zip(views[:4], views[4:]))


def test_views_average_the_embeddings(folder: Path, pictures: np.ndarray) -> None:
    judge = load_judge(folder)
    small = prepare(pictures, SIZE, (0.5,) * 3, (0.5,) * 3)
    each = [(v * 0.5 + 0.5).mul(255).round().byte().permute(0, 2, 3, 1).numpy() for v in eight_views(small, 2)]
    mean = torch.nn.functional.normalize(sum(judge.embed_pictures(v) for v in each), dim=-1)
    torch.testing.assert_close(judge.embed_pictures(pictures, views=True), mean, atol=1e-5, rtol=0)


def test_verdict_asks_each_picture_of_its_own_kind(folder: Path, pictures: np.ndarray) -> None:
    judge = load_judge(folder)
    wanted = ["axe", "whip", "axe", "key", "whip"]
    all_at_once = verdict(judge, pictures, wanted)
    for i, kind in enumerate(wanted):
        alone = verdict(judge, pictures[i : i + 1], [kind])
        assert (alone.kinds[0], alone.colours[0], alone.blossoms[0]) == (
            all_at_once.kinds[i],
            all_at_once.colours[i],
            all_at_once.blossoms[i],
        )
    assert set(all_at_once.kinds) <= set(kind_choices())


def test_a_folder_that_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not found"):
        load_judge(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        load_judge(tmp_path)
