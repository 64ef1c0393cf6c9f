"""An archive can do no harm: what leads out, links, nests, lies about its size or is damaged is refused and said."""

from __future__ import annotations

import io
import resource
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from draw import busy
from PIL import Image

from lorasmith.dataset import archive
from lorasmith.dataset.finding import Finding


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(busy(seed, 32)).save(stream, "PNG")
    return stream.getvalue()


def unpacked(path: Path, into: Path) -> tuple[list[Finding], set[str]]:
    into.mkdir()
    found = [item for item in archive.unpack(path, into) if isinstance(item, Finding)]
    return found, {p.relative_to(into).as_posix() for p in into.rglob("*") if p.is_file()}


def make(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], deflate: bool = True) -> Path:
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return path


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def test_pictures_captions_and_metadata_are_unpacked_and_clutter_is_not(tmp_path: Path) -> None:
    members = [("axe/1.png", png()), ("axe/1.txt", b"an axe"), ("metadata.jsonl", b""), ("notes.doc", b"x")]
    members += [("__MACOSX/axe/._1.png", b"x"), (".hidden/1.png", b"x"), ("spear\\2.png", png())]
    found, files = unpacked(make(tmp_path / "set.zip", *members), tmp_path / "out")
    assert files == {"axe/1.png", "axe/1.txt", "metadata.jsonl", "spear/2.png"}
    assert [f.code for f in found] == ["unused-files"]


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "C:x.png", "..\\x.png", "\\\\host\\share\\x.png"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    found, files = unpacked(make(tmp_path / "set.zip", (name, png()), ("good.png", png())), tmp_path / "out")
    assert [f.code for f in found] == ["archive-name"]
    assert files == {"good.png"}
    assert found[0].file is not None
    assert found[0].file.is_relative_to(tmp_path / "set.zip")


def test_links_nested_archives_and_twins_are_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as opened:
        opened.writestr("1.png", png())
    members = [link("l.png", "/etc/passwd"), ("in.zip", inner.getvalue()), ("A.png", png(1)), ("a.png", png(2))]
    found, files = unpacked(make(tmp_path / "set.zip", *members, ("good.png", png())), tmp_path / "out")
    assert [f.code for f in found] == ["archive-link", "archive-nested", "archive-twice"]
    assert files == {"A.png", "good.png"}


def zeros(path: Path, size: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("good.png", png())
        with opened.open("bomb.png", "w", force_zip64=True) as stream:
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
    return path


def test_a_bomb_is_refused_by_its_size_and_by_its_ratio(tmp_path: Path) -> None:
    for number, size in enumerate((archive.MAX_MEMBER + (1 << 20), 64 << 20)):
        path = zeros(tmp_path / f"{number}.zip", size)
        found, files = unpacked(path, tmp_path / f"out{number}")
        assert [f.code for f in found] == ["archive-too-large"]
        assert files == {"good.png"}


def test_a_bomb_that_lies_about_its_size_is_cut_short(tmp_path: Path) -> None:
    path = zeros(tmp_path / "set.zip", 64 << 20)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last member in the list is the bomb
    struct.pack_into("<L", data, at + 24, 1000)
    path.write_bytes(data)
    found, files = unpacked(path, tmp_path / "out")
    assert [f.code for f in found] == ["archive-damaged"]
    assert files == {"good.png"}


def damage_crc(data: bytearray) -> None:
    at = data.find(b"IHDR")
    data[at + 5] ^= 0xFF


def encrypt(data: bytearray) -> None:
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + offset] |= 1


def odd_method(data: bytearray) -> None:
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        struct.pack_into("<H", data, data.find(signature) + offset, 77)


@pytest.mark.parametrize(
    ("harm", "code"),
    [(damage_crc, "archive-damaged"), (encrypt, "archive-encrypted"), (odd_method, "archive-damaged")],
)
def test_a_damaged_member_costs_only_itself(tmp_path: Path, harm: Callable[[bytearray], None], code: str) -> None:
    path = make(tmp_path / "set.zip", ("bad.png", png()), ("good.png", png()), deflate=False)
    data = bytearray(path.read_bytes())
    harm(data)
    path.write_bytes(data)
    found, files = unpacked(path, tmp_path / "out")
    assert ([f.code for f in found], files) == ([code], {"good.png"})


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(18) + b"x" * 70_000, b"not a zip" * 100])
def test_what_is_no_archive_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "set.zip").write_bytes(data)
    found, files = unpacked(tmp_path / "set.zip", tmp_path / "out")
    assert [f.code for f in found] == ["bad-archive"]
    assert files == set()


def test_an_endless_list_of_members_is_not_read(tmp_path: Path) -> None:
    path = make(tmp_path / "set.zip", ("1.png", png()))
    data = bytearray(path.read_bytes())
    struct.pack_into("<L", data, data.rfind(b"PK\x05\x06") + 12, 0xF0000000)
    path.write_bytes(data)
    found, _ = unpacked(path, tmp_path / "out")
    assert [f.code for f in found] == ["bad-archive"]
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20, "kilobytes"


def test_flipped_bytes_raise_nothing(tmp_path: Path) -> None:
    import random

    path = make(tmp_path / "set.zip", *((f"{i}.png", png(i)) for i in range(4)))
    whole, rng = path.read_bytes(), random.Random(0)
    for trial in range(60):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if trial % 3 == 0 else data)
        unpacked(path, tmp_path / f"out{trial}")
