"""Forks groups of processes that train together, as torchrun would start them, after importing everything once.

Each line of the input is an order (JSON): ``arguments`` of the command line, ``world``, and ``do``, a list of
{"rank", "step", "what"}: what happens to that rank when it is about to take that step ("nan" each time it does). The
answer is a line with each rank's exit code and what it wrote, in their order, and the seconds from the first end of a
process to the last.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any


def main(base: str) -> None:
    import torch.distributed
    import torch.utils.tensorboard

    from lorasmith.model.stable_diffusion import load_base
    from lorasmith.train import loop

    torch.set_num_threads(1)
    sd = load_base(base)
    loop.load_base = lambda *_, **__: sd  # what takes long is done once
    for line in sys.stdin:
        print(json.dumps(fork_all(json.loads(line))), flush=True)


def fork_all(order: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place) / str(rank) for rank in range(order["world"])]
        keeper = keep_store(port) if order["world"] > 1 and not order.get("bare") else 0
        pids = [fork(order, rank, port, output) for rank, output in enumerate(outputs)]
        codes, first = {}, 0.0
        while len(codes) < len(pids):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            first = first or time.monotonic()
        if keeper:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        said = [output.read_text(encoding="utf-8") for output in outputs]
        return {"codes": [codes[pid] for pid in pids], "said": said, "seconds": time.monotonic() - first}


def keep_store(port: int) -> int:
    """Fork who keeps the store, as torchrun does itself, and return its process number."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        os.write(done, b"1")
        time.sleep(600)
        del store
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(done)
    return pid


def fork(order: dict[str, Any], rank: int, port: int, output: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        sys.stdin.close()
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        world, apart = order["world"], order.get("apart", False)
        os.environ["LORASMITH_CACHE"] = order["cache"]
        if world > 1:
            names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
            if apart:  # as if each were a machine of its own, with its own disk
                names |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
                os.environ["LORASMITH_CACHE"] += f"-{rank}"
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(not order.get("bare"))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        watch(rank, order)
        from lorasmith.cli.main import run

        try:
            code = run(order["arguments"])
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def watch(rank: int, order: dict[str, Any]) -> None:
    """Log what this process draws and encodes, if the order says where; and do what it says."""
    from lorasmith.train import encode, loop, step, trainer

    if not order.get("forecast"):  # most of the time of such trainings
        loop.foretell = no_forecast
    real_errors = step.errors
    real_draw, real_encode, real_advance = trainer.draw, encode._encode, trainer.Trainer.advance

    def log(kind: str, value: Any) -> None:
        if "log" in order:
            with Path(f"{order['log']}-{kind}-{rank}").open("a", encoding="utf-8") as file:
                file.write(json.dumps(value) + "\n")

    def draw(indices: Any, *rest: Any) -> Any:
        log("draw", list(indices))
        return real_draw(indices, *rest)

    def encode_one(sd: Any, pixels: Any, example: Any) -> Any:
        log("encode", example.sha256)
        return real_encode(sd, pixels, example)

    spoilt = {(deed["rank"], deed["step"]) for deed in order.get("do", ()) if deed["what"] == "nan"}
    place = [0]

    def advance(self: Any) -> Any:
        place[0] = self.step + 1
        for deed in order.get("do", ()):
            if (deed["rank"], deed["step"]) == (rank, place[0]) and deed["what"] != "nan":
                do(deed["what"], order)
        return real_advance(self)

    def errors(*args: Any, **options: Any) -> Any:
        usual = real_errors(*args, **options)
        return usual * float("nan") if (rank, place[0]) in spoilt else usual

    step.errors = errors
    if order.get("other_pictures") == rank:
        read = loop.read_dataset

        def one_less(*args: Any, **options: Any) -> Any:
            dataset = read(*args, **options)
            return replace(dataset, examples=dataset.examples[:-1])

        loop.read_dataset = one_less
    trainer.draw, encode._encode, trainer.Trainer.advance = draw, encode_one, advance  # type: ignore[method-assign]


def no_forecast(sd: Any, recipe: Any, *_: Any) -> Generator[Any, None, Any]:
    from lorasmith.events import Forecast

    yield (forecast := Forecast({"training": 0.0}, 0.0, {"training": 0.0}))
    return recipe, forecast


def do(what: str, order: dict[str, Any]) -> None:
    from lorasmith.errors import DataError
    from lorasmith.train import control

    if what == "stop":
        control.ask(Path(order["run"]), "stop")
        time.sleep(2 * control._EVERY)  # until it is looked at
    elif what == "error":
        raise DataError("A picture has gone.", where="axe/1.png", fix="Put it back.")
    elif what == "fault":
        raise ZeroDivisionError("nothing is divided by zero")
    else:
        os.kill(os.getpid(), getattr(signal, what))


if __name__ == "__main__":
    main(sys.argv[1])
