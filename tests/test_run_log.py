"""The log goes back to a checkpoint without losing or doubling anything."""

from __future__ import annotations

import json
from pathlib import Path

from lorasmith.run_log import last_records, read_log, rewind_log


def lines(*events: tuple[str, int | None]) -> list[bytes]:
    return [
        json.dumps({"event": kind, **({} if step is None else {"step": step})}).encode() + b"\n"
        for kind, step in events
    ]


LOG = lines(
    ("Note", None), ("Validated", 0), ("Sampled", 0), ("StepDone", 1), ("StepDone", 2), ("CheckpointSaved", 2),
    ("Progress", None), ("Validated", 2), ("Progress", None), ("Sampled", 2), ("Progress", None), ("StepDone", 3),
    ("CheckpointSaved", 4),
)  # fmt: skip


def test_what_comes_after_the_step_is_set_aside(tmp_path: Path) -> None:
    for number, (step, kept) in enumerate(((4, 13), (2, 10), (1, 4), (0, 3)), start=1):
        (tmp_path / "events.jsonl").write_bytes(b"".join(LOG))
        records = rewind_log(tmp_path, step)
        assert records == [json.loads(line) for line in LOG[:kept]]
        assert (tmp_path / "events.jsonl").read_bytes() == b"".join(LOG[:kept])
        if kept < len(LOG):
            assert (tmp_path / f"events-set-aside-{number - 1:03d}.jsonl").read_bytes() == b"".join(LOG[kept:])
    assert len(list(tmp_path.glob("events-set-aside-*"))) == 3  # nothing was cut at step 4


def test_a_torn_line_and_all_after_it_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"".join(LOG[:6]) + b'{"event": "St\x00\n' + b"".join(LOG[6:]))
    assert len(rewind_log(tmp_path, 4)) == 6
    assert len(read_log(tmp_path)) == 6
    (tmp_path / "events.jsonl").write_bytes(b"".join(LOG[:6]) + b'{"event"')
    assert len(rewind_log(tmp_path, 4)) == 6


def test_no_log_at_all(tmp_path: Path) -> None:
    assert rewind_log(tmp_path, 4) == [] and read_log(tmp_path) == [] and last_records(tmp_path) == []
    (tmp_path / "events.jsonl").write_bytes(b"".join(LOG) * 3000)
    assert 0 < len(last_records(tmp_path)) < 39000
    assert last_records(tmp_path)[-1]["step"] == 4
