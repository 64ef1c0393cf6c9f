"""Files from strangers: each is refused with the reason, in little time and memory, and nothing of it is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.errors import ModelError
from lorasmith.model.checkpoint_file import open_checkpoint

from . import hostile

PICKLES = hostile.pickles("touch CANARY")
BOMBS = hostile.bombs()
Entry, PROTO, text, name = hostile.Entry, hostile.PROTO, hostile.text, hostile.name


def in_zip(pickled: bytes) -> bytes:
    return bytes(hostile.zip_file(hostile.checkpoint_entries(pickled)))


def in_legacy(pickled: bytes) -> bytes:
    return bytes(hostile.LEGACY + pickled)


def refused(path: Path, data: bytes, said: str = "") -> ModelError:
    """Assert that a file is refused with these words, unchanged, within the bounds of time and memory."""
    path.write_bytes(data)
    before = path.stat()
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(ModelError) as caught:
            open_checkpoint(path)
        _, peak = tracemalloc.get_traced_memory()
        spent = time.process_time() - started
    finally:
        tracemalloc.stop()
    error = caught.value
    assert said in error.what, error
    assert str(path) in (error.where or "")
    assert error.fix
    assert {c for c in str(error) if not c.isprintable()} <= {"\n"}
    assert path.read_bytes() == data
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert peak < 200 << 20
    assert spent < 5  # tracing makes Python several times slower; test_bombs holds the bound without it
    return error


@pytest.mark.parametrize("layout", [in_zip, in_legacy, bytes])
@pytest.mark.parametrize("attack", PICKLES)
def test_hostile_pickles(attack: str, layout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, said = PICKLES[attack]
    error = refused(tmp_path / "model.ckpt", layout(data), said)
    assert not (tmp_path / "CANARY").exists()
    if said and said != "other than one value":
        assert "byte " in (error.where or "")


def test_the_hostile_pickles_are_live(tmp_path: Path) -> None:
    """What is refused above does harm where Python itself reads it; else the canary would prove nothing."""
    live = ["os.system", "posix.system", "builtins.eval", "builtins.exec", "__builtin__.eval", "subprocess.getoutput"]
    live += ["stack global", "stack global from the memo", "stack global after mark", "inst", "obj", "protocol 0"]
    live += ["harm before a broken end", "harm thrown away", "harm in the weights", "harm and no end", "text memo"]
    for number, attack in enumerate(live):
        (tmp_path / f"{number}.pkl").write_bytes(hostile.pickles(f"touch {number}.canary")[attack][0])
    script = "import pathlib, pickle, contextlib\nfor p in sorted(pathlib.Path().glob('*.pkl')):\n"
    script += "    with contextlib.suppress(Exception): pickle.loads(p.read_bytes())\n"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert [a for n, a in enumerate(live) if not (tmp_path / f"{n}.canary").exists()] == []
    assert len(PICKLES) > 80


def test_the_place_of_a_global_is_named(tmp_path: Path) -> None:
    data = in_zip(PROTO + b"}" + text("a") + name("os", "system") + b"s.")
    error = refused(tmp_path / "x.ckpt", data, "asks for os.system")
    assert error.where == f"{tmp_path / 'x.ckpt'}: a/data.pkl, byte 9"
    assert "Nothing in the file was run" in error.what
    legacy = in_legacy(PROTO + name("os", "system") + b".")
    place = legacy.index(b"cos\n")
    assert refused(tmp_path / "x.ckpt", legacy).where == f"{tmp_path / 'x.ckpt'}, byte {place}"


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs the system's count of memory")
    path = tmp_path / "x.ckpt"
    path.write_bytes(in_zip(BOMBS[bomb]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(ModelError):
        open_checkpoint(path)
    assert time.process_time() - started < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10


def test_what_a_tensor_says_must_fit_its_storage(tmp_path: Path) -> None:
    huge = b"\x8a\x08" + struct.pack("<q", 1 << 40) + b"\x85"
    negative = b"J\xff\xff\xff\xff\x85"
    for said, tensor in [
        ("another size than the file says", hostile.tensor(numel=5)),
        ("another size than the file says", hostile.tensor(numel=1 << 40)),
        ("not a possible number", hostile.tensor(numel=-4)),
        ("is not in the file", hostile.tensor(key="1")),
        ("is not in the file", hostile.tensor(key="../version")),
        ("reaches beyond its storage", hostile.tensor(offset=1)),
        ("reaches beyond its storage", hostile.tensor(shape=huge)),
        ("reaches beyond its storage", hostile.tensor(stride=b"K\2\x85")),
        ("not a possible number", hostile.tensor(offset=-1)),
        ("not a possible number", hostile.tensor(shape=negative)),
        ("not a possible number", hostile.tensor(stride=negative)),
        ("not a possible number", hostile.tensor(shape=b"\x88\x85")),
        ("differ in length", hostile.tensor(stride=b")")),
        ("not a short row", hostile.tensor(shape=b"(" + b"K\1" * 99 + b"t")),
        ("many times its own size", hostile.tensor(shape=huge, stride=b"K\0\x85")),
    ]:
        refused(tmp_path / "x.ckpt", in_zip(PROTO + b"}" + text("w") + tensor + b"s."), said)


def test_what_holds_no_named_weights(tmp_path: Path) -> None:
    for said, pickled in [
        ("no list of named weights", hostile.tensor()),
        ("no list of named weights", b"](" + hostile.tensor() + b"e"),
        ("no weights by name; it holds nothing", b"}"),
        ("it holds a", b"}" + text("a") + b"K\1s"),
        ("names something twice", b"}(" + (text("w") + hostile.tensor()) * 2 + b"u"),
        ("no list of named weights", hostile.called(name("collections", "OrderedDict"), b"](K\1K\2e")),
        ("no weights", b"}" + text("\x1b[2J\n") + b"K\1s"),
        ("no weights", b"}q\0" + text("state_dict") + b"h\0s"),
    ]:
        refused(tmp_path / "x.ckpt", in_zip(PROTO + pickled + b"."), said)


def entries(*changes: tuple[int, str, Any]) -> list[Any]:
    """Return an honest checkpoint's entries with some of their fields changed."""
    result = hostile.checkpoint_entries()
    for index, field, value in changes:
        setattr(result[index], field, value)
    return list(result)


