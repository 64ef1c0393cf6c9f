"""Kill a training with SIGKILL again and again, resume it each time, and compare its end with one never killed.

    python benchmarks/kill_resume.py --kills 1000

Kills come before each system call of a save in turn (files.before), and at random moments. A base in miniature is
trained for six steps with a checkpoint every two. Libraries are imported once; each training is a fork. The log is
written to benchmarks/results/. POSIX only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS, INTERVAL = 6, 2


@dataclass
class Outcome:
    """One training in a process of its own: how it ended, in seconds, and the calls that ``files.before`` saw."""

    end: str
    seconds: float
    calls: list[tuple[str, str]] = field(default_factory=list)
    message: str = ""


class Worker:
    """A process that has imported everything, loaded the base, and forks a training for each order."""

    def __init__(self, base: Path, folders: Sequence[Path], cache: Path) -> None:
        environment = {**os.environ, "LORASMITH_CACHE": str(cache), "PYTHONPATH": str(ROOT / "src")}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--worker", str(base), *map(str, folders)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)

    def train(self, run: Path, **order: Any) -> Outcome:
        """Begin or resume the run at ``run``.

        Args:
            order: ``match`` and ``nth`` (SIGKILL before the nth call whose path contains match), ``after`` (SIGKILL
                after so many seconds), ``limit`` (RLIMIT_FSIZE in bytes), ``keep_last``, ``steps``.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"run": str(run), **order}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the worker has died")
        found = json.loads(answer)
        return Outcome(found["end"], found["seconds"], [tuple(c) for c in found["calls"]], found["message"])

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass(frozen=True)
class Result:
    """What must be the same however often a run was killed."""

    files: dict[str, bytes]
    steps: list[tuple[int, float, float, float]]
    validated: list[tuple[int, float]]
    sampled: list[int]
    pictures: dict[str, bytes]

    @staticmethod
    def of(run: Path) -> Result:
        records = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]

        def each(kind: str, *names: str) -> list[Any]:
            return [tuple(r[name] for name in names) for r in records if r["event"] == kind]

        samples = sorted((run / "samples").rglob("*.png"))
        return Result(
            {name: (run / name).read_bytes() for name in ("lora.safetensors", "lora-kohya.safetensors")},
            each("StepDone", "step", "loss", "grad_norm", "learning_rate"),
            each("Validated", "step", "loss"),
            [step for (step,) in each("Sampled", "step")],
            {p.relative_to(run).as_posix(): p.read_bytes() for p in samples},
        )


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    runs: int = 0
    lost: int = 0
    different: int = 0
    repeated: list[int] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def repeated_steps(run: Path) -> int:
    """Return how many logged steps a killed run will take again."""
    from lorasmith.run_log import read_log
    from lorasmith.run_manifest import newest_valid, step_of

    steps = [r["step"] for r in read_log(run) if r.get("event") == "StepDone"]
    checkpoint, _ = newest_valid(run)
    return max(0, (steps[-1] if steps else 0) - (step_of(checkpoint) if checkpoint else 0))


FINISHED = "The run is finished"  # what is said where a kill at random came after the last thing there was to do


def kill_until_done(worker: Worker, run: Path, orders: Callable[[int], dict[str, Any] | None], tally: Tally) -> bool:
    """Train ``run``, killed as ``orders`` says for each session, until it ends by itself; None is no kill.

    Returns:
        Whether it ended well; else it is lost.
    """
    session = 0
    tally.runs += 1
    while True:
        order = orders(session)
        session += 1
        outcome = worker.train(run, **(order or {}))
        tally.seconds.append(outcome.seconds)
        if outcome.end == "done" or (session > 1 and FINISHED in outcome.message):
            return True
        if outcome.end != "killed":
            tally.lost += 1
            print(f"{run} is lost: {outcome.message}", file=sys.stderr)
            return False
        tally.kills += 1
        place = f"before {outcome.calls[-1][0]}" if order and "nth" in order and outcome.calls else "at random"
        tally.places[place] = tally.places.get(place, 0) + 1
        if (run / "provenance.json").is_file():
            tally.repeated.append(repeated_steps(run))


def boundaries(match: str) -> Callable[[int], dict[str, Any] | None]:
    """Return orders that kill before the first call on ``match``, then before the second, and so on to the last."""
    return lambda session: {"match": match, "nth": session + 1}


def random_kills(rng: random.Random, longest: float, most: int) -> Callable[[int], dict[str, Any] | None]:
    """Return orders that kill at random within ``longest`` seconds, ``most`` times."""
    return lambda session: {"after": rng.uniform(0, longest)} if session < most else None


# ---- the worker


