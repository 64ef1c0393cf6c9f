from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasmith.dataset.caption_file import SOURCE_KEY, CaptionFile, NewCaption, caption_of, mark, sources
from lorasmith.dataset.contents import list_contents
from lorasmith.dataset.folder import Folder
from lorasmith.errors import DataError


@pytest.fixture
def axes(tmp_path: Path) -> Folder:
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).touch()
    return Folder(tmp_path.resolve(), "axe")


def captions(folder: Folder) -> dict[str, str]:
    return {x.path.name: caption_of(x.caption) for x in list_contents(folder).listed}


def new(text: str, was: str = "", source: str = "template") -> NewCaption:
    return NewCaption(text, source, was)


def test_a_new_file_names_every_picture_and_keeps_captions_from_elsewhere(axes: Folder) -> None:
    (axes.path / "2.txt").write_text("a human's axe\n", encoding="utf-8")
    written = CaptionFile(axes).save({axes.path / "1.png": new("a red axe")})
    assert written.backup is None
    assert captions(axes) == {"1.png": "a red axe", "2.png": "a human's axe", "3.png": ""}
    assert sources(axes, list_contents(axes)) == {axes.path / "1.png": "template"}


def test_captions_of_a_csv_are_taken_over(axes: Folder) -> None:
    (axes.path / "metadata.csv").write_text("file_name,text\n1.png,an axe\n3.png,old axe\n", encoding="utf-8")
    CaptionFile(axes).save({axes.path / "1.png": new("zx, an axe", "an axe", "")})
    assert captions(axes) == {"1.png": "zx, an axe", "2.png": "", "3.png": "old axe"}
    assert sources(axes, list_contents(axes)) == {}


def test_other_keys_and_damaged_lines_stay_and_the_old_file_is_kept_once(axes: Folder) -> None:
    path = axes.path / "metadata.jsonl"
    before = (
        b'\xef\xbb\xbf{"file_name": "1.png", "caption": "one", "width": 3}\r\n{damaged\n\n\xff\xfe\n'
        b'{"file_name": "2.png", "text": "two"}'
    )
    path.write_bytes(before)
    file = CaptionFile(axes)
    first = file.save({axes.path / "1.png": new("un", "one")})
    second = file.save({axes.path / "3.png": new("trois")})
    assert first.backup == second.backup == axes.path / "metadata.jsonl.1"
    assert first.backup is not None
    assert first.backup.read_bytes() == before
    lines = path.read_bytes().split(b"\n")
    assert json.loads(lines[0]) == {
        "file_name": "1.png", "caption": "un", "width": 3, SOURCE_KEY: mark("template", "un"),
    }  # fmt: skip
    assert lines[1:5] == [b"{damaged", b"", b"\xff\xfe", b'{"file_name": "2.png", "text": "two"}']
    assert captions(axes) == {"1.png": "un", "2.png": "two", "3.png": "trois"}
    third = CaptionFile(axes).save({axes.path / "2.png": new("deux", "two")})
    assert third.backup == axes.path / "metadata.jsonl.2"


def test_nothing_to_change_writes_nothing(axes: Folder) -> None:
    path = axes.path / "metadata.jsonl"
    path.write_text('{"file_name": "1.png", "text": "one"}\n', encoding="utf-8")
    stamp = path.stat().st_mtime_ns
    assert CaptionFile(axes).save({}).backup is None
    assert path.stat().st_mtime_ns == stamp


def test_what_someone_writes_meanwhile_stays(axes: Folder) -> None:
    path = axes.path / "metadata.jsonl"
    path.write_text('{"file_name": "1.png", "text": "one"}\n', encoding="utf-8")
    file = CaptionFile(axes)
    path.write_text('{"file_name": "1.png", "text": "mine"}\n', encoding="utf-8")
    written = file.save({axes.path / "1.png": new("un", "one"), axes.path / "2.png": new("deux")})
    assert written.kept == (axes.path / "1.png",)
    assert captions(axes) == {"1.png": "mine", "2.png": "deux", "3.png": ""}


def test_a_person_who_changes_a_made_caption_becomes_its_author(axes: Folder) -> None:
    CaptionFile(axes).save({axes.path / "1.png": new("a red axe"), axes.path / "2.png": new("an axe")})
    path = axes.path / "metadata.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("a red axe", "a crimson axe"), encoding="utf-8")
    assert sources(axes, list_contents(axes)) == {axes.path / "2.png": "template"}


def test_a_file_that_cannot_be_read_is_left_alone(axes: Folder) -> None:
    path = axes.path / "metadata.jsonl"
    path.write_bytes('{"file_name": "1.png"}'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        CaptionFile(axes).save({axes.path / "1.png": new("x")})
    assert sorted(p.name for p in axes.path.iterdir()) == ["1.png", "2.png", "3.png", "metadata.jsonl"]


def test_odd_unicode_under_other_keys(axes: Folder) -> None:
    path = axes.path / "metadata.jsonl"
    path.write_text('{"file_name": "1.png", "text": "one", "note": "\\ud800"}\n', encoding="utf-8")
    CaptionFile(axes).save({axes.path / "1.png": new("épée", "one")})
    assert captions(axes)["1.png"] == "épée"
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["note"] == "\ud800"
