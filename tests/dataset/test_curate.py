"""A curation from the outside: nothing is lost, nothing half-written, and the same plan gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from lorasmith.dataset.curate import curate, show_picture
from lorasmith.dataset.plan import Plan, load_plan
from lorasmith.dataset.read import read_dataset
from lorasmith.dataset.upright import read_picture
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Event, Finished, Note, Progress, Warned
from lorasmith.starter.renderer import render


def fill_folder(folder: Path, kind: str = "axe", count: int = 3, size: int = 96) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        drawn = render(index + 10 * len(kind), size=size, kinds=[kind], backgrounds=("plain", "sand"))
        Image.fromarray(drawn.image).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"{kind} no. {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def plan_of(folder: Path, text: str) -> Plan:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ledger_of(out: Path) -> tuple[dict, dict[str, dict]]:
    head, *lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    return head, {line["picture"]: line for line in lines}


def done(events: Iterator[Event]) -> list[Event]:
    return list(events)


EVERYTHING = """
[output]
masks = true
[crop]
subject = true
[shape]
mode = "pad"
size = 64
[background]
mode = "gradient"
[exposure]
normalise = true
[mirror]
copies = true
"""


def test_what_comes_out_is_a_data_set_with_the_captions(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe")
    before = tree(source)
    events = done(curate([source], tmp_path / "clean", plan_of(tmp_path, EVERYTHING)))
    assert tree(source) == before
    data = read_dataset([tmp_path / "clean"], strict=True)
    assert len(data.examples) == 6
    assert sorted(e.caption for e in data.examples) == sorted(f"axe no. {n}" for n in (0, 0, 1, 1, 2, 2))
    for example in data.examples:
        with Image.open(example.path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))
    names = {e.path.name for e in data.examples}
    assert {p.name for p in (tmp_path / "clean-masks").iterdir()} == names
    assert {p.name for p in (tmp_path / "clean-sheets").iterdir()} >= {"background-01.png", "shape-01.png"}
    head, lines = ledger_of(tmp_path / "clean")
    assert (head["pictures_in"], head["pictures_out"], head["excluded"], head["copies"]) == (3, 3, 0, 3)
    assert set(lines) == {"axe/0.png", "axe/1.png", "axe/2.png"}
    finished = [e for e in events if isinstance(e, Finished)]
    assert finished[-1].figures["out"] == 3
    assert [e for e in events if isinstance(e, Progress) and e.stage == "curate"][-1].done == 3
    with Image.open(tmp_path / "clean" / "0.png") as one, Image.open(tmp_path / "clean" / "0-mirror.png") as other:
        assert np.array_equal(np.array(one)[:, ::-1], np.array(other))


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe")
    plan = plan_of(tmp_path, EVERYTHING)
    for name in ("a", "b"):
        done(curate([source], tmp_path / name / "clean", plan))
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert first == second
    assert len(first) > 10


def test_every_exclusion_has_its_reason(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe", count=4)
    (source / "2.png").write_bytes((source / "1.png").read_bytes())  # the same file
    with Image.open(source / "3.png") as image:
        image.resize((144, 144)).save(source / "big.png")  # nearly the same, and larger
    (source / "broken.png").write_bytes(b"no picture")
    (source / "cut.png").write_bytes((source / "0.png").read_bytes()[:700])
    with (source / "metadata.jsonl").open("a", encoding="utf-8") as stream:
        for name in ("big", "broken", "cut"):
            stream.write(json.dumps({"file_name": f"{name}.png", "text": "an axe"}) + "\n")
    Image.new("RGB", (90, 90), "red").save(source / "unlisted.png")
    plan = plan_of(tmp_path, '[pictures."0.png"]\nskip = "not an axe"\n')
    events = done(curate([source], tmp_path / "clean", plan))
    head, lines = ledger_of(tmp_path / "clean")
    assert head["pictures_in"] == 8 == head["pictures_out"] + head["excluded"]
    reasons = {name: line["excluded"] for name, line in lines.items()}
    assert "not an axe" in reasons["axe/0.png"]
    assert reasons["axe/1.png"] is None
    assert "the same file as axe/1.png" in reasons["axe/2.png"]
    assert "is larger: 144 x 144" in reasons["axe/3.png"]
    assert "not a picture" in reasons["axe/broken.png"]
    assert "damaged" in reasons["axe/cut.png"]
    assert "no line" in reasons["axe/unlisted.png"]
    assert sum(isinstance(e, Warned) for e in events) >= 6
    assert {p.name for p in (tmp_path / "clean").glob("*.png")} == {"1.png", "big.png"}


def test_a_picture_that_shall_be_kept_is_kept(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe", count=3)
    (source / "2.png").write_bytes((source / "1.png").read_bytes())
    done(curate([source], tmp_path / "clean", plan_of(tmp_path, '[pictures."2.png"]\nkeep = true\n')))
    assert ledger_of(tmp_path / "clean")[0]["pictures_out"] == 3


def test_a_dry_run_writes_nothing_and_tells_all(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe")
    plan = plan_of(tmp_path, EVERYTHING)
    before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
    events = done(curate([source], tmp_path / "clean", plan, dry_run=True))
    assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before
    told = [e.message for e in events if isinstance(e, Note)]
    assert any(text.startswith("axe/0.png: ") and "shape" in text for text in told)
    dry = [e for e in events if isinstance(e, Finished)][-1]
    wet = [e for e in done(curate([source], tmp_path / "clean", plan)) if isinstance(e, Finished)][-1]
    assert dry.figures == wet.figures


@pytest.mark.parametrize("stop_after", ["look", "curate"])
def test_a_stop_leaves_nothing_half_written(tmp_path: Path, stop_after: str) -> None:
    source = fill_folder(tmp_path / "axe", count=6)
    before = tree(source)
    events = curate([source], tmp_path / "clean", plan_of(tmp_path, EVERYTHING))
    for event in events:
        if isinstance(event, Progress) and event.stage == stop_after and event.done >= 2:
            events.close()  # type: ignore[attr-defined] -- what Ctrl-C does to a generator
            break
    assert {p.name for p in tmp_path.iterdir()} == {"axe", "plan.toml"}
    assert tree(source) == before
    done(curate([source], tmp_path / "clean", load_plan(tmp_path / "plan.toml")))
    assert ledger_of(tmp_path / "clean")[0]["pictures_out"] == 6


def test_classes_get_folders_of_their_own(tmp_path: Path) -> None:
    fill_folder(tmp_path / "data" / "axe")
    fill_folder(tmp_path / "data" / "whip", "whip")
    done(curate([tmp_path / "data"], tmp_path / "clean", Plan()))
    data = read_dataset([tmp_path / "clean"], strict=True)
    assert data.classes == {"axe": 3, "whip": 3}
    assert {e.caption for e in data.examples if e.label == "whip"} == {"whip no. 0", "whip no. 1", "whip no. 2"}


def test_names_never_collide_and_are_safe_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "axe"
    (folder / "sub").mkdir(parents=True)
    names = ("a.png", "a.jpg", "A.bmp", "con.png", "what?*.png", "sub/a.png", "a-mirror.png")
    for number, name in enumerate(names):
        Image.fromarray(render(number, size=64).image).save(folder / name)
    plan = plan_of(tmp_path, "[duplicates]\ndrop = false\n[mirror]\ncopies = true\n")
    done(curate([folder], tmp_path / "clean", plan))
    made = [p.relative_to(tmp_path / "clean").as_posix() for p in (tmp_path / "clean").rglob("*.png")]
    assert len(made) == 2 * len(names) == len({name.lower() for name in made})
    assert not any(set('<>:"|?*') & set(name) or name.lower().startswith("con.") for name in made)


def test_transparency_is_laid_on_a_colour(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = (200, 10, 20), 255
    rgba[:, :4, 3] = 0
    rgba[10:20, 10:20, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "1.png")
    auto, how = read_picture(tmp_path / "1.png", "auto")
    assert np.abs(auto.astype(int) - (200, 10, 20)).max() <= 2
    assert how["alpha"] == "#c80a14"
    chosen, _ = read_picture(tmp_path / "1.png", "#0000ff")
    assert (chosen[:, :4] == (0, 0, 255)).all()
    assert np.abs(chosen[15, 15].astype(int) - (100, 5, 137)).max() <= 2


def test_a_colour_profile_is_applied_and_told(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # not one for RGB: cannot be applied
    Image.new("RGB", (20, 20), (10, 200, 30)).save(tmp_path / "1.png", icc_profile=profile)
    picture, how = read_picture(tmp_path / "1.png", "auto")
    assert how["profile"] == "damaged"
    assert (picture == (10, 200, 30)).all()


def test_boxes_and_masks_of_the_plan_are_filled(tmp_path: Path) -> None:
    source = tmp_path / "axe"
    source.mkdir()
    clean = render(4, size=128, backgrounds=("gradient",)).image
    damaged = clean.copy()
    cv2.putText(damaged, "x", (4, 24), 0, 0.9, (255, 0, 255), 2)
    damaged[100:110, 100:110] = (0, 255, 0)
    Image.fromarray(damaged).save(source / "1.png")
    mask = np.zeros((128, 128), np.uint8)
    mask[0:30, 0:30] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    exception = '[pictures."1.png"]\nboxes = [[99, 99, 111, 111]]\nmask = "m.png"\n'
    done(curate([source], tmp_path / "clean", plan_of(tmp_path, exception)))
    with Image.open(tmp_path / "clean" / "1.png") as image:
        result = np.array(image)
    hole = np.abs(damaged.astype(int) - clean).max(-1) > 0
    assert np.abs(result[hole].astype(int) - clean[hole]).mean() < 10
    assert ledger_of(tmp_path / "clean")[1]["axe/1.png"]["operations"][0]["how"]["mask"] == "m.png"


@pytest.mark.parametrize(
    ("exception", "words"),
    [
        ('[pictures."9.png"]\nkeep = true\n', "9.png"),
        ('[pictures."0.png"]\nboxes = [[0, 0, 500, 5]]\n', "not inside"),
        ('[pictures."0.png"]\nmask = "small.png"\n', "pixels"),
        ('[pictures."0.png"]\nmask = "none.png"\n', "none.png"),
    ],
)
def test_exceptions_that_cannot_be_are_refused_and_nothing_is_written(
    tmp_path: Path, exception: str, words: str
) -> None:
    source = fill_folder(tmp_path / "axe")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=words):
        done(curate([source], tmp_path / "clean", plan_of(tmp_path, exception)))
    assert not (tmp_path / "clean").exists()
    assert not list(tmp_path.glob(".*"))


def test_too_small_pictures_are_left_out_or_kept_as_asked(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe", count=1, size=64)
    text = '[shape]\nmode = "crop"\nsize = 256\nenlarge = 2.0\ntoo_small = "{}"\n'
    done(curate([source], tmp_path / "kept", plan_of(tmp_path, text.format("keep"))))
    with Image.open(tmp_path / "kept" / "0.png") as image:
        assert image.size == (128, 128)
    done(curate([source], tmp_path / "gone", plan_of(tmp_path, text.format("exclude"))))
    assert "4.00 times" in ledger_of(tmp_path / "gone")[1]["axe/0.png"]["excluded"]


def test_the_target_is_never_overwritten_and_never_inside_the_source(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe")
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="already there"):
        done(curate([source], tmp_path / "clean", Plan()))
    with pytest.raises(OutputError, match="inside"):
        done(curate([source], source / "clean", Plan()))
    assert (tmp_path / "clean" / "thesis.txt").read_text(encoding="utf-8") == "x"


def test_one_picture_is_shown_at_full_size(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe")
    out = tmp_path / "steps.png"
    events = done(show_picture([source], "1.png", out, plan_of(tmp_path, EVERYTHING)))
    assert isinstance(events[-1], Finished)
    with Image.open(out) as image:
        assert image.width >= 2 * 64
    with pytest.raises(DataError, match="not one of"):
        done(show_picture([source], "x.png", tmp_path / "y.png", Plan()))
    skipped = done(
        show_picture([source], "1.png", tmp_path / "y.png", plan_of(tmp_path, '[pictures."1.png"]\nskip = "bad"'))
    )
    assert any(isinstance(e, Note) and "skips it: bad" in e.message for e in skipped)


def test_a_reading_that_changes_how_a_picture_looks_has_its_sheet_and_so_have_copies(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe", count=2)
    with Image.open(source / "0.png") as image:
        layer = image.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    layer.save(source / "0.png")
    done(curate([source], tmp_path / "clean", plan_of(tmp_path, '[pictures."1.png"]\nmirror = true\n')))
    assert {p.name for p in (tmp_path / "clean-sheets").iterdir()} == {"read-01.png", "mirror-01.png"}


def test_a_subject_in_several_pieces_is_told(tmp_path: Path) -> None:
    (tmp_path / "shoe").mkdir()
    picture = np.full((128, 128, 3), 240, np.uint8)
    cv2.circle(picture, (36, 64), 18, (30, 60, 160), -1)
    Image.fromarray(picture).save(tmp_path / "shoe" / "one.png")
    cv2.circle(picture, (92, 64), 18, (30, 60, 160), -1)
    Image.fromarray(picture).save(tmp_path / "shoe" / "two.png")
    events = done(curate([tmp_path / "shoe"], tmp_path / "clean", plan_of(tmp_path, '[background]\nmode = "blur"\n')))
    told = [e.message for e in events if isinstance(e, Note) and "several pieces" in e.message]
    assert len(told) == 1 and "two.png" in told[0] and "one.png" not in told[0]


def test_jpeg_has_full_colour_and_no_profile(tmp_path: Path) -> None:
    source = fill_folder(tmp_path / "axe", count=1)
    done(curate([source], tmp_path / "clean", plan_of(tmp_path, '[output]\nformat = "jpeg"\n')))
    with Image.open(tmp_path / "clean" / "0.jpg") as image:
        assert image.format == "JPEG"
        assert image.layer[0][1:3] == image.layer[1][1:3]  # type: ignore[attr-defined] -- no subsampling
        assert "icc_profile" not in image.info
