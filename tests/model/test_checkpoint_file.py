"""Honest files of weights are read exactly as torch and safetensors read them, and only as far as was asked."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.errors import ModelError
from lorasmith.model.checkpoint_file import open_checkpoint
from lorasmith.model.stored_tensor import count_not_finite

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16),
]
NEW_DTYPES = (torch.float8_e4m3fn, torch.uint16)
LAYOUTS = {
    "torch zip": lambda value, path: torch.save(value, path),
    "torch legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "torch zip, protocol 4": lambda value, path: torch.save(value, path, pickle_protocol=4),
}
Save = Callable[[Any, Path], None]


@pytest.fixture(params=LAYOUTS)
def save(request: pytest.FixtureRequest) -> Save:
    return LAYOUTS[request.param]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.to(torch.complex128), b.to(torch.complex128))


def every_dtype() -> dict[str, torch.Tensor]:
    numbers = torch.arange(-6, 6).reshape(3, 4)
    return {str(dtype): (numbers.abs() if "uint" in str(dtype) else numbers).to(dtype) for dtype in DTYPES}


def views() -> dict[str, torch.Tensor]:
    storage = torch.arange(240, dtype=torch.float32)
    block = storage[40:160].view(10, 12)
    return {
        "whole": storage,
        "offset": storage[100:110],
        "transposed": block.t(),
        "strided": block[1::3, ::2],
        "one column": block[:, 5],
        "expanded": storage[7:8].expand(4, 5),
        "windows": storage.as_strided((5, 4), (2, 1), 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "tied": block,
    }


@pytest.mark.parametrize("make", [every_dtype, views])
def test_it_is_what_torch_reads(make: Callable[[], dict[str, torch.Tensor]], save: Save, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    # torch itself cannot read back dtypes without a storage class from its old layout
    tensors = {n: t for n, t in make().items() if save is not LAYOUTS["torch legacy"] or t.dtype not in NEW_DTYPES}
    save(tensors, path)
    checkpoint, theirs = open_checkpoint(path), torch.load(path, weights_only=False)
    assert list(checkpoint.tensors) == list(theirs)
    for name, expected in theirs.items():
        stored, tensor = checkpoint.tensors[name], checkpoint.read(name)
        assert (stored.dtype, stored.shape) == (expected.dtype, tuple(expected.shape))
        assert same(tensor, expected.detach()), name
        dense = expected.numel() and stored.span == stored.nbytes
        assert not dense or tensor.stride() == expected.stride(), name
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_it_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {**every_dtype(), "empty": torch.empty(0, 3), "scalar": torch.tensor(3.5)}
    tensors.pop("torch.complex64")
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt", "note": "blüte"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    theirs = load_file(tmp_path / "x.safetensors")
    assert checkpoint.layout == "safetensors"
    assert checkpoint.metadata == {"format": "pt", "note": "blüte"}
    assert checkpoint.tensors.keys() == theirs.keys()
    assert all(same(checkpoint.read(name), tensor) for name, tensor in theirs.items())


def test_a_training_checkpoint_is_unwrapped_and_the_rest_is_left(save: Save, tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    settings = {"lr": np.float64(1e-4), "dims": np.arange(3), "path": Path("logs"), "raw": b"\xff\0"}
    save(
        {
            "epoch": 3,
            "global_step": np.int64(840_000),
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(weight=weight, steps=torch.tensor(5), flag=True),
            "callbacks": defaultdict(dict, {"a": settings}),
            "optimizer_states": [
                {"state": {0: {"exp_avg": torch.randn(4, 4)}}, "param_groups": [{"betas": (0.9, 0.9)}]}
            ],
            "lr_schedulers": [],
            "score": np.float32(0.5),
        },
        tmp_path / "x.ckpt",
    )
    checkpoint = open_checkpoint(tmp_path / "x.ckpt")
    assert list(checkpoint.tensors) == ["weight", "steps"]
    assert torch.equal(checkpoint.read("weight"), weight)
    assert checkpoint.scalars == {
        "epoch": 3,
        "global_step": 840_000,
        "pytorch-lightning_version": "1.4.2",
        "score": 0.5,
        "flag": True,
    }
    assert checkpoint.left_out == ("callbacks", "optimizer_states", "lr_schedulers")


def test_names_of_training_frameworks_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with objects of pytorch_lightning and omegaconf, as real ones have, opens where neither is installed."""
    import types

    class Callback:
        def __init__(self) -> None:
            self.best = torch.ones(2)

    for module in ("pytorch_lightning", "pytorch_lightning.callbacks", "omegaconf", "omegaconf.listconfig"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for module, name in (("pytorch_lightning.callbacks", "ModelCheckpoint"), ("omegaconf.listconfig", "ListConfig")):
        kind = type(name, (Callback,), {"__module__": module})
        setattr(sys.modules[module], name, kind)
    checkpoint_type = sys.modules["pytorch_lightning.callbacks"].ModelCheckpoint  # type: ignore[attr-defined]
    config = sys.modules["omegaconf.listconfig"].ListConfig()  # type: ignore[attr-defined]
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {checkpoint_type: config}}, tmp_path / "x.ckpt")
    monkeypatch.undo()
    checkpoint = open_checkpoint(tmp_path / "x.ckpt")
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.left_out == ("callbacks",)
    assert not any(name.split(".")[0] in ("pytorch_lightning", "omegaconf") for name in sys.modules)


