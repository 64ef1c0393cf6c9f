"""TensorBoard's view of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lorasmith.events import Event, Sampled, StepDone, Validated
from lorasmith.files import output_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Draws the events that TensorBoard can show, into a folder that is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: SummaryWriter | None = None

    def show(self, event: Event) -> None:
        """Draw ``event``, if it has numbers or pictures.

        Raises:
            OutputError: the disk refuses.
        """
        try:
            if isinstance(event, StepDone):
                for name in ("loss", "learning_rate", "grad_norm", "samples_per_second", "memory_mib"):
                    self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)
            elif isinstance(event, Validated):
                self._writer.add_scalar("validation/loss", event.loss, event.step)
            elif isinstance(event, Sampled):
                for path in event.paths:
                    with Image.open(path) as picture:
                        pixels = np.asarray(picture.convert("RGB"))
                    self._writer.add_image(f"samples/{path.stem}", pixels, event.step, dataformats="HWC")
                self._writer.flush()
        except OSError as error:
            raise output_error(self._folder, error) from error

    def close(self) -> None:
        """Write what is still waiting."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _writer(self) -> SummaryWriter:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self._folder))
        return self._opened
