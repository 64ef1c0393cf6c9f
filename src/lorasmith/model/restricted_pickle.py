"""Read a pickle without running anything of it.

A pickle is a program for a small stack machine (PEP 3154, PEP 574, and Lib/pickletools.py describe the opcodes). Here
it is read twice. ``scan`` decodes every operation up to STOP, and refuses the file at the first opcode or global that
is not on its list. Only then ``_Machine`` works it off, and that machine has no operation that imports, looks up or
calls anything of Python's: a global is a key of the table in ``pickle_names``, and "calling" it arranges its arguments.

This is stricter than what it learnt from. Scanners were fooled by opcodes after a parse error, by memo slots written
with PUT and read as if by MEMOIZE, by module names put together on the stack, by dotted names, and by BUILD setting
attributes on a module (picklescan's advisories; protectai/modelscan issue 85). torch's weights_only reader calls
torch's real functions, and was overcome through them (CVE-2025-32434) and through a storage that is smaller than the
pickle says (CVE-2026-24747). Here the scan and the machine share one decoding, names on the stack are checked where
they are used, no attribute is ever set, and sizes are compared with the file's before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorasmith.model.checkpoint_errors import damaged, unsafe
from lorasmith.model.pickle_names import Function, NumpyType, PickledDict, Stub
from lorasmith.model.pickle_opcodes import MAX_OPERATIONS, Operation, allowed, place, scan

MAX_NESTING = 256

Persistent = Callable[[Any], Any]


def no_persistent_ids(identifier: Any) -> Any:
    """Refuse every persistent id; for pickles that hold only numbers and names.

    Raises:
        ValueError: always.
    """
    raise ValueError("a persistent id stands where none belongs")


def read_pickle(
    data: bytes, where: str, *, persistent: Persistent = no_persistent_ids, start: int = 0, shift: int = 0
) -> tuple[Any, int]:
    """Return what the pickle at ``data[start:]`` describes, and where in ``data`` it ends.

    Containers come as lists, tuples and PickledDict, numbers and strings as they are, and the rest as the values of
    ``pickle_names``.

    Args:
        where: the file, for messages.
        persistent: what stands for a persistent id; it raises ValueError to refuse one.
        shift: the place in the file of ``data[0]``, for messages.

    Raises:
        ModelError: the pickle is damaged or too large, or asks for anything but tensors, containers and numbers.
    """
    operations, end = scan(data, start, shift, where)
    return _Machine(persistent, shift, where).run(operations), end


class _Machine:
    """Works off operations that passed the scan. Its stack, marks and memo are those of pickle's own machine."""

    def __init__(self, persistent: Persistent, shift: int, where: str) -> None:
        self._persistent = persistent
        self._shift = shift
        self._where = where
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), self._get),
            **dict.fromkeys(("CONSTANT", "BININT", "BININT1", "BININT2", "BINFLOAT"), self._push),
            "FRAME": lambda _: None,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "MARK": self._mark,
            "POP": lambda _: self._stack.pop() if self._stack else self._to_mark(),
            "POP_MARK": lambda _: self._to_mark(),
            "EMPTY_DICT": lambda _: self._push(PickledDict([])),
            "EMPTY_LIST": lambda _: self._push([]),
            "EMPTY_SET": lambda _: self._push(Stub("set")),
            "FROZENSET": self._frozenset,
            "TUPLE": lambda _: self._push(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "ADDITEMS": lambda _: self._extend(self._to_mark()),
            "SETITEM": lambda _: self._set(self._last(2)),
            "SETITEMS": lambda _: self._set(self._to_mark()),
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "NEWOBJ": self._new,
            "BUILD": self._build,
            "BINPERSID": lambda _: self._push(self._persistent(self._stack.pop())),
        }

    def run(self, operations: list[Operation]) -> Any:
        for name, argument, position in operations:
            self._position = position
            try:
                self._steps[name](argument)
            except (ValueError, TypeError) as error:  # TypeError: too few or too many arguments for a known name
                what = str(error) if type(error) is ValueError else "a known name is used with the wrong arguments"
                raise unsafe(f"The file describes no plain weights: {what}.", self._at()) from error
            except (IndexError, KeyError) as error:
                raise damaged("The pickle takes what it has not put down.", self._at()) from error
        if len(self._stack) != 1 or self._marks:
            raise damaged("The pickle leaves other than one value behind.", self._where)
        return self._stack[0]

    def _at(self) -> str:
        return place(self._where, self._shift + self._position)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _put(self, slot: int) -> None:
        if slot >= MAX_OPERATIONS:
            raise ValueError("the pickle numbers what it remembers beyond all reason")
        self._memo[slot] = self._stack[-1]

    def _get(self, slot: int) -> None:
        self._stack.append(self._memo[slot])

    def _mark(self, _: Any) -> None:
        if len(self._marks) == MAX_NESTING:
            raise ValueError(f"containers are nested over {MAX_NESTING} deep")
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _tuple(self, count: int) -> None:
        self._stack.append(tuple(self._last(count)))

    def _frozenset(self, _: Any) -> None:
        self._to_mark()
        self._stack.append(Stub("frozenset"))

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Stub:
            raise ValueError("items are added to something else than a list")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise ValueError("a key has no value")
        if type(target) is PickledDict:
            target.pairs.extend(zip(items[::2], items[1::2]))
        elif type(target) is not Stub:
            raise ValueError("keys are set on something else than a dictionary")

    def _stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is put together from something else than text")
        self._stack.append(allowed(module, name, self._at()))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._last(2)
        if type(function) is not Function or type(arguments) is not tuple:
            raise ValueError("something is called that is no known name")
        self._stack.append(function.make(*arguments))

    def _new(self, _: Any) -> None:
        kind, arguments = self._last(2)
        if type(kind) is not Function or not kind.inert or type(arguments) is not tuple:
            raise ValueError("an object is made of something else than a known class")
        self._stack.append(Stub(kind.name))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is NumpyType and type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            target.order = state[1]
        elif type(target) not in (Stub, PickledDict):  # of these two, attributes are simply not kept
            raise ValueError("attributes are set on something that has none")