ZIPS: dict[str, tuple[bytes, str]] = {
    "absolute": (hostile.zip_file([*entries(), Entry("/etc/passwd", b"x")]), "leaves its folder"),
    "upwards": (hostile.zip_file([*entries(), Entry("a/../../b", b"x")]), "leaves its folder"),
    "backslash": (hostile.zip_file([*entries(), Entry("a\\..\\b", b"x")]), "leaves its folder"),
    "drive": (hostile.zip_file([*entries(), Entry("a/C:b", b"x")]), "leaves its folder"),
    "control": (hostile.zip_file([*entries(), Entry("a/\x1b[2J", b"x")]), "leaves its folder"),
    "compressed": (hostile.zip_file(entries((1, "method", 8))), "compressed"),
    "bomb": (hostile.zip_file(entries((1, "method", 8), (1, "size", 1 << 31), (1, "packed", 16))), "compressed"),
    "unequal": (hostile.zip_file(entries((1, "packed", 15))), "compressed"),
    "encrypted": (hostile.zip_file(entries((1, "flags", 1))), "encrypted"),
    "overlapping": (hostile.zip_file(entries((2, "header", 40))), "overlaps"),
    "twice in one place": (hostile.zip_file([*entries(), Entry("a/data/1", b"", header=0)]), "overlaps"),
    "duplicate": (hostile.zip_file([*entries(), *entries()[:1]]), "twice"),
    "hidden": (hostile.zip_file(entries((1, "gap", b"hidden"))), "hidden bytes"),
    "in front": (hostile.zip_file(entries((0, "gap", b"MZ"))), "no file of weights"),
    "behind": (hostile.zip_file(entries(), behind=b"PK\3\4"), "cut off"),
    "comment": (hostile.zip_file(entries(), comment=b"hello"), "cut off"),
    "two names": (hostile.zip_file(entries((0, "local_name", "a/dato.pkl"))), "contradict"),
    "long name": (hostile.zip_file(entries((0, "local_name", "a/data.pkl.x"))), "contradict"),
    "too far": (hostile.zip_file(entries((1, "size", 1 << 20))), "beyond its end"),
    "far header": (hostile.zip_file(entries((1, "header", 1 << 31))), "hidden bytes"),
    "zip64 in nothing": (hostile.zip_file(entries((1, "size", 0xFFFFFFFF))), "beyond its end"),
    "zip64 far": (
        hostile.zip_file(entries((1, "size", 0xFFFFFFFF), (1, "extra", struct.pack("<2H2Q", 1, 16, 1 << 60, 1 << 60)))),
        "beyond its end",
    ),
    "many claimed": (hostile.zip_file(entries(), count=60_000), "claims 60,000"),
    "few claimed": (hostile.zip_file(entries(), count=2), "longer than it says"),
    "more claimed": (hostile.zip_file(entries(), count=4), "cut off"),
    "no pickle": (hostile.zip_file(entries()[1:]), "not a checkpoint"),
    "pickle by another name": (hostile.zip_file(entries((0, "name", "a/archive.pkl"))), "not a checkpoint"),
    "two folders": (hostile.zip_file([*entries(), Entry("b/data.pkl", b"x")]), "not a checkpoint"),
    "second pickle": (hostile.zip_file([*entries(), Entry("a/extra.pkl", b"x")]), "no part of a checkpoint"),
    "an archive in it": (hostile.zip_file([Entry("a/model.ckpt", hostile.zip_file(entries()))]), "not a checkpoint"),
    "an archive beside": (hostile.zip_file([*entries(), Entry("a/b.zip", b"PK")]), "no part of a checkpoint"),
    "program": (hostile.zip_file([*entries(), Entry("a/code/__torch__.py", b"x")]), "TorchScript"),
    "big-endian": (hostile.zip_file([*entries(), Entry("a/byteorder", b"big")]), "big-endian"),
    "empty": (hostile.zip_file([]), "not a checkpoint"),
    "behind the pickle": (in_zip(PROTO + b"}" + text("w") + hostile.tensor() + b"s." + PROTO + b"N."), "hidden behind"),
}


