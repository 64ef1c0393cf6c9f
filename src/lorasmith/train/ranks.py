"""Several processes that train one LoRA together, as torchrun and accelerate start them.

Every process (rank) does the same things in the same order. Rank 0, the first, alone writes and speaks; what it
alone can know, such as where a run goes on, it tells the others. Decisions and files go over gloo on the CPU. The
gradients go over NCCL between GPUs where torch has it, else over gloo.

Nothing here imports torch before there are several processes.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.errors import DeviceError, RecipeError, RunError
from lorasmith.train.peers import Peers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(eq=False)
class Ranks:
    """The place of this process among those that train together; the default is a process by itself.

    By itself every method does nothing, or gives back what it was given.

    Attributes:
        rank: the number of this process, from 0; world: how many there are.
        local, locals: the same on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    locals: int = 1
    _peers: Peers | None = None
    _wish: bool = False
    _sent: _Flag | None = None
    _before: _Flag | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def peers(self) -> Peers:
        """The others, once they have been joined."""
        assert self._peers is not None
        return self._peers

    def join(self) -> None:
        """Meet the others; see ``Peers.join`` for what it raises."""
        self._peers = Peers(self.rank, self.world)
        self._peers.join()

    # What each does

    def device(self, name: str) -> torch.device:
        """Return the device of this process: its own GPU of this machine's, or the CPU.

        Raises:
            RecipeError: ``train.device`` names one GPU for all.
            DeviceError: there are fewer GPUs than processes here.
        """
        import torch

        from lorasmith.model.stable_diffusion import pick_device

        if self.alone:
            return pick_device(name)
        if name not in ("auto", "cuda", "cpu"):
            raise RecipeError(
                f'With several processes each takes a GPU of its own, and train.device is "{name}".',
                where="train.device",
                fix="Write auto, cuda or cpu.",
            )
        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        count = torch.cuda.device_count()
        if self.local >= count:
            raise DeviceError(
                f"{self.locals} processes were started on a machine with {count} GPUs.",
                where=socket.gethostname(),
                fix=f"Start {count} there (--nproc-per-node {count}).",
            )
        device = torch.device("cuda", self.local)
        torch.cuda.set_device(device)
        return device

    def share(self, count: int) -> tuple[int, int]:
        """Return from where to where of ``count`` things in a row are this process's; shares differ by one at most."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world

    def largest_share(self, count: int) -> int:
        """Return the size of the largest share of ``count`` things."""
        return -(-count // self.world)

    def require_shares(self, pictures: int) -> None:
        """Raise RecipeError if there are more processes than ``pictures`` in a step, so that some would stay idle."""
        if pictures < self.world:
            raise RecipeError(
                f"{self.world} processes share the pictures of a step, and there are only {pictures}.",
                where="train.batch, train.accumulation",
                fix=f"Start {pictures} processes, or set train.batch so that batch x accumulation >= {self.world}.",
            )

    # Speaking with the others

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients, and the loss that is returned, of all processes, in one message.

        Each process has computed its pictures' part of the mean over the whole step. So this gives what
        DistributedDataParallel would, which averages gradients of equal shares in several messages while they are
        computed; a LoRA is small enough for one, and its shares may be unequal. One more number says whether anyone
        wishes to leave the stretch of steps; see ``heard``.
        """
        if self.alone:
            return loss
        import torch

        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        wish = torch.full((1,), float(self._wish), dtype=loss.dtype, device=loss.device)
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1), wish])
        with self.peers.speaking() as dist:
            if flat.is_cuda and not self.peers.nccl:
                here = flat.cpu()
                dist.all_reduce(here)
                flat.copy_(here)
            else:
                dist.all_reduce(flat)
        for parameter, part in zip(parameters, torch.split(flat[:-2], [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._sent = _Flag(flat[-1])
        return flat[-2]

    def heard(self, wish: bool) -> bool:
        """Return whether a process wishes to leave the stretch of steps, the same in all of them; called once a step.

        By itself that is ``wish``. With several, ``wish`` travels with the next step's gradients, so that no message
        is sent for it. On a CPU what the latest message said is known at once. On a GPU the one before it is read,
        which has long arrived, so that the next step is always under way while this one is computed.
        """
        if self.alone:
            return wish
        self._wish = wish
        flag = self._before if self._sent is not None and self._sent.is_late else self._sent
        self._before = self._sent
        return flag is not None and flag.read()

    def settle(self) -> None:
        """Forget what was wished: it has been decided on."""
        self._wish, self._sent, self._before = False, None, None

    def most(self, *values: float) -> list[float]:
        """Return the largest of each value over all processes. Everyone waits for everyone."""
        return self._reduced(values, "MAX")

    def add(self, value: float) -> float:
        """Return the sum of ``value`` over all processes."""
        return self._reduced([value], "SUM")[0]

    def agree(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        return bool(self.most(flag)[0])

    def barrier(self) -> None:
        """Wait until all have come here."""
        self.most(0)

    def tell(self, value: Any) -> Any:
        """Return the first's ``value``, which is JSON, in all processes."""
        return value if self.alone else json.loads(self._broadcast(json.dumps(value).encode() if self.first else b""))

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise RunError if what ``facts`` say, by what it is about, is not as in the first process."""
        first = self.tell(dict(facts))
        different = [what for what, fact in facts.items() if first[what] != fact]
        if different:
            raise RunError(
                f"It does not have the same as process 0: {', '.join(different)}.",
                where=socket.gethostname(),
                fix="Every machine needs the same files at the same paths, and the same versions.",
            )

    def share_weights(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the first's weights."""
        if self.alone:
            return
        import torch

        flat = torch.cat([p.detach().flatten() for p in parameters]).cpu()
        with self.peers.speaking() as dist:
            dist.broadcast(flat, 0)
        with torch.no_grad():
            for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
                parameter.copy_(part.view_as(parameter))

    def gather(self, data: bytes) -> list[bytes]:
        """Return the ``data`` of every process in the first, nothing elsewhere."""
        if self.alone:
            return [data]
        import torch

        sizes = [int(self.most(len(data) if rank == self.rank else 0)[0]) for rank in range(self.world)]
        padded = torch.frombuffer(bytearray(data.ljust(max(1, *sizes), b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in sizes] if self.first else None
        with self.peers.speaking() as dist:
            dist.gather(padded, parts, 0)
        return [part[:size].numpy().tobytes() for part, size in zip(parts or (), sizes, strict=False)]

    @contextmanager
    def copy_of(self, folder: Path | None) -> Iterator[Path]:
        """Yield the first's ``folder``, or in the other processes a copy of its files, which need share no disk.

        Raises:
            OSError: it cannot be read.
        """
        if self.alone:
            assert folder is not None
            yield folder
            return
        files = sorted(p for p in folder.iterdir() if p.is_file()) if self.first and folder else []
        names = self.tell([file.name for file in files])
        with tempfile.TemporaryDirectory(prefix="lorasmith-") as place:
            for number, name in enumerate(names):
                data = self._broadcast(files[number].read_bytes() if self.first else b"")
                if not self.first:
                    (Path(place) / Path(name).name).write_bytes(data)
            yield folder if self.first and folder else Path(place)

    def sharing(self, folder: Path) -> tuple[int, int]:
        """Return this process's number among those that share ``folder``, and how many they are.

        All do if every process sees a file that the first writes there; else those of one machine. What cannot be
        written to is shared by nobody.
        """
        if self.alone:
            return 0, 1
        probe = folder / self.tell(f".tmp-{os.getpid()}-{time.time_ns()}")
        with suppress(OSError):
            if self.first:
                folder.mkdir(parents=True, exist_ok=True)
                probe.touch()
        self.barrier()
        everyone = not self.agree(not probe.exists())  # which waits for all, too
        with suppress(OSError):
            if self.first:
                probe.unlink(missing_ok=True)
        return (self.rank, self.world) if everyone else (self.local, self.locals)

    def require_all(self) -> None:
        """Raise LostError if another process has died, or has ended with an error."""
        if not self.alone:
            self.peers.require_all()

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        if self.alone:
            return list(values)
        import torch

        numbers = torch.tensor(values, dtype=torch.float64)
        with self.peers.speaking() as dist:
            dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
        return [float(number) for number in numbers]

    def _broadcast(self, data: bytes) -> bytes:
        import torch

        size = int(self.most(len(data))[0])
        buffer = torch.frombuffer(bytearray(data.ljust(max(1, size), b"\0")), dtype=torch.uint8)
        with self.peers.speaking() as dist:
            dist.broadcast(buffer, 0)
        return buffer[:size].numpy().tobytes()


class _Flag:
    """One number of a message, on its way from the device to the CPU."""

    def __init__(self, number: Tensor) -> None:
        self.is_late = number.is_cuda
        self._number = number
        if self.is_late:
            import torch

            self._number = torch.empty_like(number, device="cpu", pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> bool:
        if self.is_late:
            self._arrived.synchronize()
        return bool(self._number.item() > 0)


ALONE = Ranks()
