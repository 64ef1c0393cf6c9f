from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.dataset.caption import Proposal, TemplateDescriber, caption, open_folders
from lorasmith.dataset.caption_edit import Edits
from lorasmith.dataset.caption_file import SOURCE_KEY
from lorasmith.dataset.caption_sheet import COLUMNS, read_sheet, write_sheet
from lorasmith.dataset.caption_template import parse_template
from lorasmith.dataset.contents import Listed
from lorasmith.dataset.picture import Picture
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Event, Finished, Note, Progress, Warned

PLAIN = TemplateDescriber(parse_template("a {class}[ called {file}]"))
NO_EDITS = Edits()


@dataclass
class Model:
    """Describes by number, and can be killed."""

    source: str = "some/model"
    batch: int = 2
    looks: bool = True
    cheap: bool = False
    dies_at: int = 10**9
    seen: list[str] = field(default_factory=list)

    def describe(self, listed: Sequence[Listed], pictures: Sequence[Picture | None]) -> list[str]:
        if len(self.seen) >= self.dies_at:
            raise KeyboardInterrupt
        self.seen += [x.path.name for x in listed]
        assert all(p is not None and p.shape == (8, 8, 3) for p in pictures)
        return [f"picture {x.path.stem}" for x in listed]


@pytest.fixture
def axes(tmp_path: Path) -> Path:
    folder = tmp_path / "axe"
    folder.mkdir()
    for name in ("one", "two", "three", "four", "five"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    return folder


def texts(folder: Path) -> dict[str, str]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file_name"]: entry["text"] for entry in map(json.loads, lines)}


def write(folder: Path, **captions: str) -> bytes:
    lines = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in captions.items()]
    data = ("\n".join(lines) + "\n").encode()
    (folder / "metadata.jsonl").write_bytes(data)
    return data


def figures(events: Sequence[Event]) -> dict[str, float]:
    (finished,) = (e for e in events if isinstance(e, Finished))
    return finished.figures


def test_a_template_fills_a_plain_folder(axes: Path) -> None:
    events = list(caption([axes], PLAIN, NO_EDITS))
    assert texts(axes)["two.png"] == "an axe called two"
    assert figures(events) == {"pictures": 5, "described": 5}
    progress = [e for e in events if isinstance(e, Progress)]
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (0, 5, 5)
    again = list(caption([axes], PLAIN, NO_EDITS))
    assert figures(again) == {"pictures": 5, "described": 0, "unchanged": 5}
    list(caption([axes], TemplateDescriber(parse_template("one {class}")), NO_EDITS))
    assert set(texts(axes).values()) == {"one axe"}  # what a program wrote may be written anew


def test_a_persons_caption_is_never_replaced_unless_told(axes: Path) -> None:
    before = write(axes, one="my own words", two="")
    events = list(caption([axes], PLAIN, NO_EDITS))
    assert any(isinstance(e, Note) and "1 of 5 captions" in e.message and "--overwrite" in e.message for e in events)
    assert texts(axes)["one.png"] == "my own words"
    assert texts(axes)["two.png"] == "an axe called two"
    assert (axes / "metadata.jsonl.1").read_bytes() == before
    path = axes / "metadata.jsonl"
    path.write_text(path.read_text().replace("an axe called two", "two, says a person"))
    list(caption([axes], PLAIN, NO_EDITS))
    assert texts(axes)["two.png"] == "two, says a person"
    list(caption([axes], PLAIN, NO_EDITS, overwrite=True))
    assert texts(axes)["one.png"] == "an axe called one"


def test_sidecars_count_as_a_persons(axes: Path) -> None:
    (axes / "one.txt").write_text("mine")
    list(caption([axes], PLAIN, NO_EDITS))
    assert texts(axes)["one.png"] == "mine"
    assert (axes / "one.txt").read_text() == "mine"


def test_edits_reach_every_caption_once(axes: Path) -> None:
    write(axes, one="an axe", two="zx, an axe", three="")
    edits = Edits(trigger="zx", replace=(("axe", "hatchet"),))
    events = list(caption([axes], None, edits))
    assert texts(axes) == {"one.png": "zx, an hatchet", "two.png": "zx, an hatchet", "three.png": ""}
    assert figures(events)["edited"] == 2
    assert not any(e for e in caption([axes], None, edits) if isinstance(e, Proposal))
    assert all(SOURCE_KEY not in line for line in (axes / "metadata.jsonl").read_text().splitlines())


