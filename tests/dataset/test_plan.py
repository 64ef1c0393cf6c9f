"""The plan of a curation: what it may say, and what is said of its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasmith.dataset.plan import Plan, choice_for, known_keys, load_plan
from lorasmith.errors import RecipeError


def plan_of(folder: Path, text: str) -> Plan:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan(path)


def test_without_a_file_there_is_the_default_plan() -> None:
    plan = load_plan(None)
    assert plan == Plan()
    assert plan.duplicates.drop and plan.clean.lines and plan.clean.text
    assert plan.background.mode == "keep" and not plan.crop.subject


def test_one_picture_may_differ_in_each_thing_and_only_there(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        '[crop]\nsubject = true\n[background]\nmode = "blur"\n[shape]\nmode = "crop"\n[exposure]\nnormalise = true\n'
        '[mirror]\ncopies = true\n[pictures."12.png"]\nbackground = "keep"\ncrop = false\nlines = false\ntext = false\n'
        'shape = "keep"\nexposure = false\nmirror = false\nboxes = [[1, 2, 3, 4]]\n',
    )
    own, other = choice_for(plan, ("axe/12.png", "12.png")), choice_for(plan, ("axe/13.png", "13.png"))
    assert (own.background, own.crop, own.lines, own.text, own.shape) == ("keep", False, False, False, "keep")
    assert (own.exposure, own.mirror, own.boxes) == (False, False, ((1, 2, 3, 4),))
    assert (other.background, other.crop, other.lines, other.text, other.shape) == ("blur", True, True, True, "crop")
    assert (other.exposure, other.mirror, other.boxes) == (True, True, ())


def test_paths_start_at_the_plans_folder(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, '[background]\nmode = "replace"\npictures = ["sky.png"]\n[pictures."1.png"]\nmask = "m.png"\n'
    )
    assert plan.background.pictures == (tmp_path / "sky.png",)
    assert plan.pictures["1.png"].mask == tmp_path / "m.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[bakground]\nmode = 'blur'\n", ("plan.toml:1", "did you mean background")),
        ("[crop]\nmargn = 0.1\n", ("plan.toml:2", "did you mean crop.margin")),
        ('[pictures."1.png"]\nbackgroud = "keep"\n', ("plan.toml:2", "did you mean pictures.NAME.background")),
        ('[background]\nmode = "blurr"\n', ("plan.toml:2", "'blurr'")),
        ('[background]\nmode = "replace"\n', ("plan.toml:1", "pictures")),
        ("[crop]\nmargin = -1\n", ("plan.toml:2", "greater than or equal to 0")),
        ('[output]\nalpha = "red"\n', ("plan.toml:2", "alpha")),
        ('[shape]\naspects = ["0:1"]\n', ("plan.toml:2", "aspects")),
        ("version = 2\n", ("plan.toml:1", "version")),
        ("[crop\n", ("TOML",)),
    ],
)
def test_mistakes_are_told_with_line_and_nearest_name(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(tmp_path, "[crop]\nmargn = 1\nsubject = 3\n[mirror]\ncopy = true\n")
    assert "3 problems" in str(caught.value)


def test_a_plan_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_plan(tmp_path / "p.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_plan(tmp_path / "none.toml")


def test_the_guide_names_every_key() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "curate.md").read_text(encoding="utf-8")
    for key in known_keys():
        assert f"`{key.rpartition('.')[2]}`" in guide, key


def test_equal_plans_have_equal_hashes(tmp_path: Path) -> None:
    assert Plan().sha256 == Plan.model_validate({}).sha256
    assert Plan().sha256 != plan_of(tmp_path, "[crop]\nsubject = true\n").sha256


def test_the_hash_is_of_the_files_that_a_plan_names_and_not_of_where_they_lie(tmp_path: Path) -> None:
    text = '[background]\nmode = "replace"\npictures = ["b.png"]\n[pictures."1.png"]\nmask = "m.png"\n'
    hashes = []
    for place, mask in (("one", b"m"), ("two", b"m"), ("three", b"n")):
        home = tmp_path / place
        home.mkdir()
        (home / "b.png").write_bytes(b"b")
        (home / "m.png").write_bytes(mask)
        hashes.append(plan_of(home, text).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
