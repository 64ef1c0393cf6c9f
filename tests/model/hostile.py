"""Files that lie or bite, put together by hand; each payload would do no more than make an empty file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

PROTO = b"\x80\x02"
MAGIC = PROTO + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY = MAGIC + PROTO + b"M\xe9\x03." + PROTO + b"}X\x0d\0\0\0little_endian\x88s."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def pickles(command: str) -> dict[str, tuple[bytes, str]]:
    """Return pickles that would run a shell command, or bring the reader to grief, with what must be said of each."""
    run = text(command)
    code = text(f"__import__('os').system({command!r})")
    system = name("os", "system")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    stack = b"\x8c\x02os\x8c\x06system\x93"
    direct = {
        f"{module}.{attribute}": (PROTO + called(name(module, attribute), argument) + b".", f"{module}.{attribute}")
        for module, attribute, argument in [
            *(("os", "system", run), ("posix", "system", run), ("nt", "system", run), ("os", "popen", run)),
            *(("builtins", "eval", code), ("builtins", "exec", code), ("__builtin__", "eval", code)),
            *(("subprocess", "getoutput", run), ("subprocess", "call", run), ("pty", "spawn", run)),
            *(("builtins", "getattr", run), ("builtins", "__import__", text("os")), ("builtins", "open", run)),
            *(("operator", "attrgetter", text("system")), ("operator", "methodcaller", text("system"))),
            *(("functools", "partial", system), ("importlib", "import_module", text("os")), ("types", "CodeType", run)),
            *(("torch", "load", run), ("torch.storage", "_load_from_bytes", run), ("torch.jit", "load", run)),
            *(("pickle", "loads", run), ("_pickle", "loads", run), ("marshal", "loads", run), ("joblib", "load", run)),
            *(
                ("runpy", "_run_code", code),
                ("timeit", "timeit", code),
                ("cProfile", "run", code),
                ("code", "interact", run),
            ),
            *(
                ("numpy", "load", run),
                ("numpy.testing._private.utils", "runstring", code),
                ("numpy.f2py", "main", code),
            ),
            *(("torch._utils", "_rebuild_sparse_tensor", run), ("torch.hub", "load", run), ("torch", "_utils", run)),
            *(
                ("copyreg", "_reconstructor", run),
                ("_codecs", "decode", run),
                ("pathlib", "os", run),
                ("pip", "main", run),
            ),
            *(("ctypes", "CDLL", run), ("webbrowser", "open", run), ("shutil", "rmtree", run), ("sys", "exit", run)),
            *(("torch", "FloatStorage.__init__", run), ("torch._utils", "os.system", run)),
            *(("torch._tensor", "os.system", run), ("collections", "OrderedDict.__reduce__", run)),
            *(("pytorch_lightning", "os.system", run), ("pytorch_lightning_x", "os", run), ("omegaconf.", "os", run)),
            *(
                ("omegaconf\r", "os", run),
                ("Pytorch_lightning", "os", run),
                ("оs", "system", run),
                ("os ", "system", run),
            ),
        ]
    }
    direct = {
        key: (data, said if said.isascii() and said.isprintable() else "asks for")
        for key, (data, said) in direct.items()
    }
    styles = {
        "stack global": (b"\x80\x04" + stack + run + b"\x85R.", "os.system"),
        "stack global in frames": (b"\x80\x05\x95" + struct.pack("<Q", 9) + stack + run + b"\x85R.", "os.system"),
        "stack global, framed anew": (
            b"\x80\x04" + stack[:4] + b"\x95" + bytes(8) + stack[4:] + run + b"\x85R.",
            "os.system",
        ),
        "stack global from the memo": (
            # A scanner that counts MEMOIZE only believes slots 0 and 1 to be harmless.
            b"\x80\x04\x8c\x02osq\x000\x8c\x06systemq\x010\x8c\x05torch\x940\x8c\x04Size\x940h\0h\x01\x93"
            + run
            + b"\x85R.",
            "os.system",
        ),
        "stack global after mark": (b"\x80\x04\x8c\x02os(\x8c\x01a1\x8c\x06system\x93" + run + b"\x85R.", "os.system"),
        "stack global of bytes": (b"\x80\x04C\x02osC\x06system\x93" + run + b"\x85R.", "something else than text"),
        "stack global of a global": (b"\x80\x04" + name("typing", "Any") * 2 + b"\x93.", "something else than text"),
        "inst": (PROTO + b"(" + run + b"ios\nsystem\n.", "INST to make os.system"),
        "obj": (PROTO + b"(" + system + run + b"o.", "os.system"),
        "obj of an allowed name": (PROTO + b"(" + name("typing", "Any") + run + b"o.", "OBJ"),
        "newobj": (PROTO + system + run + b"\x85\x81.", "os.system"),
        "newobj of a function": (PROTO + rebuild + b")\x81.", "something else than a known class"),
        "newobj_ex": (b"\x80\x04" + system + run + b"\x85}\x92.", "os.system"),
        "newobj_ex of an allowed name": (b"\x80\x04" + name("typing", "Any") + b")}\x92.", "NEWOBJ_EX"),
        "extension code": (PROTO + b"\x82\x01" + run + b"\x85R.", "EXT1"),
        "extension code, long": (PROTO + b"\x84\x01\0\0\0" + run + b"\x85R.", "EXT4"),
        "protocol 0": (b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.", ""),
        "protocol 0 texts": (PROTO + b"S'os'\nS'system'\n\x93" + run + b"\x85R.", "STRING"),
        "text memo": (PROTO + system + b"p0\ng0\n" + run + b"\x85R.", "os.system"),
        "build on an inert class": (
            PROTO + name("pytorch_lightning", "Trainer") + b"}" + text("__setstate__") + system + b"sb.",
            "os.system",
        ),
        "build on a class itself": (
            PROTO + name("typing", "Any") + b"N}" + text("a") + run + b"s\x86b.",
            "attributes are set",
        ),
        "build on a function": (PROTO + rebuild + b"}" + text("__code__") + run + b"sb.", "attributes are set"),
        "build on a dtype": (PROTO + name("torch", "float32") + b"}b.", "attributes are set"),
        "call of an object": (PROTO + called(called(name("typing", "Any"), run), run) + b".", "no known name"),
        "call of text": (PROTO + called(text("os.system"), run) + b".", "no known name"),
        "call of a dtype": (PROTO + called(name("torch", "float32"), run) + b".", "no known name"),
        "call with a list": (PROTO + rebuild + b"]R.", "no known name"),
        "call with too much": (PROTO + called(rebuild, b"K\0" * 9) + b".", "wrong arguments"),
        "tensor rebuilt by another": (
            PROTO + called(name("torch._tensor", "_rebuild_from_type_v2"), system, b"N", run + b"\x85", b"N") + b".",
            "os.system",
        ),
        "tensor rebuilt by itself": (
            PROTO + name("torch._tensor", "_rebuild_from_type_v2") + b"q\0" + b"(h\0Nh\0NN\x87" + b"NtR.",
            "something else than torch's way",
        ),
        "tensor of a number": (
            PROTO + called(rebuild, b"K\1", b"K\0", b")", b")", b"\x89", b"N") + b".",
            "than a storage",
        ),
        "a factory": (PROTO + called(name("collections", "defaultdict"), system) + b".", "os.system"),
        "another codec": (PROTO + called(name("_codecs", "encode"), run, text("zip")) + b".", "than latin-1 text"),
        "persistent id in text": (PROTO + b"Pos.system\n.", "PERSID"),
        "persistent id of a module": (
            PROTO + b"(" + text("module") + name("typing", "Any") + run + run + b"tQ.",
            "persistent id",
        ),
        "persistent id of a number": (PROTO + b"K\1Q.", "persistent id"),
        "out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "unknown opcode": (PROTO + b"\xff.", "0xff"),
        "harm before a broken end": (PROTO + called(system, run) + b"\xff\xff", "os.system"),
        "harm and no end": (PROTO + called(system, run), "os.system"),
        "harm thrown away": (PROTO + called(system, run) + b"0}.", "os.system"),
        "harm as a key": (PROTO + b"}" + called(system, run) + b"K\1s.", "os.system"),
        "harm in the weights": (
            PROTO + b"}" + text("state_dict") + b"}" + text("w") + called(system, run) + b"ss.",
            "os.system",
        ),
        "items for a class": (PROTO + name("typing", "Any") + b"K\1a.", "items are added"),
        "keys for a list": (PROTO + b"]K\1K\1s.", "keys are set"),
        "a key without a value": (PROTO + b"}(K\1u.", "no value"),
        "an empty stack": (PROTO + b"R.", "not put down"),
        "a missing memo": (PROTO + b"h\x07.", "not put down"),
        "a missing mark": (PROTO + b"t.", "not put down"),
        "nothing": (PROTO + b".", "other than one value"),
        "two values": (PROTO + b"NN.", "other than one value"),
        "a second protocol": (PROTO + PROTO + b"N.", "PROTO"),
        "protocol 9": (b"\x80\x09N.", ""),
        "no text": (PROTO + b"X\2\0\0\0\xff\xfe.", "broken BINUNICODE"),
        "a long number": (PROTO + b"\x8a\xff" + b"\1" * 255 + b".", "number too large"),
    }
    return direct | styles


def bombs() -> dict[str, bytes]:
    """Return pickles that cost far more to follow than to send."""
    deep = b"".join(b"(" for _ in range(100_000))
    million = 1_000_000
    clash = b"".join(b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(100_000))
    return {
        "operations": PROTO + b"N0" * (4 * million) + b"N.",
        "lists": PROTO + b"]" * 195_000 + b".",
        "dictionaries": PROTO + b"}\x94" * 98_000 + b".",
        "marks": PROTO + deep + b".",
        "nested tuples": PROTO + b"N" + b"\x85" * 195_000 + b".",
        "colliding keys": PROTO + b"}(" + clash + b"u.",
        "a far memo slot": PROTO + b"Nr\xff\xff\xff\xff.",
        "a lying length": PROTO + b"X\xff\xff\xff\x7fabc.",
        "a negative length": PROTO + b"T\xff\xff\xff\xffabc.",
        "a long text": PROTO + b"X" + struct.pack("<I", 20 * million) + b"a" * 20 * million + b".",
        "bytes from one text": PROTO
        + (text("a" * million) + b"q\0" + name("_codecs", "encode") + b"q\1")
        + b"h\1h\0\x85R" * 20_000
        + b".",
        "a dictionary of one list": PROTO
        + (b"](" + b"K\1K\2\x86" * 30_000 + b"eq\0" + name("collections", "OrderedDict") + b"q\1")
        + b"h\1h\0\x85R" * 20_000
        + b".",
        "a line without end": PROTO + b"c" + b"a" * million,
        "classes": PROTO + name("omegaconf", "A") * 200_000 + b".",
    }


@dataclass
class Entry:
    """A zip member of which anything may be a lie; None stands for the truth."""

    name: str
    data: bytes
    local_name: str | None = None
    size: int | None = None
    packed: int | None = None
    header: int | None = None
    method: int = 0
    flags: int = 0
    extra: bytes = b""
    gap: bytes = b""


def zip_file(entries: list[Entry], comment: bytes = b"", count: int | None = None, behind: bytes = b"") -> bytes:
    """Return a zip file of these entries."""
    body, directory = b"", b""
    for entry in entries:
        label, local = entry.name.encode(), (entry.local_name or entry.name).encode()
        size = len(entry.data) if entry.size is None else entry.size
        packed = size if entry.packed is None else entry.packed
        body += entry.gap
        header = len(body) if entry.header is None else entry.header
        fields = (entry.flags, entry.method, 0, 0, 0, packed, size)
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(local), 0) + local + entry.data
        directory += struct.pack("<4s2H", b"PK\1\2", 20, 20) + struct.pack("<4H3L", *fields)
        directory += struct.pack("<5H2L", len(label), len(entry.extra), 0, 0, 0, 0, header) + label + entry.extra
    total = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, total, total, len(directory), len(body), len(comment))
    return body + directory + end + comment + behind


def tensor(
    key: str = "0", numel: int = 4, offset: int = 0, shape: bytes = b"K\x04\x85", stride: bytes = b"K\1\x85"
) -> bytes:
    """Return the opcodes of a float32 tensor of a storage."""
    number = struct.Struct("<q")
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu")
    storage += b"\x8a\x08" + number.pack(numel) + b"tQ"
    place = b"\x8a\x08" + number.pack(offset)
    return called(name("torch._utils", "_rebuild_tensor_v2"), storage, place, shape, stride, b"\x89", b"N")


def checkpoint_entries(pickled: bytes | None = None) -> list[Entry]:
    """Return the entries of a checkpoint of one tensor of four numbers, or with another pickle."""
    if pickled is None:
        pickled = PROTO + b"}" + text("w") + tensor() + b"s."
    return [Entry("a/data.pkl", pickled), Entry("a/data/0", struct.pack("<4f", 1, 2, 3, 4)), Entry("a/version", b"3\n")]