def test_edits_say_where_there_is_nothing_to_edit(axes: Path) -> None:
    write(axes, one="a dull axe")
    events = list(caption([axes], None, Edits(trigger="zxaxe")))
    assert [e.message for e in events if isinstance(e, Warned)] == [
        "4 of 5 pictures have no caption to edit. To write them: --with template."
    ]
    assert texts(axes)["one.png"] == "zxaxe, a dull axe"


def test_a_dry_run_writes_nothing(axes: Path) -> None:
    before = write(axes, one="an axe")
    events = list(caption([axes], PLAIN, Edits(trigger="zx"), dry_run=True))
    proposals = {e.path.name: e for e in events if isinstance(e, Proposal)}
    assert proposals["one.png"].caption == "zx, an axe"
    assert proposals["one.png"].was == "an axe"
    assert proposals["two.png"].source == "template"
    assert (axes / "metadata.jsonl").read_bytes() == before
    assert not (axes / "metadata.jsonl.1").exists()


def test_a_describing_that_was_killed_goes_on_where_it_was(axes: Path) -> None:
    first = Model(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        list(caption([axes], first, NO_EDITS))
    assert first.seen == ["five.png", "four.png"]
    assert {name for name, text in texts(axes).items() if text} == {"five.png", "four.png"}
    second = Model()
    events = list(caption([axes], second, NO_EDITS))
    assert second.seen == ["one.png", "three.png", "two.png"]
    assert texts(axes) == {f"{n}.png": f"picture {n}" for n in ("five", "four", "one", "three", "two")}
    assert figures(events) == {"pictures": 5, "described": 3, "unchanged": 2}
    other = Model(source="other/model")
    list(caption([axes], other, NO_EDITS))
    assert len(other.seen) == 5


def test_pictures_that_cannot_be_read_cost_only_themselves(axes: Path) -> None:
    (axes / "two.png").write_bytes(b"no picture")
    (axes / "three.txt").write_bytes(b"\xff\xfe\xff")
    events = list(caption([axes], Model(), NO_EDITS))
    assert sum(isinstance(e, Warned) for e in events) == 2
    assert figures(events) == {"pictures": 5, "described": 3, "refused": 2}
    assert set(texts(axes).values()) == {"picture five", "picture four", "picture one", ""}
    assert "three.png" not in texts(axes)  # its unreadable caption still lies beside it
    assert all(e.total == 5 - 1 for e in events if isinstance(e, Progress))


def test_folders_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(caption([tmp_path / "no", tmp_path / "nor"], PLAIN, NO_EDITS))
    assert "no is not there" in str(caught.value)
    assert "nor is not there" in str(caught.value)


def test_a_sheet_goes_out_and_comes_back(axes: Path, tmp_path: Path) -> None:
    write(axes, one='says "hi", twice', two="two")
    contents = open_folders([axes])
    proposals = [
        Proposal(axes / "two.png", "deux", "two", ""), Proposal(axes / "three.png", "an axe", "", "template"),
        Proposal(axes / "four.png", "a fork", "", "template"),
    ]  # fmt: skip
    sheet = tmp_path / "captions.tsv"
    assert write_sheet(sheet, contents, proposals) == 3
    with pytest.raises(OutputError, match="already there"):
        write_sheet(sheet, contents, proposals)
    assert read_sheet(sheet, contents) == [proposals[2], proposals[1], proposals[0]]
    text = sheet.read_bytes().decode("utf-8-sig").replace("a fork", "four axes")
    sheet.write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match="UTF-8"):
        read_sheet(sheet, contents)
    sheet.write_text(text, encoding="utf-8")
    assert read_sheet(sheet, contents)[0] == Proposal(axes / "four.png", "four axes", "", "")  # a person's now
    sheet.write_text("\t".join(COLUMNS) + "\n/etc/passwd\tx\t\t\nshort\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 2: /etc/passwd(.|\n)*row 3: short"):
        read_sheet(sheet, contents)
    for bad in (b"", b"a\tb\n", b"\x00" * 50):
        sheet.write_bytes(bad)
        with pytest.raises(DataError):
            read_sheet(sheet, contents)
    with pytest.raises(DataError, match="cannot be read"):
        read_sheet(tmp_path / "no.tsv", contents)
