"""``lorasmith caption`` from the outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.cli.main import run
from lorasmith.starter.renderer import render


@pytest.fixture
def axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "axe"
    folder.mkdir()
    for name in ("1", "2", "3"):
        Image.new("RGB", (16, 16), "red").save(folder / f"{name}.png")
    write(folder, {"1": "an old axe in snow", "2": "a hatchet on sand", "3": ""})
    return folder


def write(folder: Path, captions: dict[str, str]) -> None:
    lines = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_captions_are_written_edited_and_kept(axes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (axes / "metadata.jsonl").read_bytes()
    arguments = ["caption", "axe", "--template", "a {colour} {class}", "--trigger", "zx", "--replace", "hatchet=axe"]
    assert run([*arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "axe/3.png: zx, a red axe" in out
    assert "was: a hatchet on sand" in out
    assert "Nothing was written." in out
    assert (axes / "metadata.jsonl").read_bytes() == before
    assert run(arguments) == 0
    assert texts(axes) == ["zx, an old axe in snow", "zx, a axe on sand", "zx, a red axe"]
    assert "metadata.jsonl.1" in capsys.readouterr().out
    assert (axes / "metadata.jsonl.1").read_bytes() == before
    assert run([*arguments, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["figures"] == {"pictures": 3, "described": 0, "unchanged": 3}
    assert not (axes / "metadata.jsonl.2").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "neither to be written nor edited"),
        (["--lint", "--with", "template"], "only looks"),
        (["--clip", "x", "--dedup"], "--clip goes with --lint"),
        (["--overwrite", "--dedup"], "--overwrite goes with --with"),
        (["--apply", "x.tsv", "--trigger", "zx"], "as the sheet has them"),
        (["--review", "--json"], "asks a person"),
        (["--sheet", "x", "--dedup"], "--sheet goes with --review"),
        (["--template", "{nope}"], "no field {nope}"),
        (["--template", "x", "--with", "blip"], "with template only"),
        (["--replace", "x"], "OLD=NEW"),
        (["--with", "no/such/folder"], "no hub id"),
    ],
)
def test_what_makes_no_sense_is_refused(
    axes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    before = (axes / "metadata.jsonl").read_bytes()
    assert run(["caption", "axe", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert (axes / "metadata.jsonl").read_bytes() == before


def test_missing_folders_are_all_named(axes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", "no", "nor", "--with", "template"]) == 2
    error = capsys.readouterr().err
    assert "no is not there" in error
    assert "nor is not there" in error


def test_lint_says_what_is_wrong_and_where(axes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", "axe", "--lint", "--trigger", "zx"]) == 1
    out = capsys.readouterr().out
    assert "empty-caption: axe/3.png has no caption." in out
    assert out.count("no-trigger") == 2
    assert "no-class-word" in out
    assert "name a CLIP" in out
    assert run(["caption", "axe", "--lint", "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = (e for e in events if e["event"] == "Found" and e["code"] == "no-class-word")
    assert found["file"].endswith("metadata.jsonl")
    assert found["line"] == 2
    write(axes, {"1": "an axe in snow", "2": "two axes by a lake", "3": "the axe of a king"})
    assert run(["caption", "axe", "--lint"]) == 0
    assert run(["caption", "axe", "--lint", "--clip", "no/clip"]) == 2
    assert "judge was not found" in capsys.readouterr().err


def test_lint_finds_swapped_captions_of_drawn_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()
    captions = {}
    for i in range(40):
        drawn = render(90_600_000 + i)
        Image.fromarray(drawn.image).save(tmp_path / "drawn" / f"{i:02d}.png")
        captions[f"{i:02d}"] = drawn.caption
    for a, b in (("03", "21"), ("10", "33")):
        captions[a], captions[b] = captions[b], captions[a]
    write(tmp_path / "drawn", captions)
    assert run(["caption", "drawn", "--lint", "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [e for e in events if e["event"] == "Found" and e["code"] == "mismatched-caption"]
    named = {Path(e["related"][0]).stem for e in found}
    assert len(named & {"03", "10", "21", "33"}) >= 3
    assert len(named - {"03", "10", "21", "33"}) <= 1
    assert all("other captions fit the picture better" in e["message"] for e in found)


def test_review_on_a_terminal(axes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter(["a", "e", "my own words", "q"])
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(answers))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert run(["caption", "axe", "--template", "a {class} no {file}", "--trigger", "zx", "--review"]) == 0
    out = capsys.readouterr().out
    assert "proposal: zx, an old axe in snow" in out
    assert "2 of 3 captions changed" in out
    assert texts(axes) == ["zx, an old axe in snow", "my own words", ""]


def test_review_through_a_sheet(axes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", "axe", "--template", "a {colour} {class}", "--review", "--sheet", "s.tsv"]) == 0
    assert "--apply s.tsv" in capsys.readouterr().out
    assert texts(axes)[2] == ""
    sheet = Path("s.tsv")
    sheet.write_text(sheet.read_text(encoding="utf-8-sig").replace("a hatchet", "an axe", 1), encoding="utf-8")
    assert run(["caption", "axe", "--apply", "s.tsv", "--dry-run"]) == 0
    assert texts(axes)[1] == "a hatchet on sand"
    assert run(["caption", "axe", "--apply", "s.tsv"]) == 0
    assert texts(axes) == ["an old axe in snow", "an axe on sand", "a red axe"]
    lines = [json.loads(line) for line in (axes / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ["caption_source" in line for line in lines] == [False, False, True]
