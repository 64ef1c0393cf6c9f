from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lorasmith import files
from lorasmith.cache import cache_folder
from lorasmith.dataset.bucket import View
from lorasmith.dataset.picture import open_rgb
from lorasmith.dataset.read import Example, read_dataset
from lorasmith.errors import OutputError
from lorasmith.events import Event, Progress, Warned
from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.train.encode import (
    Cache,
    LatentSet,
    encode_captions,
    encode_pictures,
    tokenize_captions,
)

from .helpers import Counting, drain

PLAIN, MIRRORED = View(0.5, 0.5, False), View(0.5, 0.5, True)


def encode(
    sd: StableDiffusion, examples: Sequence[Example], views: Sequence[View] = (PLAIN,), size: int = 32
) -> tuple[list[Event], LatentSet]:
    return drain(encode_pictures(sd, examples, size, lambda _: views, Cache(cache_folder())))


def test_a_second_run_encodes_nothing(tiny_base: Path, folders: list[Path]) -> None:
    examples = read_dataset(folders).examples
    sd = load_base(str(tiny_base))
    counting = Counting(sd)
    events, first = encode(sd, examples)
    assert counting.vae == len(examples) == 9
    assert [e for e in events if isinstance(e, Progress)][-1].done == 9
    _, first_text = drain(encode_captions(sd, [e.caption for e in examples], Cache(cache_folder())))
    assert counting.text == 7  # six distinct captions and the empty one

    sd = load_base(str(tiny_base))
    counting = Counting(sd)
    events, second = encode(sd, examples)
    _, second_text = drain(encode_captions(sd, [e.caption for e in examples], Cache(cache_folder())))
    assert (counting.vae, counting.text, events) == (0, 0, [])
    assert torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)
    assert torch.equal(first_text.table, second_text.table)


def test_the_cache_knows_pictures_by_content_and_by_what_is_done_to_them(
    sd: StableDiffusion, folders: list[Path]
) -> None:
    counting = Counting(sd)
    encode(sd, read_dataset(folders).examples)
    moved = folders[0].parent / "moved"
    shutil.copytree(folders[0], moved)
    encode(sd, read_dataset([moved]).examples)
    assert counting.vae == 9
    encode(sd, read_dataset([moved]).examples, size=64)
    assert counting.vae == 15
    encode(sd, read_dataset([moved]).examples, views=(MIRRORED,))
    assert counting.vae == 21
    sd.to("cpu", torch.bfloat16)  # the VAE stays in float32, and so do its latents
    encode(sd, read_dataset([moved]).examples)
    assert counting.vae == 21


def test_latents_are_the_vae_s_of_each_view(sd: StableDiffusion, folders: list[Path]) -> None:
    examples = read_dataset(folders).examples
    _, latents = encode(sd, examples, views=(PLAIN, MIRRORED))
    assert latents.mean.shape == latents.std.shape == (9, 2, 6, 8, 8)
    assert (latents.std > 0).all()
    for i, example in enumerate(latents.examples):
        picture = torch.from_numpy(open_rgb(example.path))[None]
        for view, pixels in enumerate((picture, picture.flip(2))):
            mean, std = sd.encode_pictures(pixels)
            torch.testing.assert_close(latents.mean[i, view], mean[0])
            torch.testing.assert_close(latents.std[i, view], std[0])


def test_a_picture_that_cannot_be_decoded_any_more_is_left_out(sd: StableDiffusion, folders: list[Path]) -> None:
    examples = read_dataset(folders).examples
    examples[2].path.write_bytes(examples[2].path.read_bytes()[:60])
    events, latents = encode(sd, examples)
    assert latents.examples == (*examples[:2], *examples[3:])
    assert len(latents.mean) == 8
    (warning,) = (e for e in events if isinstance(e, Warned))
    assert examples[2].path.name in warning.message


def test_a_damaged_cache_file_is_made_again(sd: StableDiffusion, folders: list[Path], cache: Path) -> None:
    examples = read_dataset(folders).examples
    _, first = encode(sd, examples)
    damaged = sorted(cache.rglob("*.tensors"))[:2]
    damaged[0].write_bytes(damaged[0].read_bytes()[:100])
    whole = damaged[1].read_bytes()
    damaged[1].write_bytes(whole[:-64] + bytes(64))  # the right size and a good header, as after a power failure
    counting = Counting(sd)
    _, second = encode(sd, examples)
    assert counting.vae == 2
    assert torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)


def test_the_cache_never_waits_for_the_disk(
    sd: StableDiffusion, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    encode(sd, read_dataset(folders).examples)
    drain(encode_captions(sd, ["a whip", "an axe"], Cache(cache_folder())))
    assert waits == []


def test_a_full_disk_costs_the_cache_but_not_the_work(
    sd: StableDiffusion, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, durable: bool = True) -> None:
        raise OutputError("No space left.", where=str(path), fix="Free some.")

    monkeypatch.setattr(files, "write_bytes", full)
    events, latents = encode(sd, read_dataset(folders).examples)
    assert len(latents.examples) == 9
    (warning,) = (e for e in events if isinstance(e, Warned))
    assert "No space left." in warning.message


def test_no_pictures_make_an_empty_set(sd: StableDiffusion) -> None:
    events, latents = encode(sd, [])
    assert (events, latents.examples, len(latents.mean), latents.views) == ([], (), 0, 1)


def test_captions_and_their_rows(sd: StableDiffusion) -> None:
    _, text = drain(encode_captions(sd, ["a whip", "an axe", "a whip"], Cache(cache_folder())))
    assert text.table.shape == (3, sd.max_tokens, 32)
    assert text.rows(["an axe", "", "a whip"]).tolist() == [2, 0, 1]
    torch.testing.assert_close(text.table, sd.encode_text(["", "a whip", "an axe"]))

    ids = tokenize_captions(sd, ["a whip", "an axe"])
    assert ids.table.shape == (3, sd.max_tokens) and not ids.table.is_floating_point()
    torch.testing.assert_close(sd.text_encoder(ids.table)[0], text.table)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LORASMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "lorasmith" / "encoded"


def test_a_cache_that_cannot_be_made_costs_a_warning(sd: StableDiffusion, folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # as a home that is read-only
    examples = read_dataset(folders).examples
    deep = Cache(tmp_path / "file" / "a" / "b")
    events, latents = drain(encode_pictures(sd, examples, 32, lambda _: (PLAIN,), deep))
    assert len(latents.examples) == 9
    assert len([e for e in events if isinstance(e, Warned)]) == 1