def write_tar(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the layout of torch 0.1.9, in which tensors and storages have files of their own."""
    import tarfile

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return str(id(value)) if isinstance(value, torch.Tensor) else None

    storages, sizes, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, protocol=2)
    pickle.dump(len(tensors), sizes, protocol=2)
    for tensor in tensors.values():
        key, raw = tensor.untyped_storage().data_ptr(), bytes(tensor.untyped_storage())
        pickle.dump((key, "cpu", torch.FloatStorage), storages, protocol=2)
        storages.write(struct.pack("<q", len(raw) // 4) + raw)
        pickle.dump((id(tensor), key, torch.FloatTensor), sizes, protocol=2)
        sizes.write(struct.pack(f"<2i{2 * tensor.dim()}q", tensor.dim(), 0, *tensor.shape, *tensor.stride()))
        sizes.write(struct.pack("<q", tensor.storage_offset()))
    pickle.dump([], storages, protocol=2)
    Pickler(pickled, protocol=2).dump(tensors)
    info = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}, protocol=2)
    parts = {
        "sys_info": info,
        "pickle": pickled.getvalue(),
        "storages": storages.getvalue(),
        "tensors": sizes.getvalue(),
    }
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_the_oldest_layout_is_what_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    write_tar(path, {"a": torch.randn(3, 4), "b": torch.randn(10)[2:8:2], "c": torch.randn(2, 3).t()})
    checkpoint, theirs = open_checkpoint(path), torch.load(path, weights_only=False)
    assert checkpoint.layout == "torch tar"
    assert checkpoint.tensors.keys() == theirs.keys()
    assert all(same(checkpoint.read(name), tensor) for name, tensor in theirs.items())


def test_a_view_of_a_storage_in_an_old_file(tmp_path: Path) -> None:
    """Torch before 0.4 named views of storages in the persistent id."""
    torch.save({"w": torch.arange(10.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pt").read_bytes()
    before = data.index(b"Nt", data.index(b"cpu"))  # the None that stands for no view
    data = data[:before] + b"U\x01vK\x03K\x05\x87" + data[before + 1 :]  # ("v", 3, 5)
    data = data.replace(b"K\0K\n\x85", b"K\0K\x05\x85", 1)
    (tmp_path / "x.pt").write_bytes(data)
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert torch.equal(checkpoint.read("w"), torch.arange(3.0, 8.0))
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["w"], checkpoint.read("w"))


def test_files_of_before_byteorder_and_from_zip_programs(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            if name.endswith(("data.pkl", "/version", "data/0")):
                with old.open(name, "w", force_zip64=True) as member:
                    member.write(new.read(name))
    assert torch.equal(open_checkpoint(tmp_path / "old.pt").read("w"), torch.arange(6.0))


def test_not_finite_is_reported_when_asked(save: Save, tmp_path: Path) -> None:
    bad = torch.zeros(3000, dtype=torch.float16)
    bad[5], bad[2999] = float("nan"), float("inf")
    save({"bad": bad, "good": torch.ones(3), "whole": torch.ones(3, dtype=torch.int64)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.read("bad").isnan().any()
    with pytest.raises(ModelError, match=r'"bad" holds 2 NaN or infinite numbers of 3,000') as caught:
        checkpoint.read("bad", check_finite=True)
    assert caught.value.where == str(tmp_path / "x.pt")
    checkpoint.read("good", check_finite=True)
    checkpoint.read("whole", check_finite=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.float8_e5m2])
def test_not_finite_is_counted_in_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.ones(4, 5)
    tensor[1, 2] = float("inf")
    assert count_not_finite(tensor.to(dtype)) == 1
    assert count_not_finite(tensor.to(dtype).t()) == 1
    assert count_not_finite(torch.full((3,), 1e300, dtype=torch.float64)) == 0


def test_a_file_that_changes_underneath_is_noticed(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save({"w": torch.ones(300)}, path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ModelError, match="changed while it was in use"):
        checkpoint.read("w")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.read("w")
    with pytest.raises(KeyError):
        checkpoint.read("v")


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_only_what_is_asked_for_is_read(layout: str, tmp_path: Path) -> None:
    """Counted by the system, and in Python's and torch's memory: a tensor costs its own size."""
    path, size = tmp_path / "x", 8 << 20
    tensors = {name: torch.full((size,), n, dtype=torch.uint8) for n, name in enumerate("abc")}
    if layout == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=layout == "zip")
    script = f"""
import pathlib, resource
from lorasmith.model.checkpoint_file import open_checkpoint
def read(): return int(pathlib.Path("/proc/self/io").read_text().split()[1])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_checkpoint(pathlib.Path({str(path)!r}))
start, memory = read(), peak()
checkpoint = open_checkpoint(pathlib.Path({str(path)!r}))
opened = read()
b = checkpoint.read("b", check_finite=True)
assert b.eq(1).all()
print(opened - start, read() - opened, (peak() - memory) * 1024)
"""
    if not Path("/proc/self/io").exists():
        pytest.skip("needs Linux's count of what a process reads")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    to_open, to_read, memory = map(int, run.stdout.split())
    assert to_open < 1 << 18
    assert size <= to_read < size + (1 << 16)
    assert memory < size * 2.5  # the tensor, and the assertion's own answer of the same size


def test_opening_takes_little_memory_of_pythons(save: Save, tmp_path: Path) -> None:
    save({f"layer.{n}.weight": torch.zeros(4) for n in range(2000)}, tmp_path / "x")
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(tmp_path / "x")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(checkpoint.tensors) == 2000
    assert peak < 32 << 20
    assert kept < 4 << 20
