"""The same bytes from a GPU, too: only algorithms that add in the same order each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lorasmith.errors import DeviceError

# cuBLAS chooses among its ways by the scratch memory that is free, unless that is fixed before its first product
# (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
_SCRATCH = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch compute deterministically in the block, if that is ``wanted``, and as before after it.

    Raises:
        DeviceError: an operation in the block has no deterministic way on its device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(*_SCRATCH)
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise DeviceError(
            "An operation of this training has no deterministic way on this device.",
            where=str(error).splitlines()[0],
            fix="Train without train.deterministic; the result then differs a little from time to time.",
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