def serve(base: Path, folders: Sequence[Path]) -> None:
    """Fork a training for each order on stdin, and answer with how it ended."""
    import torch
    import torch.utils.tensorboard  # a second that no fork shall spend again

    from lorasmith.model.stable_diffusion import load_base
    from lorasmith.train import loop, reproduce  # noqa: F401

    torch.set_num_threads(1)
    sd = load_base(str(base))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder)
            begun = time.perf_counter()
            child = os.fork()
            if child == 0:
                _train_in_child(sd, base, folders, order, report)
            if (after := order.get("after")) is not None:
                time.sleep(after)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            end = "killed" if killed else "done" if os.WEXITSTATUS(status) == 0 else "failed"
            log, message = report / "calls", report / "message"
            calls = [line.split("\t", 1) for line in log.read_text().splitlines()] if log.exists() else []
            answer = {"end": end, "seconds": time.perf_counter() - begun, "calls": calls}
            answer["message"] = message.read_text() if message.exists() else ""
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _train_in_child(sd: Any, base: Path, folders: Sequence[Path], order: dict[str, Any], report: Path) -> None:
    code = 1
    try:
        from lorasmith import files
        from lorasmith.run import Run
        from lorasmith.run_record import is_run
        from lorasmith.train import loop

        loop.load_base = lambda *_, **__: sd  # type: ignore[assignment]
        loop.foretell = _no_forecast  # type: ignore[assignment] -- most of a session's time, and no part of this
        recipe = make_recipe(base, folders, order)
        files.before = _killer(order, report)
        path = Path(order["run"])
        if limit := order.get("limit"):
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with Run.open(path) if is_run(path) else Run.create(path, recipe) as run:
            for _ in loop.train(recipe, run):
                pass
        code = 0
    except BaseException as error:
        files.before = None
        (report / "message").write_text(f"{type(error).__name__}: {error}")
        code = 2
    finally:
        os._exit(code)


def _no_forecast(sd: Any, recipe: Any, *_: Any) -> Generator[Any, None, Any]:
    from lorasmith.events import Forecast

    forecast = Forecast(
        {"training": 0.0}, 0.0, dict.fromkeys(("training", "validation", "samples", "checkpoints"), 0.0)
    )
    yield forecast
    return recipe, forecast


def make_recipe(base: Path, folders: Sequence[Path], order: dict[str, Any]) -> Any:
    from lorasmith.recipe.schema import Recipe

    return Recipe.model_validate({
        "base": str(base),
        "data": {"folders": tuple(folders), "validation": 0.25, "flip": True},
        "lora": {"rank": 4, "alpha": 2.0, "dropout": 0.1},
        "train": {
            "steps": order.get("steps", STEPS), "batch": 2, "warmup": 2, "learning_rate": 1e-2, "precision": "fp32",
            "device": "cpu", "save_every": INTERVAL, "log_every": 1, "keep_last": order.get("keep_last", 1),
            "ema": 0.9,
        },
        "samples": {"steps": 1, "prompts": ("an axe",)},
    })  # fmt: skip


def _killer(order: dict[str, Any], report: Path) -> Callable[[str, Path], None]:
    log = (report / "calls").open("w", buffering=1)
    match, nth, seen = order.get("match"), order.get("nth"), 0

    def before(call: str, path: Path) -> None:
        nonlocal seen
        log.write(f"{call}\t{path}\n")
        if match is not None and match in str(path):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return before


# ---- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        base, folders = _material(place)
        worker = Worker(base, folders, place / "cache")
        try:
            text = _measure(worker, place, arguments.kills, arguments.seed)
        finally:
            worker.close()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / f"kill-resume-{date.today():%Y-%m-%d}.md"
    log.write_text(text, encoding="utf-8")
    print(text)
    print(f"Written to {log}")


def _material(place: Path) -> tuple[Path, list[Path]]:
    """Make a base in miniature, that of the tests, and two folders of pictures."""
    import numpy as np
    from PIL import Image

    path = ROOT / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_tests", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._write_base(place / "base", text_width=32)
    rng = np.random.default_rng(0)
    folders = [place / "axe", place / "whip"]
    for number, picture_folder in enumerate(folders):
        picture_folder.mkdir()
        for i in range(6 - 3 * number):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(picture_folder / f"{i}.png")
            (picture_folder / f"{i}.txt").write_text(f"a pink {picture_folder.name} {i % 3}")
    return place / "base", folders


def _measure(worker: Worker, place: Path, kills: int, seed: int) -> str:
    begun, rng, tally = time.perf_counter(), random.Random(seed), Tally()
    whole = worker.train(place / "never-killed")
    assert whole.end == "done", whole.message
    again = worker.train(place / "never-killed-again")
    want = Result.of(place / "never-killed")
    same = Result.of(place / "never-killed-again") == want
    number = 0
    while tally.kills < kills:
        run = place / f"run-{number}"
        step = INTERVAL * (1 + number // 2 % (STEPS // INTERVAL))
        most = min(rng.randint(1, 6), kills - tally.kills)
        by_boundary = number % 2 == 0 and kills - tally.kills >= 25
        orders = boundaries(f"step-{step:06d}") if by_boundary else random_kills(rng, 1.1 * again.seconds, most)
        ended = kill_until_done(worker, run, orders, tally)
        tally.different += ended and Result.of(run) != want
        number += 1
        print(f"{tally.kills} kills, {tally.runs} runs", file=sys.stderr)
    places = "\n".join(f"| {name} | {count} |" for name, count in sorted(tally.places.items()))
    return f"""# Killed and resumed, {date.today():%Y-%m-%d}

`python benchmarks/kill_resume.py --kills {kills} --seed {seed}` in {(time.perf_counter() - begun) / 60:.1f} min on
{platform.platform()}, Python {platform.python_version()}. Each run: {STEPS} steps, a checkpoint every {INTERVAL}.

| | |
|---|---|
| kills (SIGKILL), each followed by a resume | {tally.kills} |
| runs | {tally.runs} |
| runs lost | {tally.lost} |
| runs whose LoRA files, logged losses, validation or samples differ in any byte | {tally.different} |
| most steps repeated after a kill (an interval is {INTERVAL}) | {max(tally.repeated, default=0)} |
| two runs never killed are identical | {"yes" if same else "NO"} |
| seconds of a session, mean | {sum(tally.seconds) / len(tally.seconds):.2f} |

| killed | times |
|---|---|
{places}
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    else:
        main()
