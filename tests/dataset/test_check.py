"""The whole check: every layout, every kind of bad input, one report; nothing of the good is lost."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from draw import busy, item, two_items, write
from PIL import Image

from lorasmith.dataset.check import FINDINGS, PAGE, Found, Options, check, default_out
from lorasmith.dataset.check_page import PER_KIND
from lorasmith.dataset.finding import KINDS
from lorasmith.dataset.kinds_caption import CAPTIONS
from lorasmith.dataset.read import read_dataset
from lorasmith.dataset.reference import reference_markdown
from lorasmith.errors import DataError, OutputError
from lorasmith.events import Finished, Note, Progress
from lorasmith.recipe.load import load_recipe

AXES = Path(__file__).parents[3] / "shared" / "data" / "axe"
SMALL = load_recipe(None, overrides=["data.resolution=64"])
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def run(out: Path, *sources: Path, trigger: str = "", cache: Path | None = None) -> list[Found]:
    """Check, and hold what is always true of the result."""
    events = list(check(sources, out, Options(SMALL, trigger, cache, workers=2)))
    found = [event for event in events if isinstance(event, Found)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.files == (out / FINDINGS, out / PAGE)
    report = json.loads((out / FINDINGS).read_text(encoding="utf-8"))
    assert sorted(f["message"] for f in report["findings"]) == sorted(f.message for f in found)
    assert all(f.code in KINDS and f.severity == KINDS[f.code].severity and f.fix for f in found)
    errors = sum(f.severity == "error" for f in found)
    assert finished.figures["errors"] == errors
    left_out = sum(f.severity == "error" and KINDS[f.code].about == "picture" for f in found)
    assert report["pictures_found"] == report["pictures_usable"] + left_out
    page = (out / PAGE).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"<script|<link|<img|src=|href=|url\((?!data:)|@import", page), (
        "it needs nothing from elsewhere"
    )
    return found


def codes(found: list[Found]) -> set[str]:
    return {f.code for f in found}


def fill(folder: Path, count: int = 12, *, caption: str | None = None) -> Path:
    for i in range(count):
        write(folder / f"{i}.png", busy(i, 64))
        if caption:
            (folder / f"{i}.txt").write_text(f"{caption} {'x' * (i + 3)} {i * 7919 % 101} {'y' * (20 - i)}")
    return folder


def test_a_good_set_has_no_errors_and_no_warnings(tmp_path: Path) -> None:
    found = run(tmp_path / "out", fill(tmp_path / "axe", caption="an axe"))
    assert [f for f in found if f.severity != "info"] == []


def test_the_layouts_and_mixtures(tmp_path: Path) -> None:
    fill(tmp_path / "kohya" / "10_axe", caption="an axe")
    fill(tmp_path / "plain" / "spear", 3)
    csv = fill(tmp_path / "csv", 3)
    (csv / "metadata.csv").write_text('file_name,text\n0.png,"an axe, red"\n1.png,a "b" c\n2.png,short\n')
    mixed = fill(tmp_path / "mixed", 3)
    (mixed / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "an axe"}\n')
    (mixed / "1.caption").write_text("a spear")
    sources = [tmp_path / name for name in ("kohya", "plain", "csv", "mixed")]
    events = list(check(sources, tmp_path / "out", Options(SMALL)))
    notes = [e.message for e in events if isinstance(e, Note)]
    assert [note.split(" (")[0] for note in notes] == [
        "10_axe: 12 pictures, captions from 12 files beside the pictures, 10 repeats in kohya's scripts",
        'spear: 3 pictures, caption "spear"',
        "csv: 3 pictures, captions from metadata.csv",
        "mixed: 3 pictures, captions from metadata.jsonl and 1 file beside the pictures",
    ]
    found = {e.code: e for e in events if isinstance(e, Found)}
    assert {"repeats", "mixed-captions", "no-entry", "no-captions", "class-balance", "too-few"} <= set(found)
    assert read_dataset([csv]).examples[0].caption == "an axe, red"
    assert [e.caption for e in read_dataset([mixed]).examples] == ["an axe", "a spear"]


def test_bad_lines_of_a_csv_cost_only_themselves(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 4)
    lines = ["file_name;text", "0.png;first", '1.png;"never closed', "2.png;too;many", "../x.png;out", "9.png;gone"]
    data = "\n".join(lines).encode() + b"\n2.png;gr\xfc\xdfe\n3.png;last\n" + b"x" * (1 << 21) + b"\n2.png;two\n"
    (folder / "metadata.csv").write_bytes(data)
    found = [f for f in run(tmp_path / "out", folder) if f.line]
    assert [(f.line, f.code) for f in found if f.severity == "error"] == [
        (3, "bad-csv"),
        (4, "bad-csv"),
        (5, "outside-folder"),
        (6, "missing-file"),
        (7, "not-utf8"),
        (9, "line-too-long"),
    ]
    assert [e.caption for e in read_dataset([folder]).examples] == ["first", "two", "last"]


def test_parquet_is_read_with_pyarrow_and_explained_without(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 2)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        (folder / "metadata.parquet").write_bytes(b"PAR1")
        (found,) = (f for f in run(tmp_path / "out", folder) if f.code == "unread-metadata")
        assert "pip install pyarrow" in found.message
        return
    table = pyarrow.table({"file_name": ["0.png", "1.png", "../x.png"], "text": ["an axe", None, "no"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, folder / "metadata.parquet")
    found = run(tmp_path / "out", folder)
    assert {"outside-folder", "empty-caption"} <= codes(found)
    assert [e.caption for e in read_dataset([folder]).examples] == ["an axe", "axe"]
    (folder / "metadata.parquet").write_bytes(b"PAR1 damaged PAR1")
    assert "unreadable-metadata" in codes(run(tmp_path / "out", folder))


def test_what_only_shows_when_all_are_compared(tmp_path: Path) -> None:
    axe = fill(tmp_path / "axe", 40, caption="an axe")
    (axe / "copy.png").write_bytes((axe / "3.png").read_bytes())
    write(axe / "near.jpg", busy(4, 64), quality=70)
    write(axe / "mirror.png", np.ascontiguousarray(busy(5, 64)[:, ::-1]))
    write(axe / "AXE.png", busy(50, 64))
    write(axe / "Axe.png", busy(51, 64))
    (axe / "alone.txt").write_text("no picture")
    found = {f.code: f for f in run(tmp_path / "out", axe)}
    assert {found["near-duplicates"].file, *found["near-duplicates"].related} == {axe / "4.png", axe / "near.jpg"}
    assert found["mirrored-duplicates"].related == (axe / "5.png",)
    assert found["duplicate-picture"].file == axe / "copy.png"
    assert found["caption-without-picture"].file == axe / "alone.txt"
    if sys.platform == "linux":
        assert found["case-clash"].file == axe / "AXE.png"


def test_a_held_out_picture_that_is_trained_on_too(tmp_path: Path) -> None:
    axe = fill(tmp_path / "axe", 20, caption="an axe")
    for i in range(20):
        write(axe / f"near{i}.jpg", busy(i, 64), quality=80)
    found = [f for f in run(tmp_path / "out", axe) if f.code == "held-out-duplicates"]
    assert found
    assert all(f.related for f in found)
    assert "held-out-duplicates" not in codes(run(tmp_path / "out", fill(tmp_path / "clean", 20, caption="clean")))


def test_captions_too(tmp_path: Path) -> None:
    axe = fill(tmp_path / "axe", 12, caption="an axe")
    (axe / "0.txt").write_text("axe " * 90)
    (axe / "1.txt").write_text("a thing of beauty")
    for i in (2, 3):
        (axe / f"{i}.txt").write_text("one axe with a brown wooden handle")
    (axe / "4.txt").write_text("one axe with a black wooden handle")
    (axe / "5.txt").write_text("")
    found = run(tmp_path / "out", axe, trigger="axe")
    wanted = {"long-caption", "no-class-word", "no-trigger", "identical-captions", "similar-captions", "empty-caption"}
    assert wanted <= codes(found)
    (trigger,) = (f for f in found if f.code == "no-trigger")
    assert trigger.related == (axe / "1.png",)
    assert set(CAPTIONS) <= set(KINDS)


def test_low_variety_names_the_pictures(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / "axe" / f"{i}.png", item(i))
    (found,) = (f for f in run(tmp_path / "out", tmp_path / "axe") if f.code == "low-variety" and "back" in f.message)
    assert len(found.related) == 6
    assert "plain-backgrounds" in codes(run(tmp_path / "out", tmp_path / "axe"))


def junk(folder: Path) -> set[str]:
    """Write files that are bad in every way a single file can be; return their names."""
    rng = random.Random(0)
    good = folder / "good.png"
    whole = good.read_bytes()
    files: dict[str, bytes] = {
        "empty.png": b"",
        "text.jpg": b"hello" * 50,
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:33],
        "phone.heic": b"\0\0\0\x18ftypheic",
        "noise.webp": b"RIFF\x40\0\0\0WEBPVP8 " + rng.randbytes(200),
        "script.svg": b"<svg onload='x'/>",
    }
    bomb = bytearray(whole[:33])
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    files["bomb.png"] = bytes(bomb)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {*files, "moving.gif"}


def test_junk_becomes_findings_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "axe"
    write(folder / "good.png", busy(0, 64))
    names = junk(folder)
    lines = [json.dumps({"file_name": name, "text": f"an axe {name}"}) for name in sorted({*names, "good.png"})]
    bad = ["{", '{"file_name": "https://x.org/1.png", "text": "a"}', '{"file_name": "a", "file_name": "good.png"}']
    bad += ['{"file_name": "\\\\\\\\h\\\\s\\\\1.png", "text": "a"}', "\0\0", "x" * (1 << 21)]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, *bad]), encoding="utf-8")
    found = run(tmp_path / "out", folder)
    assert {
        f.file.name for f in found if f.file and KINDS[f.code].about == "picture" and f.severity == "error"
    } == names
    at = {f.line: f.code for f in found if f.line and f.severity == "error"}
    first = len(lines) + 1
    expected = ["bad-json", "outside-folder", "duplicate-entry", "outside-folder", "bad-json", "line-too-long"]
    assert [at[first + i] for i in range(6)] == expected
    assert "duplicate-key" in codes(found)


def test_pictures_of_hardly_any_pixels(tmp_path: Path) -> None:
    for width, height in ((1, 1), (2, 2), (1, 3000), (3000, 1), (3, 2)):
        write(tmp_path / "axe" / f"{width}x{height}.png", np.full((height, width, 3), 90, np.uint8))
    found = run(tmp_path / "out", tmp_path / "axe")
    assert sum(f.code == "too-small" for f in found) == 5
    assert not [f for f in found if f.severity == "error"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode here")
def test_a_name_that_is_not_unicode_is_found_and_written(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 2)
    (folder / "0.png").rename(os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.png"))
    found = run(tmp_path / "out", folder)
    assert "file-name" in codes(found)
    report = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))
    assert any(os.fsencode(f["file"] or "").endswith(b"latin-\xe9.png") for f in report["findings"])


@needs_links
def test_links(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 2)
    write(tmp_path / "secret.png", busy(9, 64))
    for name, target in {"out": "../secret.png", "in": "0.png", "gone": "nope.png", "loop": "loop.png"}.items():
        (folder / f"{name}.png").symlink_to(target)
    (folder / "sub").symlink_to(folder)
    found = {f.file.name: f.code for f in run(tmp_path / "out", folder) if f.file and f.file.suffix == ".png"}
    expected = {
        "out.png": "link-outside",
        "in.png": "link",
        "gone.png": "unreadable-file",
        "loop.png": "unreadable-file",
    }
    assert expected.items() <= found.items()


def test_folders_that_cannot_be_used_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    good = fill(tmp_path / "axe", 2)
    found = run(tmp_path / "out", tmp_path / "nowhere", tmp_path / "empty", good)
    assert {"missing-folder", "no-pictures"} <= codes(found)
    assert json.loads((tmp_path / "out" / FINDINGS).read_text())["pictures_usable"] == 2


def test_an_archive_is_checked_under_its_own_name_and_leaves_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 3, caption="an axe")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(folder.iterdir()):
            opened.write(file, f"axe/{file.name}")
        opened.writestr("axe/bad.png", b"nothing")
        opened.writestr("../evil.png", b"nothing")
    found = run(tmp_path / "out", path)
    assert {(f.code, f.file) for f in found if f.severity == "error"} == {
        ("archive-name", path / "../evil.png"),
        ("not-a-picture", path / "axe" / "bad.png"),
    }
    everything = (tmp_path / "out" / FINDINGS).read_text() + "".join(f.message for f in found)
    assert "lorasmith-" not in everything.replace("lorasmith-check", ""), "the temporary folder shows"
    (tmp_path / "broken.zip").write_bytes(b"PK")
    assert [f.code for f in run(tmp_path / "out", tmp_path / "broken.zip")] == ["bad-archive"]


def test_a_second_run_reads_the_cache_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = fill(tmp_path / "axe"), tmp_path / "cache" / "check.sqlite"
    first = run(tmp_path / "out", folder, cache=cache)
    page = (tmp_path / "out" / PAGE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("lorasmith.dataset.lookers.see", None)  # nothing is looked at again
        assert run(tmp_path / "out", folder, cache=cache) == first
    assert (tmp_path / "out" / PAGE).read_bytes() == page
    write(folder / "0.png", busy(77, 32))
    assert run(tmp_path / "out", folder, cache=cache) != first
    cache.write_bytes(b"no database" * 1000)
    assert "too-small" in codes(run(tmp_path / "out", folder, cache=cache))


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 14)
    write(folder / "item.jpg", item(side=300))
    write(folder / "two.png", two_items())
    (folder / "bad.png").write_bytes(b"nothing")
    results = []
    for workers in (1, 2, 7):
        out = tmp_path / "out"
        events = list(check([folder], out, Options(SMALL, workers=workers)))
        results.append((events, (out / FINDINGS).read_bytes(), (out / PAGE).read_bytes()))
    assert results[0] == results[1] == results[2]


def test_the_page_holds_what_it_says_and_escapes(tmp_path: Path) -> None:
    folder = tmp_path / "axe"
    for i in range(PER_KIND + 5):
        write(folder / f"{i} & <b>.png" if sys.platform != "win32" else folder / f"{i} &.png", busy(i, 32))
    run(tmp_path / "out", folder)
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "5 more are in findings.json" in page
    assert "<b>.png" not in page
    assert page.count("data:image/jpeg") == len(set(page.split("data:image/jpeg;base64,")[1:]))


def test_progress_counts_every_picture_and_stopping_keeps_the_cache(tmp_path: Path) -> None:
    folder, cache = fill(tmp_path / "axe"), tmp_path / "check.sqlite"
    events = check([folder], tmp_path / "out", Options(SMALL, cache=cache, workers=1))
    for event in events:
        if event == Progress("look", 5, 12):
            break
    events.close()  # type: ignore[attr-defined]
    import sqlite3

    assert sqlite3.connect(cache).execute("select count(*) from seen").fetchone()[0] >= 5


def test_results_never_go_into_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "axe", 1)
    with pytest.raises(OutputError, match="cannot lie in the data"):
        next(iter(check([folder], folder / "out", Options(SMALL))))
    with pytest.raises(DataError, match="No folder"):
        next(iter(check([], tmp_path / "out", Options(SMALL))))
    monkeypatch.chdir(folder)
    assert default_out([folder]) == tmp_path / "lorasmith-check"
    monkeypatch.chdir(tmp_path)
    assert default_out([folder]) == tmp_path / "lorasmith-check"


def test_torch_is_never_imported(tmp_path: Path) -> None:
    folder = fill(tmp_path / "axe", 2, caption="an axe")
    code = (
        "import sys; from lorasmith.cli.main import run; "
        f"code = run(['check', {str(folder)!r}, '--out', {str(tmp_path / 'out')!r}, '--no-cache']); "
        "heavy = {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules); "
        "sys.exit(3 if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_reference_page_is_made_from_the_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "check.md"
    remake = "remake it: python -m lorasmith.dataset.reference docs/check.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(), remake
    assert all(f"`{code}`" in reference_markdown() for code in KINDS)


@pytest.mark.slow
@pytest.mark.skipif(not AXES.is_dir(), reason="the real photos are not here")
def test_the_known_flaws_of_the_real_photos_are_found(tmp_path: Path) -> None:
    events = check([AXES], tmp_path / "out", Options(load_recipe(None), workers=2))
    found = [event for event in events if isinstance(event, Found)]
    files: dict[str, set[str]] = {}
    for each in found:
        paths = {path.name for path in (each.file, *each.related) if path is not None}
        files.setdefault(each.code, set()).update(paths)
    assert files["wrong-suffix"] == {"15.png", "16.png", "17.png"}
    assert files["alpha-used"] == {"22.png"}
    assert len(files["alpha-unused"]) == 47
    assert "62.png" in files["no-class-word"]
    assert files["several-subjects"] == {"50.png"}
    assert {"28.png", "47.png", "49.png", "50.png", "85.png", "87.png"} <= files["cut-by-frame"]
    assert len([f for f in found if f.code == "similar-captions"]) >= 5
    clean = {"blurred", "over-exposed", "under-exposed", "too-small", "near-duplicates", "mirrored-duplicates"}
    assert not clean & set(files)
    assert not any(f.severity == "error" for f in found)
