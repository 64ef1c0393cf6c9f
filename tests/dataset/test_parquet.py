"""An ImageFolder whose captions are a Parquet table, as pyarrow and pandas write it; skipped without pyarrow."""

from __future__ import annotations

from pathlib import Path

import pytest
from draw import busy, write

from lorasmith.dataset.check import Found, Options, check
from lorasmith.dataset.read import read_dataset
from lorasmith.recipe.load import load_recipe

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COUNT = 30


def folder_of(path: Path) -> Path:
    for i in range(COUNT):
        write(path / "images" / f"{i}.png", busy(i, 64))
    return path


def found_in(tmp_path: Path, folder: Path) -> list[Found]:
    events = check([folder], tmp_path / "out", Options(load_recipe(None, overrides=["data.resolution=64"])))
    return [event for event in events if isinstance(event, Found)]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("compression", ["NONE", "SNAPPY", "ZSTD"])
def test_captions_come_from_many_row_groups(tmp_path: Path, kind: str, compression: str) -> None:
    folder = folder_of(tmp_path / "axe")
    captions = pyarrow.array([f"an axe, number {i}" for i in range(COUNT)])
    texts = captions.dictionary_encode() if kind == "dictionary" else captions.cast(getattr(pyarrow, kind)())
    columns = {
        "file_name": [f"images/{i}.png" for i in range(COUNT)],
        "text": texts,
        "boxes": [[[1, 2], [3, 4]]] * COUNT,  # what is not asked for is not read
        "score": [float("nan")] * COUNT,
    }
    table = pyarrow.table(columns)
    parquet.write_table(table, folder / "metadata.parquet", row_group_size=7, compression=compression)
    examples = read_dataset([folder]).examples
    assert sorted(e.caption for e in examples) == sorted(f"an axe, number {i}" for i in range(COUNT))
    assert not [f for f in found_in(tmp_path, folder) if f.severity == "error"]


def test_bad_rows_are_told_by_their_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "axe")
    names = [f"images/{i}.png" for i in range(COUNT)]
    names[3:7] = ["../secret.png", "/etc/passwd", "images/nowhere.png", "C:\\x.png"]
    captions = [None if i == 10 else f"an axe, number {i}" for i in range(COUNT)]
    table = pyarrow.table({"file_name": names, "text": captions})
    parquet.write_table(table, folder / "metadata.parquet", row_group_size=4)
    at = {f.line: f.code for f in found_in(tmp_path, folder) if f.line}
    assert at[4] == at[5] == at[7] == "outside-folder"
    assert at[6] == "missing-file"
    assert len([e for e in read_dataset([folder]).examples if "number" in e.caption]) == COUNT - 5


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
def test_a_damaged_table_is_a_finding(tmp_path: Path, keep: float) -> None:
    folder = folder_of(tmp_path / "axe")
    table = pyarrow.table({"file_name": [f"images/{i}.png" for i in range(COUNT)], "text": ["an axe"] * COUNT})
    path = folder / "metadata.parquet"
    parquet.write_table(table, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert "unreadable-metadata" in {f.code for f in found_in(tmp_path, folder)}