def test_the_honest_zip_of_these_tests_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(hostile.zip_file(entries()))
    assert open_checkpoint(path).read("w").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("attack", ZIPS)
def test_hostile_zips(attack: str, tmp_path: Path) -> None:
    data, said = ZIPS[attack]
    refused(tmp_path / "x.ckpt", data, said)


def test_a_directory_of_many_members(tmp_path: Path) -> None:
    many = b"".join(
        b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, 5, 0) + b"%05d" % n for n in range(65_000)
    )
    directory = b"PK\1\2" + bytes(42) + b"00000"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_000, 65_000, len(directory) * 65_000, len(many), 0)
    refused(tmp_path / "x.ckpt", many + directory * 65_000 + end, "claims 65,000")


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(layout: str, tmp_path: Path) -> None:
    """Wherever a file is cut, opening says so; no cut is taken for a whole file."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    weights = {"w": torch.ones(40), "v": torch.ones(3)}
    if layout == "safetensors":
        save_file(weights, whole)
    else:
        torch.save(weights, whole, _use_new_zipfile_serialization=layout == "zip")
    data = whole.read_bytes()
    open_checkpoint(whole)
    for size in range(0, len(data), 5):
        cut.write_bytes(data[:size])
        with pytest.raises(ModelError):
            open_checkpoint(cut)


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_changed_byte_never_escapes(layout: str, tmp_path: Path) -> None:
    """Whatever a byte is changed to, the file opens or is refused; no other error, and no read outside of it."""
    path = tmp_path / "x"
    weights = {"w": torch.ones(4), "v": torch.ones(2, dtype=torch.int64)}
    if layout == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 1}, path, _use_new_zipfile_serialization=layout == "zip")
    data = path.read_bytes()
    random = torch.Generator().manual_seed(5)
    for place in range(0, len(data), 3):
        value = int(torch.randint(256, (1,), generator=random))
        path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        try:
            checkpoint = open_checkpoint(path)
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)
        except ModelError:
            pass


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int = 0, end: int = 4, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "lying header": (safetensors({"a": entry()}, bytes(4), length=10_000), "claims 10,000 bytes"),
    "header of 2^63": (safetensors({"a": entry()}, bytes(4), length=1 << 63), ""),
    "header of 0": (safetensors(b"{", length=0), "damaged"),
    "no JSON": (safetensors(b"{nonsense}"), "not the JSON"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not the JSON"),
    "deep": (safetensors(b'{"a":' * 100_000 + b"}" * 100_000), ""),
    "many brackets": (safetensors(b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"), "far more than any model"),
    "unclosed texts": (safetensors(b"{" + b'"a\\' * 2_000_000), ""),
    "not an object": (safetensors(b"{}  x"), "not the JSON"),
    "duplicate tensor": (
        safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
        '"a" twice',
    ),
    "duplicate field": (safetensors(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "twice"),
    "NaN": (safetensors(b'{"a":NaN}'), "holds NaN"),
    "overlapping": (safetensors({"a": entry(), "b": entry(2, 6)}, bytes(6)), "overlaps"),
    "same place": (safetensors({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
    "gap": (safetensors({"a": entry(), "b": entry(6, 10)}, bytes(10)), "unexplained bytes before"),
    "out of range": (safetensors({"a": entry()}, bytes(3)), "1 bytes are missing"),
    "behind": (safetensors({"a": entry()}, bytes(9)), "5 bytes are unexplained"),
    "negative": (safetensors({"a": entry(-4, 0)}, bytes(4)), "not a possible number"),
    "backwards": (safetensors({"a": entry(4, 0)}, bytes(4)), "not as long"),
    "wrong length": (safetensors({"a": entry(0, 8)}, bytes(8)), "not as long"),
    "shape overflows": (safetensors({"a": entry(0, 4, (1 << 40, 1 << 40, 1 << 40))}, bytes(4)), "not as long"),
    "shape of text": (safetensors({"a": entry(0, 4, ("1",))}, bytes(4)), "not a possible number"),
    "shape of truth": (safetensors({"a": entry(0, 4, (True,))}, bytes(4)), "not a possible number"),
    "shape of halves": (safetensors({"a": entry(0, 4, (1.0,))}, bytes(4)), "not a possible number"),
    "shape too long": (safetensors({"a": entry(0, 4, (1,) * 99)}, bytes(4)), "not a short list"),
    "unknown dtype": (safetensors({"a": entry(0, 4, (1,), "F33")}, bytes(4)), 'unknown dtype "F33"'),
    "dtype of torch": (safetensors({"a": entry(0, 4, (1,), "float32")}, bytes(4)), "unknown dtype"),
    "dtype of nothing": (safetensors({"a": entry(0, 4, (1,), None)}, bytes(4)), "unknown dtype"),
    "no place": (safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "lacks its dtype"),
    "more": (safetensors({"a": {**entry(), "code": "x"}}, bytes(4)), "more than these"),
    "a number": (safetensors({"a": 1}), "lacks its dtype"),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}}), "not text"),
    "metadata of text": (safetensors({"__metadata__": "a"}), "not text"),
    "huge number": (safetensors(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,4]}}' % (b"9" * 5000)), ""),
}


@pytest.mark.parametrize("attack", SAFETENSORS)
def test_hostile_safetensors(attack: str, tmp_path: Path) -> None:
    data, said = SAFETENSORS[attack]
    refused(tmp_path / "x.safetensors", data, said)


def test_a_header_of_100_mb(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_000) + b'{"a":')
        stream.truncate(100_000_008)
    started = time.process_time()
    with pytest.raises(ModelError, match="100,000,000 bytes long"):
        open_checkpoint(path)
    assert time.process_time() - started < 0.5


PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265146304\n"
OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (bytes(5000), "blank"),
    "short": (b"\x80", "cut off"),
    "lfs": (POINTER, "git-lfs pointer"),
    "page": (PAGE, "web page"),
    "page with a mark": (b"\xef\xbb\xbf" + PAGE, "web page"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "no file of weights"),
    "json": (b'{"error": "not found"}', "no file of weights"),
    "gguf": (b"GGUF" + bytes(100), "no file of weights"),
    "plain pickle": (pickle.dumps({"a": 1}, protocol=2), "none that torch wrote"),
    "future torch": (hostile.MAGIC + PROTO + b"M\xff\xff.", "unknown version"),
    "big-endian": (hostile.MAGIC + PROTO + b"M\xe9\x03." + PROTO + b"}.", "little-endian"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files(kind: str, suffix: str, tmp_path: Path) -> None:
    data, said = OTHERS[kind]
    refused(tmp_path / f"x.{suffix}", data, said)


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a folder"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        open_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ModelError, match="cannot be read"):
        open_checkpoint(tmp_path / "a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelError, match="no plain file"):
            open_checkpoint(tmp_path / "pipe")


def legacy_weights(root: bytes, keys: bytes, storages: bytes) -> bytes:
    return bytes(hostile.LEGACY + PROTO + root + b"." + PROTO + keys + b"." + storages)


def test_hostile_legacy_files(tmp_path: Path) -> None:
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04%btQ"
    rest = (b"K\0", b"K\x04\x85", b"K\1\x85", b"\x89", b"N")

    def root(view: bytes) -> bytes:
        return bytes(
            b"}" + text("w") + hostile.called(name("torch._utils", "_rebuild_tensor_v2"), storage % view, *rest) + b"s"
        )

    keys, data = b"](" + text("0") + b"e", struct.pack("<q4f", 4, 1, 2, 3, 4)
    path = tmp_path / "x.pt"
    path.write_bytes(legacy_weights(root(b"N"), keys, data))
    assert open_checkpoint(path).read("w").tolist() == [1, 2, 3, 4]
    beyond = b"(" + text("v") + b"K\x02K\x03t"
    for said, file in [
        ("not those that it lists", legacy_weights(root(b"N"), b"]", data)),
        ("not those that it lists", legacy_weights(root(b"N"), b"](" + text("0") * 2 + b"e", data)),
        ("not those that it lists", legacy_weights(root(b"N"), b"](K\0e", data)),
        ("another size", legacy_weights(root(b"N"), keys, struct.pack("<q4f", 5, 1, 2, 3, 4))),
        ("another size", legacy_weights(root(b"N"), keys, struct.pack("<q4f", -4, 1, 2, 3, 4))),
        ("are missing", legacy_weights(root(b"N"), keys, data[:-1])),
        ("unexplained bytes", legacy_weights(root(b"N"), keys, data + b"x")),
        ("beyond its storage", legacy_weights(root(beyond), keys, data)),
        ("wrong kinds", legacy_weights(root(b"K\1"), keys, data)),
        ("asks for os.system", legacy_weights(root(b"N"), name("os", "system"), data)),
    ]:
        refused(path, file, said)


def test_hostile_tar_files(tmp_path: Path) -> None:
    def tar(members: dict[str, bytes], kind: bytes = b"0") -> bytes:
        result = b""
        for label, data in members.items():
            header = bytearray(512)
            header[: len(label)] = label.encode()
            header[124:136] = b"%011o\0" % len(data)
            header[148:156] = b" " * 8
            header[156:157] = kind
            header[257:265] = b"ustar  \0"
            header[148:156] = b"%06o\0 " % sum(header)
            result += bytes(header) + data + bytes(-len(data) % 512)
        return result + bytes(1024)

    info = PROTO + b"}" + text("little_endian") + b"\x88s."
    none = PROTO + b"K\0."
    parts = {"sys_info": info, "storages": none + PROTO + b"].", "tensors": none, "pickle": PROTO + b"}."}
    for said, data in [
        ("no weights by name", tar(parts)),
        ("asks for os.system", tar({**parts, "pickle": PICKLES["os.system"][0]})),
        ("asks for os.system", tar({**parts, "storages": PICKLES["os.system"][0]})),
        ("asks for os.system", tar({**parts, "sys_info": PICKLES["os.system"][0]})),
        ("not that of a tensor", tar({**parts, "pickle": PROTO + text("1") + b"Q."})),
        ("no part of a checkpoint", tar({"../pickle": b"", **parts})),
        ("no part of a checkpoint", tar({"/etc/passwd": b"", **parts})),
        ("no part of a checkpoint", tar(parts, kind=b"2")),
        ("it has no tensors", tar({k: v for k, v in parts.items() if k != "tensors"})),
        ("cut off", tar(parts)[:1700]),
        ("wrong kinds", tar({**parts, "storages": PROTO + b"K\1." + PROTO + b"K\1NN\x87." + bytes(8)})),
        (
            "not a possible number",
            tar({**parts, "storages": PROTO + b"K\1." + PROTO + b"N" + b"\x85" * 900 + b"NN\x87."}),
        ),
        ("no plain weights", tar({**parts, "storages": PROTO + b"K\1." + PROTO + b"N."})),
        ("", tar({**parts, "storages": PROTO + b"J\xff\xff\xff\x7f." + (PROTO + b"K\1NN\x87." + bytes(8)) * 9000})),
    ]:
        refused(tmp_path / "x.pt", data, said)
