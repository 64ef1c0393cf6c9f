"""Several processes train as one does: the same pictures in the same order, the same losses, one end for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.errors import RunError
from lorasmith.model.formats import read_lora
from lorasmith.train.ranks import Ranks
from lorasmith.train.together import in_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests fork")
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SETTINGS = (
    "train.steps=6", "train.batch=5", "train.warmup=2", "train.learning_rate=1e-2", "train.precision=fp32",
    "train.device=cpu", "train.log_every=1", "train.save_every=3", "lora.rank=4", "data.validation=0.25",
    "samples.steps=1", "samples.prompts=['an axe','a whip','pink']",
)  # fmt: skip


@dataclass
class Ended:
    codes: list[int]
    said: list[str]
    seconds: float


Start = Callable[..., Ended]


@pytest.fixture(scope="module")
def worker(tiny_base: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    script = Path(__file__).with_name("ranks_worker.py")
    process = subprocess.Popen([sys.executable, str(script), str(tiny_base)], env=environment, **pipes)
    yield process
    process.communicate(timeout=60)


@pytest.fixture
def start(worker: subprocess.Popen[str], tiny_base: Path, folders: list[Path], cache: Path, tmp_path: Path) -> Start:
    """Return what trains in so many processes: a new run at ``run``, or with ``resume`` the one there."""

    def begin(world: int, run: Path, *settings: str, resume: bool = False, **order: Any) -> Ended:
        assert worker.stdin and worker.stdout
        sets = [f"--set={text}" for text in (*SETTINGS, *settings)]
        told = [*map(str, folders), "--base", str(tiny_base), "--out", str(run), *sets]
        arguments = ["train", *(["--resume", str(run)] if resume else told)]
        order |= {"world": world, "run": str(run), "arguments": arguments}
        worker.stdin.write(json.dumps({**order, "cache": str(cache)}) + "\n")
        worker.stdin.flush()
        ended = Ended(**json.loads(worker.stdout.readline()))
        assert not any("Traceback" in text for text in ended.said), ended.said
        return ended

    return begin


def each(run: Path, kind: str, *names: str) -> list[Any]:
    records = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [tuple(r[name] for name in names) for r in records if r["event"] == kind]


def logged(start: Path, kind: str, world: int) -> list[list[Any]]:
    files = [Path(f"{start}-{kind}-{rank}") for rank in range(world)]
    return [[json.loads(line) for line in f.read_text().splitlines()] if f.exists() else [] for f in files]


def assert_same(one: Path, other: Path, *, samples: bool = True) -> None:
    """Compare two runs: every step's loss and gradient, the validation, the weights, what was saved and drawn."""
    for kind, names in {"StepDone": ("step", "loss", "grad_norm"), "Validated": ("step", "loss")}.items():
        for left, right in zip(each(one, kind, *names), each(other, kind, *names), strict=True):
            assert left == pytest.approx(right, rel=0, abs=1e-5)
    lora, same = (read_lora(run / "lora.safetensors").tensors for run in (one, other))
    for name, tensor in lora.items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-3, atol=1e-5)
    saved = [sorted(p.relative_to(r).as_posix() for p in r.rglob("step-*/*")) for r in (one, other)]
    assert saved[0] == saved[1] and len(saved[0]) == 2 * 3 + 3 * 3


