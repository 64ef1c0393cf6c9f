"""Every event survives the way through JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from lorasmith.events import Event, Finished, PictureMade, Sampled, from_json

_VALUES = {
    "str": "text", "int": 3, "float": 0.25, "Path": Path("a/b.png"), "tuple[Path, ...]": (Path("a"), Path("b/c")),
    "dict[str, float]": {"loss": 0.5},
}  # fmt: skip


# Those that a run keeps; other stages have events of their own, which are written and not read back.
KINDS = [kind for kind in Event.__subclasses__() if kind.__module__ == Event.__module__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_events_come_back_equal(kind: type[Event]) -> None:
    event = kind(**{field.name: _VALUES[str(field.type)] for field in fields(kind)})
    assert from_json(json.loads(json.dumps(event.to_json()))) == event


def test_paths_are_written_with_forward_slashes() -> None:
    assert PictureMade(Path("a") / "b", "p", 1).to_json()["path"] == "a/b"
    assert Sampled(1, (Path("a") / "b",)).to_json()["paths"] == ["a/b"]


def test_an_unknown_event_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        from_json({"event": "Nonsense"})
    with pytest.raises(KeyError):
        from_json({"event": Finished.__name__})
