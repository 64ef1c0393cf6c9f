"""The UNet as torch.compile makes it: kernels of its own for one batch size and one resolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import nn

from lorasmith.events import Event, Note, Warned
from lorasmith.model.stable_diffusion import StableDiffusion
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.step import Batch, errors


def compile_unet(
    sd: StableDiffusion, batch: Batch, parameters: Sequence[nn.Parameter]
) -> Generator[Event, None, Callable[..., Any]]:
    """Return a compiled ``sd.unet`` for batches of the shape of ``batch``, tried out forwards and backwards.

    ``sd.unet`` itself stays as it is and shares its weights with the compiled one, so that validation, samples and
    what is saved do not change. Where compiling fails, for want of a compiler for instance, that is warned about and
    ``sd.unet`` is returned. The weights and the gradients of ``parameters`` are left alone.
    """
    yield Note("Compiling the UNet, which takes minutes the first time.")
    begun = time.perf_counter()
    compiled: Callable[..., Any] = torch.compile(sd.unet, dynamic=False)
    try:
        with fast_kernels(sd.device, sd.dtype):
            torch.autograd.backward(errors(sd, batch.to(sd.device), compiled).mean())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch and the compilers under it raise what they like
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        yield Warned(
            f"The UNet could not be compiled ({type(error).__name__}: {reason[:200]}); it is trained without. To do: "
            "set train.compile = false, or, if it is what is missing, install a C++ compiler (on a GPU also triton)."
        )
        usual: Callable[..., Any] = sd.unet
        return usual
    finally:
        for parameter in parameters:
            parameter.grad = None
    yield Note(f"Compiled in {time.perf_counter() - begun:.0f} s.")
    return compiled
