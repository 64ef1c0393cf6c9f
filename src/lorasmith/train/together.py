"""Whether this process trains by itself or with others, and how it ends with them.

Nothing here imports torch before there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lorasmith.errors import LorasmithError, RunError
from lorasmith.train.peers import LostError
from lorasmith.train.ranks import Ranks

_NAMES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def in_environment(environment: Mapping[str, str]) -> Ranks:
    """Return the place that a launcher has given this process in its environment, as torchrun names it.

    Raises:
        RunError: the launcher has said only half of it.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    try:
        rank, world, local, of = (int(environment.get(name, usual)) for name, usual in _NAMES.items())
        ranks = Ranks(rank, world, local, of)
    except ValueError:
        ranks = Ranks(-1)
    if missing or not (0 <= ranks.rank < ranks.world and 0 <= ranks.local < ranks.locals):
        said = ", ".join(f"{name}={environment.get(name, '')}" for name in (*_NAMES, "MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            "The environment does not say this process's place among several.",
            where=said,
            fix="Start it with torchrun or accelerate launch, or unset RANK and WORLD_SIZE to train in one process.",
        )
    return ranks


@contextmanager
def together() -> Iterator[Ranks]:
    """Join those that the environment names for the block, and part from them however it ends.

    An error in a process other than the first is raised with its number. Who is silent because the first, or the
    process that is at fault, has said it, ends by SystemExit.
    """
    ranks = in_environment(os.environ)
    if ranks.alone:
        yield ranks
        return
    try:
        ranks.join()
        yield ranks
        ranks.barrier()
        ranks.peers.leave()
    except BaseException as error:
        ranks.peers.leave(error)
        if isinstance(error, LostError) and error.told:
            raise SystemExit(2) from error
        if ranks.first:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(getattr(error, "code", 130)) from error
        if ranks.peers.says_the_first(error):
            raise SystemExit(2) from error
        if isinstance(error, LorasmithError) and not isinstance(error, LostError):
            error.what = f"Process {ranks.rank} of {ranks.world}: {error.what}"
        elif not isinstance(error, (LorasmithError, OSError)):
            error.args = (f"in process {ranks.rank} of {ranks.world}: {error}",)
        raise
