"""TensorBoard's view of a run.

Its files are written here, record by record, rather than by its own writer: that has a thread, which prints a
traceback when the disk is full, and holds back what a kill would lose.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from lorasmith.events import Event, Sampled, StepDone, Validated, from_json
from lorasmith.files import new_folder, output_error, remove_folder

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

_VERSION = "brain.Event:2"  # of TensorBoard's format, https://github.com/tensorflow/tensorboard, event.proto
_FIGURES = ("loss", "learning_rate", "grad_norm", "samples_per_second", "memory_mib")


class Board:
    """Draws the events that TensorBoard can show, into a folder that is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._records: RecordWriter | None = None
        self._opened = 0

    def draw_again(self, records: Sequence[dict[str, Any]]) -> None:
        """Begin anew with what a run's log has kept, so that nothing is drawn twice and nothing is missing.

        Raises:
            OutputError: the disk refuses.
        """
        self.close()
        remove_folder(self._folder)
        for record in records:
            with suppress(KeyError, TypeError, ValueError):  # a record of another version, or a NaN that JSON lacks
                self.show(from_json(record), datetime.fromisoformat(record["time"]).timestamp())

    def show(self, event: Event, when: float | None = None) -> None:
        """Draw ``event``, if it has numbers or pictures.

        Args:
            when: it happened, in seconds since 1970; now, if nothing is said.

        Raises:
            OutputError: the disk refuses.
        """
        try:
            if isinstance(event, StepDone):
                values = [{"tag": f"train/{name}", "simple_value": getattr(event, name)} for name in _FIGURES]
                self._write(event.step, values, when)
            elif isinstance(event, Validated):
                self._write(event.step, [{"tag": "validation/loss", "simple_value": event.loss}], when)
            elif isinstance(event, Sampled):
                self._write(event.step, [_picture(path) for path in event.paths], when)
        except OSError as error:
            raise output_error(self._folder, error) from error

    def close(self) -> None:
        """Close the file; the next event begins another."""
        file, self._file, self._records = self._file, None, None
        if file is not None:
            with suppress(OSError):  # a full disk has been told of
                file.close()

    def _write(self, step: int, values: Sequence[dict[str, Any]], when: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time() if when is None else when
        if self._records is None:
            self._file = self._open()
            self._records = RecordWriter(self._file)
            self._records.write(Record(wall_time=now, file_version=_VERSION).SerializeToString())
        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._records.write(Record(wall_time=now, step=step, summary=summary).SerializeToString())
        self._records.flush()

    def _open(self) -> BinaryIO:
        self._opened += 1  # the name tells the order, also of those that begin in the same second
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{self._opened}"
        return (new_folder(self._folder) / name).open("wb")


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        width, height = picture.size
    image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": path.read_bytes()}
    return {"tag": f"samples/{path.stem}", "image": image}
