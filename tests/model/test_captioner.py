"""The captioner on a BLIP in miniature, made here, and on models that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset.caption import caption
from lorasmith.dataset.caption_edit import Edits
from lorasmith.dataset.picture import Picture
from lorasmith.errors import ModelError
from lorasmith.model.captioner import load_captioner


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised BLIP that says something about a picture, with its processor."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("tiny-blip")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        *("a", "an", "red", "blue", "axe", "bow", "on", "sand", "grass", "old", "new"),
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, additional_special_tokens=["[DEC]"])
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={
            **size,
            "vocab_size": len(words),
            "max_position_embeddings": 80,
            **marks,
            "encoder_hidden_size": 32,
        },
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
        model.requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)  # far enough from zero that pictures differ
        model.text_decoder.cls.predictions.decoder.bias[3] = -20.0  # it does not stop at once
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def pictures(count: int) -> list[Picture]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (20 + 3 * i, 40, 3)).astype(np.uint8) for i in range(count)]


def test_pictures_are_described(tiny_blip: Path) -> None:
    captioner = load_captioner(str(tiny_blip))
    assert captioner.source == tiny_blip.name
    texts = captioner.describe([], pictures(6))
    assert len(texts) == 6
    assert all(texts), texts
    assert len(set(texts)) > 1, "the captions do not depend on the pictures"
    assert texts == captioner.describe([], pictures(6))
    vocabulary = set((tiny_blip / "vocab.txt").read_text(encoding="utf-8").split())
    for text in texts:
        assert set(text.split()) <= vocabulary - {"[DEC]", "[SEP]", "[CLS]", "[PAD]"}


def test_the_whole_way_into_metadata(tiny_blip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "axe"
    folder.mkdir()
    for i, picture in enumerate(pictures(5)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "3.png", "text": "my own"}\n', encoding="utf-8")
    list(caption([folder], load_captioner(str(tiny_blip)), Edits(trigger="zx")))
    entries = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    by_name = {entry["file_name"]: entry for entry in entries}
    assert by_name["3.png"] == {"file_name": "3.png", "text": "zx, my own"}  # edited, and still a person's
    assert len(by_name) == 5
    for name in ("0.png", "1.png", "2.png", "4.png"):
        assert by_name[name]["text"].startswith("zx, ")
        assert by_name[name]["caption_source"].startswith(f"{tiny_blip.name}#")


def test_other_models_are_refused_in_words(tiny_blip: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"type \"clip_text_model\""):
        load_captioner(str(tiny_base / "text_encoder"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_captioner(str(tmp_path))
    with pytest.raises(ModelError, match="no hub id"):
        load_captioner("no such folder")
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_blip, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not safetensors"):
        load_captioner(str(pickled))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_blip, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_captioner(str(broken))


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def offline(name: str, **options: object) -> str:
        asked.append(bool(options.get("local_files_only")))
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for name in ("blip", "owner/model"):
        with pytest.raises(ModelError) as caught:
            load_captioner(name)
        assert "cannot be downloaded" in str(caught.value)
        assert "no network here" in str(caught.value)
        assert "copy the model's folder" in str(caught.value)
    assert asked == [True, False] * 2
