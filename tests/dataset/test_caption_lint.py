from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasmith.dataset.caption_lint import Captioned, captions_of, holds_word, lint_captions, lint_folders, problems
from lorasmith.dataset.contents import list_contents
from lorasmith.dataset.folder import Folder
from lorasmith.dataset.tokens import token_count

AXES = Path(__file__).parents[3] / "shared" / "data" / "axe"


def captioned(*texts: str, label: str = "axe") -> list[Captioned]:
    return [Captioned(Path(f"{i}.png"), i + 1, text, label, Path("metadata.jsonl")) for i, text in enumerate(texts)]


def codes(*texts: str, **options: object) -> list[tuple[str, tuple[int, ...]]]:
    return [(p.code, p.members) for p in problems(captioned(*texts), **options)]  # type: ignore[arg-type]


def test_clean_captions_have_no_problems() -> None:
    assert codes("a red axe on sand", "an old axe beside a green bottle", "two axes, one broken, in deep snow") == []


def test_each_kind_is_found() -> None:
    assert codes("an axe", "") == [("empty-caption", (1,))]
    assert codes("a red axe!", "A red  axe") == [("identical-captions", (0, 1))]
    assert codes("an axe on snow", "a bow on sand", "an axe in a tree") == [("no-class-word", (1,))]
    assert codes("zx, an axe on snow", "the axe of zxa", trigger="zx") == [("no-trigger", (1,))]
    long = "an axe " + "very old and worn " * 20
    (problem,) = problems(captioned(long, "a new axe"))
    assert problem.code == "long-caption"
    assert f"{token_count(long)} tokens of 77" in problem.message
    assert 'cut is: "' in problem.message


def test_a_folder_that_is_no_word_is_said_once() -> None:
    found = problems(captioned("a red axe", "a bow on sand", "some key", label="train_set_3"))
    assert [(p.code, p.members) for p in found] == [("class-never-named", (0, 1, 2))]
    assert codes("a red axe", "a bow on sand", class_words=["axe", "bow"]) == []
    assert codes("a red axe", "a bow on sand", class_words={"axe": ["hatchet"]}) == [
        ("no-class-word", (0,)),
        ("no-class-word", (1,)),
    ]
    assert problems(captioned("a red thing", label="10_")) == []


@pytest.mark.parametrize(
    ("text", "word", "held"),
    [
        ("two Axes", "axe", True), ("hatchet-like axe", "axe", True), ("a taxed man", "axe", False),
        ("a battle  axe", "battle_axe", True), ("an axe for battle", "battle axe", False), ("x", "", True),
        ("c++ code", "c++", True),
    ],
)  # fmt: skip
def test_words_are_found_whole(text: str, word: str, held: bool) -> None:
    assert holds_word(text, word) is held


def test_findings_point_at_the_line_and_name_the_pictures() -> None:
    (finding,) = lint_captions(captioned("one axe", "a red axe by the sea", "A red axe, by the sea."))
    assert (finding.code, finding.file, finding.line) == ("identical-captions", Path("metadata.jsonl"), 2)
    assert finding.related == (Path("1.png"), Path("2.png"))
    assert not finding.excludes
    assert finding.fix


def test_every_alike_caption_is_in_one_group() -> None:
    texts = [f"the quite remarkable silver {w} axe from an older museum" for w in ("aa", "bb", "cc", "dd", "ee")]
    others = [f"an axe by {a} and {b}" for a in ("sand", "snow", "ice", "tea") for b in ("oak", "elm", "ash", "fir")]
    found = [p for p in problems(captioned(*texts, *others)) if p.code == "similar-captions"]
    assert sorted(i for p in found for i in p.members) == [0, 1, 2, 3, 4]


def test_folders_are_linted_with_what_reading_them_says(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).touch()
    lines = [{"file_name": "1.png", "text": "an axe on snow"}, {"file_name": "2.png", "text": ""}]
    lines.append({"file_name": "gone.png", "text": "an axe on sand"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    contents = [list_contents(Folder(tmp_path.resolve(), "axe"))]
    assert {f.code for f in lint_folders(contents)} == {"missing-file", "no-entry", "empty-caption"}
    assert [c.text for c in captions_of(contents)] == ["an axe on snow", ""]


@pytest.mark.skipif(not AXES.is_dir(), reason="the real pictures are not here")
def test_the_known_flaws_of_real_captions() -> None:
    contents = [list_contents(Folder(AXES.resolve(), "axe"))]
    found = lint_folders(contents)
    lines = (AXES / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    without = {str(json.loads(lines[f.line - 1])["file_name"]) for f in found if f.code == "no-class-word" and f.line}
    assert without == {"47.png", "62.png", "67.png", "80.png", "100.png"}
    alike = [{p.name for p in f.related} for f in found if f.code == "similar-captions"]
    assert {"78.png", "93.png"} in alike
    assert {"51.png", "84.png"} in alike
