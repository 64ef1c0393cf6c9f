"""TensorBoard's view of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lorasmith.events import Event, Sampled, StepDone, Validated, from_json
from lorasmith.files import output_error, remove_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Draws the events that TensorBoard can show, into a folder that is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: SummaryWriter | None = None

    def draw_again(self, records: Sequence[dict[str, Any]]) -> None:
        """Begin anew with what a run's log has kept, so that nothing is drawn twice and nothing is missing.

        Raises:
            OutputError: the disk refuses.
        """
        self.close()
        self._opened = None
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
                for name in ("loss", "learning_rate", "grad_norm", "samples_per_second", "memory_mib"):
                    self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step, when)
            elif isinstance(event, Validated):
                self._writer.add_scalar("validation/loss", event.loss, event.step, when)
            elif isinstance(event, Sampled):
                for path in event.paths:
                    with Image.open(path) as picture:
                        pixels = np.asarray(picture.convert("RGB"))
                    self._writer.add_image(f"samples/{path.stem}", pixels, event.step, when, dataformats="HWC")
                self._writer.flush()
        except OSError as error:
            raise output_error(self._folder, error) from error

    def close(self) -> None:
        """Write what is still waiting."""
        if self._opened is not None:
            with suppress(OSError):  # a full disk has been told of
                self._opened.close()

    @property
    def _writer(self) -> SummaryWriter:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self._folder))
        return self._opened