def assert_like_one(start: Start, tmp_path: Path, world: int, **order: Any) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert start(1, one, log=str(one)).codes == [0]
    for path in (tmp_path / "cache").rglob("*.tensors"):
        path.unlink()
    ended = start(world, many, log=str(many), forecast=True, **order)
    assert ended.codes == [0] * world, ended.said
    assert not any(ended.said[1:])
    assert_same(one, many)
    assert logged(many, "draw", world) == logged(one, "draw", 1) * world
    provenance = json.loads((many / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["processes"] == world


def test_two_processes_train_as_one_does(start: Start, tmp_path: Path) -> None:
    assert_like_one(start, tmp_path, 2)  # five pictures a step: shares of two and three
    whole, shares = logged(tmp_path / "one", "encode", 1)[0], logged(tmp_path / "many", "encode", 2)
    assert sorted(shares[0] + shares[1]) == sorted(whole)  # each picture once
    assert abs(len(shares[0]) - len(shares[1])) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_more_processes_train_as_one_does(start: Start, tmp_path: Path, world: int) -> None:
    assert_like_one(start, tmp_path, world)


@pytest.mark.slow
def test_machines_without_a_common_cache_train_as_one_does(start: Start, tmp_path: Path) -> None:
    assert_like_one(start, tmp_path, 2, apart=True)
    whole, shares = logged(tmp_path / "one", "encode", 1)[0], logged(tmp_path / "many", "encode", 2)
    assert sorted(shares[0]) == sorted(shares[1]) == sorted(whole)


def test_stopped_at_two_resumed_at_one_and_back(start: Start, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(1, whole).codes == [0]
    ended = start(2, run, do=[{"rank": 1, "step": 2, "what": "SIGTERM"}])
    assert ended.codes == [143, 143]
    assert "Stopped at step 2 of 6." in ended.said[0]
    assert ended.said[1] == ""
    assert start(1, run, resume=True, do=[{"rank": 0, "step": 4, "what": "SIGINT"}]).codes == [130]
    ended = start(2, run, resume=True)
    assert ended.codes == [0, 0] and "Changed since" not in ended.said[0]
    assert [step for (step,) in each(run, "CheckpointSaved", "step")] == [2, 3, 4, 6]
    assert [step for (step,) in each(run, "StepDone", "step")] == [1, 2, 3, 4, 5, 6]
    steps = [each(r, "StepDone", "step", "loss") for r in (whole, run)]
    assert [loss for _, loss in steps[0]] == pytest.approx([loss for _, loss in steps[1]], rel=0, abs=1e-5)
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    assert [session["processes"] for session in provenance["resumed"]] == [1, 2]
    assert [session["changes"] for session in provenance["resumed"]] == [[], []]
    lora, same = (read_lora(r / "lora.safetensors").tensors for r in (whole, run))
    for name, tensor in lora.items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-3, atol=1e-5)


def test_what_is_not_finite_in_one_process_is_skipped_by_all(start: Start, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert start(1, one, do=[{"rank": 0, "step": 4, "what": "nan"}]).codes == [0]
    assert start(2, many, do=[{"rank": 1, "step": 4, "what": "nan"}]).codes == [0, 0]
    assert_same(one, many)
    assert each(many, "StepSkipped", "step", "pictures") == each(one, "StepSkipped", "step", "pictures")
    assert [step for (step,) in each(many, "StepDone", "step")] == [1, 2, 3, 5, 6]


def test_all_are_rolled_back_together_and_give_up_together(start: Start, tmp_path: Path) -> None:
    settings = ("train.rollback_after=2", "train.rollbacks=1")
    one, many = tmp_path / "one", tmp_path / "many"
    ended = start(1, one, *settings, do=[{"rank": 0, "step": step, "what": "nan"} for step in (5, 6)])
    assert ended.codes == [2]
    ended = start(2, many, *settings, do=[{"rank": 1, "step": step, "what": "nan"} for step in (5, 6)])
    assert ended.codes == [2, 2] and "It was rolled back 1 time," in ended.said[0] and ended.said[1] == ""
    back = each(one, "RolledBack", "at", "to")
    assert back == each(many, "RolledBack", "at", "to") == [(6, 3)]
    for left, right in zip(each(one, "StepDone", "step", "loss"), each(many, "StepDone", "step", "loss"), strict=True):
        assert left == pytest.approx(right, rel=0, abs=1e-5)


def test_a_signal_to_one_process_stops_all(start: Start, tmp_path: Path) -> None:
    ended = start(2, tmp_path / "run", "train.log_every=50", do=[{"rank": 1, "step": 4, "what": "SIGTERM"}])
    assert ended.codes == [143, 143]
    assert "Stopped at step 5 of 6." in ended.said[0]


def test_a_request_to_stop_stops_all(start: Start, tmp_path: Path) -> None:
    # Between two lines of the log nobody waits for anybody: who is asked in step 1 tells the others in step 2.
    ended = start(2, tmp_path / "run", "train.log_every=50", do=[{"rank": 0, "step": 1, "what": "stop"}])
    assert ended.codes == [130, 130]
    assert "Stopped at step 2 of 6." in ended.said[0] and ended.said[1] == ""


def test_without_a_launcher_the_end_of_the_first_ends_the_others(start: Start, tmp_path: Path) -> None:
    ended = start(2, tmp_path / "run", bare=True, do=[{"rank": 0, "step": 2, "what": "SIGKILL"}])
    assert ended.codes == [-9, 2] and ended.seconds < 20
    assert "Process 0 of 2 (pid " in ended.said[1] and "has ended, or was killed." in ended.said[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(start: Start, tmp_path: Path, victim: int) -> None:
    ended = start(2, tmp_path / "run", do=[{"rank": victim, "step": 5, "what": "SIGKILL"}])
    survivor = 1 - victim
    assert ended.codes[victim] == -9 and ended.codes[survivor] == 2
    assert ended.seconds < 20
    assert f"Process {victim} of 2 (pid " in ended.said[survivor]
    assert "has died without a word" in ended.said[survivor] and "--resume" in ended.said[survivor]
    resumed = start(1, tmp_path / "run", resume=True)
    assert resumed.codes == [0] and "Going on after step 3 of 6" in resumed.said[0]


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_in_one_process_is_told_once(start: Start, tmp_path: Path, culprit: int) -> None:
    ended = start(2, tmp_path / "run", do=[{"rank": culprit, "step": 2, "what": "error"}])
    assert ended.codes == [2, 2] and ended.seconds < 20
    errors = [text[text.index("Error:") :] if "Error:" in text else "" for text in ended.said]
    who = "Process 1 of 2: " if culprit else ""
    assert errors[culprit].startswith(f"Error: {who}A picture has gone.\n  where: axe/1.png\n  to do: Put it back.")
    assert errors[1 - culprit] == ""


def test_a_fault_in_one_process_names_it(start: Start, tmp_path: Path) -> None:
    ended = start(2, tmp_path / "run", do=[{"rank": 1, "step": 2, "what": "fault"}])
    assert ended.codes == [2, 1]
    assert "in process 1 of 2: nothing is divided by zero" in ended.said[1]


def test_more_processes_than_pictures_are_refused(start: Start, tmp_path: Path) -> None:
    ended = start(2, tmp_path / "run", "train.batch=1")
    assert ended.codes == [2, 2]
    assert "2 processes share the pictures of a step, and there are only 1." in ended.said[0] and ended.said[1] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_told_to_stop_leaves_a_run_to_resume(tiny_base: Path, folders: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lorasmith", "train"]
    options = [f"--set={text}" for text in (*SETTINGS, "train.save_every=1000", "train.log_every=5")]
    names = [*map(str, folders), "--base", str(tiny_base), "--out", str(run)]
    command = [*launch, *names, *options, "--set=train.steps=2000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    for line in process.stdout:
        if line.startswith("step 20 "):
            break
    process.terminate()
    said, told = process.communicate(timeout=60)
    assert "The checkpoint holds the work so far." in said, told
    (step,) = [step for (step,) in each(run, "CheckpointSaved", "step")]
    resumed = [*launch, "--resume", str(run), f"--set=train.steps={step + 5}"]
    changed = [*resumed, "--allow-changes"]
    ended = subprocess.run(changed, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and f"Going on after step {step} of {step + 5}" in ended.stdout, ended.stderr


def test_a_process_with_other_pictures_is_refused(start: Start, tmp_path: Path) -> None:
    ended = start(2, tmp_path / "run", other_pictures=1)
    assert ended.codes == [2, 2]
    assert "Error: Process 1 of 2: It does not have the same as process 0: the pictures" in ended.said[1]
    assert not (tmp_path / "run").exists()


def test_shares_are_whole_and_even() -> None:
    for world in range(1, 9):
        for count in range(20):
            shares = [Ranks(rank, world).share(count) for rank in range(world)]
            assert [i for first, last in shares for i in range(first, last)] == list(range(count))
            sizes = [last - first for first, last in shares]
            assert max(sizes) - min(sizes) <= 1 and max(sizes) == Ranks(0, world).largest_share(count)


def test_the_place_is_read_from_the_environment() -> None:
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    ranks = in_environment({**LAUNCHED, **address})
    assert (ranks.rank, ranks.world, ranks.local, ranks.locals, ranks.first) == (1, 4, 1, 2, False)
    for environment in ({}, {"WORLD_SIZE": "4"}, {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}):
        assert in_environment(environment).alone
    for wrong in ({}, {**address, "RANK": "4"}, {**address, "WORLD_SIZE": "four"}, {**address, "LOCAL_RANK": "2"}):
        with pytest.raises(RunError, match="place among several"):
            in_environment({**LAUNCHED, **wrong})


def test_a_process_by_itself_does_nothing_more(tmp_path: Path) -> None:
    ranks = Ranks()
    loss, parameter = torch.tensor(1.0), torch.nn.Parameter(torch.zeros(2))
    assert ranks.sum_gradients([parameter], loss) is loss and parameter.grad is None
    assert (ranks.heard(True), ranks.heard(False), ranks.agree(True), ranks.agree(False)) == (True, False, True, False)
    assert (ranks.tell({"a": 1}), ranks.add(2.5), ranks.gather(b"x")) == ({"a": 1}, 2.5, [b"x"])
    assert ranks.sharing(tmp_path) == (0, 1) and not list(tmp_path.iterdir())
    with ranks.copy_of(tmp_path) as folder:
        assert folder == tmp_path
    ranks.require_same({"anything": "at all"})
    ranks.require_all()
    ranks.barrier()
