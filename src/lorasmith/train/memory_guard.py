"""What to do when the memory does not suffice in the middle of a training: smaller passes first, then fewer tensors.

A pass of half the pictures, twice as often, gives the same gradient up to rounding, since a step's loss is a sum over
its pictures. So the pictures of a step, their order and their noise stay as they are.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lorasmith.events import Event, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.recipe.schema import Recipe
from lorasmith.train.ranks import Ranks
from lorasmith.train.suggest import changed

# What torch's allocators and CUDA's libraries say, in lower case, where they raise no OutOfMemoryError.
_WORDS = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory could not be had, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


class Room:
    """How the gradient of a step is computed so that it fits into the memory.

    Args:
        sd: with the adapter attached.
        recipe: says with how many pictures in a pass to begin, and whether with gradient checkpointing.
        parameters: whose gradients are thrown away before a step is tried again.

    Attributes:
        step, seed: the step that is tried, and the seed of its dropout, if there is any.
        untold: what has been changed and nobody has said yet.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe, parameters: Sequence[nn.Parameter]) -> None:
        self._sd, self._recipe, self._parameters = sd, recipe, parameters
        self.at_once = recipe.train.batch
        self.checkpointing = False
        self.step = 0
        self.seed: int | None = None
        self.untold: list[str] = []
        if recipe.train.gradient_checkpointing:
            self._turn_on_checkpointing()

    def fit(self, gradient: Callable[[int], Tensor], pictures: int) -> Tensor:
        """Return ``gradient(pictures in a pass)``, tried again with less at once while the memory does not suffice.

        Args:
            gradient: adds a step's gradient to that of the parameters, which have none.
            pictures: in this process's part of the step.

        Raises:
            OutOfMemoryError, MemoryError, RuntimeError: as ``gradient`` does, if that was all in vain.
        """
        while True:
            if self.seed is not None:
                torch.manual_seed(self.seed)
            try:
                return gradient(self.at_once)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._give_way(pictures):
                    raise
            # Only out here is the exception gone, and with it the frames that hold the pass's tensors.
            for parameter in self._parameters:
                parameter.grad = None
            gc.collect()
            if self._sd.device.type == "cuda":
                torch.cuda.empty_cache()

    def recipe(self) -> Recipe:
        """Return the recipe as it is trained now."""
        settings = self._recipe.train
        passes = -(-settings.batch * settings.accumulation // self.at_once)
        now = {"batch": self.at_once, "accumulation": passes, "gradient_checkpointing": self.checkpointing}
        return changed(self._recipe, {f"train.{name}": value for name, value in now.items()})

    def forget(self) -> None:
        """Turn gradient checkpointing off on the models, which are looked at without their data next."""
        self._sd.unet.disable_gradient_checkpointing()
        if self.checkpointing and self._recipe.lora.text_encoder:
            self._sd.text_encoder.gradient_checkpointing_disable()

    def _give_way(self, pictures: int) -> bool:
        """Change what can be changed next; return False if there is nothing."""
        before = min(self.at_once, pictures)
        if before > 1:
            self.at_once = before // 2
            now, passes = self.at_once, -(-pictures // self.at_once)
            change = f"{now} instead of {before} pictures go through the UNet at once, in {passes} passes"
        elif not self.checkpointing:
            self._turn_on_checkpointing()
            change = "gradient checkpointing is on, which is about 30 % slower"
        else:
            return False
        self.untold.append(
            f"The memory did not suffice in step {self.step}: from here on {change}. The step is taken again; its "
            "pictures, their order and what is learned stay the same."
        )
        return True

    def _turn_on_checkpointing(self) -> None:
        self.checkpointing = True
        self._sd.unet.enable_gradient_checkpointing()
        if self._recipe.lora.text_encoder:
            self._sd.text_encoder.gradient_checkpointing_enable({"use_reentrant": False})


def told(room: Room, ranks: Ranks) -> Iterator[Event]:
    """Yield what has been changed since this was called last; the first of ``ranks`` speaks for all of them."""
    messages, room.untold = room.untold, []
    if not ranks.alone and ranks.agree(bool(messages)):
        parts = [json.loads(data) for data in ranks.gather(json.dumps(messages).encode())]
        messages = [f"Process {rank}: {message}" for rank, part in enumerate(parts) for message in part]
    yield from map(Warned, messages)
