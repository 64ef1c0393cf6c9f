"""Folders as people make them: every picture is used or listed with a reason."""

from __future__ import annotations

import json
import os
import random
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith.dataset import metadata
from lorasmith.dataset.finding import KINDS, shown
from lorasmith.dataset.metadata import LONGEST_LINE
from lorasmith.dataset.read import Dataset, read_dataset
from lorasmith.errors import DataError

AXES = Path(__file__).parents[3] / "shared" / "data" / "axe"
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def draw(folder: Path, *names: str) -> None:
    """Write small pictures, each with a content of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).save(path)


def describe(folder: Path, *rows: object) -> None:
    """Write metadata.jsonl; strings and bytes as they are, pairs as file_name and text, the rest as JSON."""
    lines = []
    for row in rows:
        if isinstance(row, tuple):
            row = {"file_name": row[0], "text": row[1]}
        text = row if isinstance(row, (str, bytes)) else json.dumps(row)
        lines.append(text if isinstance(text, bytes) else text.encode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def read(*folders: Path) -> Dataset:
    dataset = read_dataset(folders)
    assert dataset.pictures_found == len(dataset.examples) + dataset.excluded_pictures
    assert all(example.caption for example in dataset.examples)
    assert all(finding.code in KINDS for finding in dataset.findings)
    return dataset


def codes(dataset: Dataset) -> list[str]:
    return [finding.code for finding in dataset.findings]


def test_metadata_captions(tmp_path: Path) -> None:
    draw(tmp_path / "axe", "1.png", "sub/2.png")
    describe(tmp_path / "axe", ("1.png", "  an  axe\n"), "", ("sub/2.png", "another, größer"))
    dataset = read(tmp_path / "axe")
    assert [(e.path.name, e.caption, e.label, e.width, e.height) for e in dataset.examples] == [
        ("1.png", "an axe", "axe", 4, 4),
        ("2.png", "another, größer", "axe", 4, 4),
    ]
    assert dataset.findings == ()
    assert dataset.classes == {"axe": 2}


def test_a_windows_backslash_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    draw(tmp_path, "sub/1.png")
    describe(tmp_path, b"\xef\xbb\xbf" + json.dumps({"file_name": "sub\\1.png", "text": "an axe"}).encode() + b"\r")
    assert [e.caption for e in read(tmp_path).examples] == ["an axe"]


@pytest.mark.parametrize("key", ["caption", "prompt"])
def test_other_caption_keys_are_accepted_and_said_once(tmp_path: Path, key: str) -> None:
    draw(tmp_path, "1.png", "2.png")
    describe(tmp_path, *({"file_name": f"{i}.png", key: "an axe"} for i in (1, 2)))
    dataset = read(tmp_path)
    assert [e.caption for e in dataset.examples] == ["an axe"] * 2
    assert codes(dataset) == ["caption-key"]


def test_sidecar_captions(tmp_path: Path) -> None:
    draw(tmp_path / "pink_axe", "1.png", "2.png", "3.png", "4.png", "5.png")
    for name, data in {
        "1.txt": b"\xef\xbb\xbfan axe\r\n",
        "2.caption": b"a spear",
        "3.txt": b"\xff",
        "4.txt": b" \n",
    }.items():
        (tmp_path / "pink_axe" / name).write_bytes(data)
    dataset = read(tmp_path / "pink_axe")
    assert [e.caption for e in dataset.examples] == ["an axe", "a spear", "pink axe", "pink axe"]
    assert codes(dataset) == ["bad-caption", "empty-caption", "empty-caption"]


def test_without_captions_the_folder_names_the_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "10_pink-blossom_axe", "1.png")
    (tmp_path / "10_pink-blossom_axe" / "notes.md").touch()
    (tmp_path / "10_pink-blossom_axe" / "metadata.csv").touch()
    dataset = read(tmp_path / "10_pink-blossom_axe")
    assert dataset.examples[0].caption == "pink blossom axe"
    assert dataset.examples[0].label == "10_pink-blossom_axe"
    assert codes(dataset) == ["no-captions", "unread-metadata", "unused-files"]
    assert "notes.md" in dataset.findings[-1].message


BAD_LINES = {
    "not json": "bad-json",
    '{"file_name": "1.png", "text": "cut': "bad-json",
    "[" * 100_000: "bad-json",
    '{"file_name": "1.png", "text": ' + "9" * 5000 + "}": "bad-json",
    b'{"file_name": "1.png", "text": "gr\xfc\xdfe"}': "not-utf8",
    '{"file_name": "1.png", "text": "' + "a" * LONGEST_LINE + '"}': "line-too-long",
    '["1.png", "an axe"]': "bad-entry",
    "null": "bad-entry",
    '{"text": "an axe"}': "bad-entry",
    '{"file_name": 1, "text": "an axe"}': "bad-entry",
    '{"file_name": "", "text": "an axe"}': "bad-entry",
    '{"file_name": "nope.png", "text": "an axe"}': "missing-file",
    '{"file_name": ".", "text": "an axe"}': "missing-file",
    '{"file_name": "1.png\\u0000", "text": "an axe"}': "missing-file",
    json.dumps({"file_name": "x" * 5000, "text": "an axe"}): "missing-file",
    '{"file_name": "good.png", "text": "again"}': "duplicate-entry",
    '{"file_name": "../class/good.png", "text": "the same, by another way"}': "duplicate-entry",
    '{"file_name": "../secret.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "..\\\\secret.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "sub/..\\\\../secret.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "/etc/hostname", "text": "an axe"}': "outside-folder",
    '{"file_name": "\\\\\\\\server\\\\share\\\\1.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "\\\\windows\\\\1.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "C:\\\\1.png", "text": "an axe"}': "outside-folder",
    '{"file_name": "C:1.png", "text": "an axe"}': "outside-folder",
}


@pytest.mark.parametrize(("line", "code"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_costs_only_itself(tmp_path: Path, line: str | bytes, code: str) -> None:
    folder = tmp_path / "class"
    draw(tmp_path, "secret.png")
    draw(folder, "good.png", "last.png")
    (folder / "sub").mkdir()
    describe(folder, ("good.png", "first"), line, ("last.png", "an axe"))
    dataset = read(folder)
    assert [e.caption for e in dataset.examples] == ["first", "an axe"]
    assert codes(dataset) == [code]
    found = dataset.excluded[0]
    assert (found.file, found.line) == (folder / "metadata.jsonl", 2)
    assert "Line 2" in found.message
    assert len(found.message) < 400
    with pytest.raises(DataError, match="Line 2"):
        read_dataset([folder], strict=True)


@pytest.mark.parametrize("text", ["5", '["an axe"]', '"\\ud800"', "true"])
def test_a_caption_that_is_not_text_costs_its_picture(tmp_path: Path, text: str) -> None:
    draw(tmp_path, "1.png", "2.png")
    describe(tmp_path, f'{{"file_name": "1.png", "text": {text}}}', ("2.png", "an axe"))
    dataset = read(tmp_path)
    assert codes(dataset) == ["bad-caption"]
    assert dataset.excluded_pictures == 1
    assert dataset.excluded[0].line == 1


@pytest.mark.parametrize("row", [("1.png", ""), ("1.png", " \n"), ("1.png", None)])
def test_an_empty_caption_becomes_the_folders_words(tmp_path: Path, row: object) -> None:
    draw(tmp_path / "axe", "1.png")
    describe(tmp_path / "axe", row)
    dataset = read(tmp_path / "axe")
    assert [e.caption for e in dataset.examples] == ["axe"]
    assert codes(dataset) == ["empty-caption"]


def test_pictures_that_cannot_be_used_are_listed_and_the_others_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "axe"
    names = ["good.png", "text.png", "empty.png", "cut.png", "moving.gif", "phone.heic", "forgotten.png"]
    draw(folder, "good.png", "cut.png", "forgotten.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    describe(folder, *((name, f"an axe, {name}") for name in names if name != "forgotten.png"))
    dataset = read(folder)
    assert [e.path.name for e in dataset.examples] == ["good.png"]
    assert {f.file.name: f.code for f in dataset.excluded if f.file} == {
        "cut.png": "damaged-picture",
        "empty.png": "empty-file",
        "forgotten.png": "no-entry",
        "moving.gif": "animated",
        "phone.heic": "unsupported-format",
        "text.png": "not-a-picture",
    }
    assert dataset.pictures_found == len(names)
    with pytest.raises(DataError) as caught:
        read_dataset([folder], strict=True)
    assert all(name in str(caught.value) for name in names if name != "good.png")


@needs_links
def test_links_that_lead_out_are_refused_and_inner_ones_count_once(tmp_path: Path) -> None:
    draw(tmp_path, "secret.png")
    folder = tmp_path / "axe"
    draw(folder, "1.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "same.png").symlink_to(folder / "1.png")
    (folder / "broken.png").symlink_to(folder / "nope.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "up").symlink_to(tmp_path)
    dataset = read(folder)
    assert [e.path.name for e in dataset.examples] == ["1.png"]
    assert sorted(f.code for f in dataset.excluded) == ["link-outside", "unreadable-file", "unreadable-file"]
    describe(folder, ("1.png", "an axe"), ("out.png", "a secret"), ("up/secret.png", "a secret"))
    assert codes(read(folder)).count("outside-folder") == 2
    assert len(read(folder).examples) == 1


@needs_links
def test_captions_are_not_read_through_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret", encoding="utf-8")
    folder = tmp_path / "axe"
    draw(folder, *(f"{n}.png" for n in range(5)))
    (folder / "0.txt").write_text("an axe", encoding="utf-8")
    for name, target in {"1": "0.txt", "2": "../secret.txt", "3": "nowhere.txt", "4": "4.txt"}.items():
        (folder / f"{name}.txt").symlink_to(target)
    dataset = read(folder)
    assert [e.caption for e in dataset.examples] == ["an axe", "an axe"]
    assert codes(dataset) == ["bad-caption"] * 3
    (tmp_path / "secret.jsonl").write_text('{"file_name": "0.png", "text": "a secret"}', encoding="utf-8")
    (folder / "metadata.jsonl").symlink_to("../secret.jsonl")
    with pytest.raises(DataError, match="link to a file outside"):
        read_dataset([folder])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_beside_a_picture_is_not_waited_on(tmp_path: Path) -> None:
    draw(tmp_path / "axe", "1.png", "2.png")
    os.mkfifo(tmp_path / "axe" / "1.txt")
    dataset = read(tmp_path / "axe")
    assert [e.path.name for e in dataset.examples] == ["2.png"]
    assert codes(dataset)[0] == "bad-caption"


@needs_links
def test_a_linked_folder_keeps_the_name_it_was_given(tmp_path: Path) -> None:
    draw(tmp_path / "v2-final", "1.png")
    (tmp_path / "axe").symlink_to(tmp_path / "v2-final")
    assert read(tmp_path / "axe").classes == {"axe": 1}


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights do not bind this user")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    draw(tmp_path / "axe", "1.png", "2.png")
    (tmp_path / "axe" / "1.png").chmod(0)
    assert codes(read(tmp_path / "axe"))[-1] == "unreadable-file"


def test_a_folder_whose_files_may_not_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "axe" / "sub", "1.png")
    draw(tmp_path / "axe", "2.png")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "sub" or mode != os.X_OK)
    with pytest.raises(DataError, match=r"sub cannot be read: Permission denied"):
        read_dataset([tmp_path / "axe"])


def refuse(path: object, *_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_folders_and_metadata_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "1.png")
    describe(tmp_path, ("1.png", "an axe"))
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"metadata.jsonl cannot be read"):
        patch.setattr(metadata, "_lines", refuse)
        read_dataset([tmp_path])
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        patch.setattr(os, "scandir", refuse)
        read_dataset([tmp_path])
    denied = PermissionError(13, "Permission denied", str(tmp_path / "sub"))
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"sub cannot be read: Permission denied"):
        patch.setattr(os, "walk", lambda top, onerror: onerror(denied) or [])
        read_dataset([tmp_path])


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode here")
def test_a_file_name_that_is_not_unicode(tmp_path: Path) -> None:
    draw(tmp_path, "1.png")
    (tmp_path / "1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe.png"))
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    dataset = read(tmp_path)
    assert len(dataset.examples) == 1
    assert "\\udcff.png is empty" in dataset.excluded[0].message
    str(dataset.excluded[0]).encode("utf-8")


def test_several_folders_are_classes(tmp_path: Path) -> None:
    draw(tmp_path, "axe/1.png", "axe/2.png", "spear/1.png", "other/axe/3.png")
    dataset = read(tmp_path / "spear", tmp_path / "axe", tmp_path / "other" / "axe")
    assert dataset.classes == {"spear": 1, "axe": 3}


def test_a_folder_of_folders_stands_for_them(tmp_path: Path) -> None:
    draw(tmp_path, "data/axe/1.png", "data/spear/1.png", "data/.cache/1.png")
    (tmp_path / "data" / "notes").mkdir()
    dataset = read(tmp_path / "data")
    assert dataset.classes == {"axe": 1, "spear": 1}
    assert codes(dataset)[0] == "subfolders"


def test_hidden_files_are_not_pictures(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", ".hidden.png")
    (tmp_path / "._1.png").write_bytes(b"a resource fork")
    (tmp_path / "Thumbs.db").touch()
    assert read(tmp_path).pictures_found == 1


def test_a_folder_named_twice_is_read_once_and_one_in_another_is_refused(tmp_path: Path) -> None:
    draw(tmp_path, "axe/1.png", "axe/sub/2.png")
    dataset = read(tmp_path / "axe", tmp_path / "axe" / "..", tmp_path / "axe")
    assert dataset.pictures_found == 2
    assert codes(dataset).count("folder-twice") == 2
    with pytest.raises(DataError, match="lies in another"):
        read_dataset([tmp_path / "axe", tmp_path / "axe" / "sub"])


def test_the_same_file_twice_is_said(tmp_path: Path) -> None:
    draw(tmp_path, "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    assert codes(read(tmp_path)) == ["no-captions", "duplicate-picture"]


def test_all_fatal_problems_are_said_at_once(tmp_path: Path) -> None:
    for name in ("empty", "useless", "wide"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "useless" / "1.png").touch()
    draw(tmp_path, "wide/1.png", "good/1.png")
    (tmp_path / "wide" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "an axe"}', encoding="utf-16")
    folders = [tmp_path / name for name in ("nowhere", "file", "empty", "useless", "wide", "good")]
    with pytest.raises(DataError) as caught:
        read_dataset(folders)
    text = str(caught.value)
    for piece in ("is not there", "is not a folder", "has no pictures", "None of the pictures in useless", "is UTF-16"):
        assert piece in text
    assert "1.png is empty" in text, "the reasons too"
    assert "no-entry" not in text


def test_a_single_problem_has_what_where_and_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset([tmp_path / "nowhere"])
    assert caught.value.what == f"The folder {tmp_path / 'nowhere'} is not there."
    assert caught.value.where == str(tmp_path / "nowhere")
    assert caught.value.fix
    with pytest.raises(DataError, match="No folder"):
        read_dataset([])


def test_the_hash_is_of_labels_contents_and_captions_alone(tmp_path: Path) -> None:
    draw(tmp_path, "a/axe/1.png", "a/axe/2.png")
    for new, old in {"x.png": "2.png", "y.png": "1.png"}.items():
        (tmp_path / "b" / "axe").mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / "axe" / new).write_bytes((tmp_path / "a" / "axe" / old).read_bytes())
    first, second = read(tmp_path / "a" / "axe"), read(tmp_path / "b" / "axe")
    assert first.sha256 == second.sha256
    (tmp_path / "b" / "axe").rename(tmp_path / "b" / "spear")
    assert read(tmp_path / "b" / "spear").sha256 != first.sha256


def test_what_is_printed_is_printable() -> None:
    assert shown("a\x1b[31m\n\udcff\u202eb") == "a\\x1b[31m\\n\\udcff\\u202eb"
    assert len(shown("x" * 10_000)) == 80


def test_any_mixture_is_accounted_for(tmp_path: Path) -> None:
    rng = random.Random(0)
    for trial in range(25):
        folder = tmp_path / f"mixture{trial}"
        draw(folder, "always.png")
        names = [f"{i}.png" for i in range(8)]
        for name in names:
            kind = rng.choice(["picture", "picture", "text", "empty", "absent"])
            if kind == "picture":
                draw(folder, name)
            elif kind != "absent":
                (folder / name).write_bytes(b"text" if kind == "text" else b"")
        lines: list[object] = [("always.png", "an axe")]
        lines += [
            rng.choice([(rng.choice(names), "an axe"), (rng.choice(names), 5), "{", ("../x.png", "")]) for _ in range(9)
        ]
        describe(folder, *lines)
        dataset = read(folder)
        on_disk = {path for path in folder.iterdir() if path.suffix == ".png"}
        listed = {finding.file for finding in dataset.excluded if finding.file and finding.file.suffix == ".png"}
        used = {example.path for example in dataset.examples}
        assert dataset.pictures_found == len(on_disk)
        assert not used & listed
        bad_captions = sum(finding.code == "bad-caption" for finding in dataset.excluded)
        assert len(on_disk - used - listed) == bad_captions


@pytest.mark.skipif(not AXES.is_dir(), reason="the real photos are not here")
def test_all_real_photos_are_used() -> None:
    dataset = read(AXES)
    assert (len(dataset.examples), dataset.pictures_found) == (79, 79)
    assert dataset.classes == {"axe": 79}
    assert {(e.width, e.height) for e in dataset.examples} == {(512, 512)}
    assert dataset.excluded == ()
