"""The training from the first look at the pictures to the proved LoRA, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence

import psutil
import torch

from lorasmith.dataset.read import read_dataset
from lorasmith.dataset.split import split
from lorasmith.errors import DeviceError
from lorasmith.events import CheckpointSaved, Event, Finished, Forecast, Note, Sampled, StepDone, Validated
from lorasmith.files import sha256_file
from lorasmith.generate.sample import Request
from lorasmith.model.formats import write_diffusers, write_kohya
from lorasmith.model.stable_diffusion import load_base, pick_dtype
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import step_of, superseded
from lorasmith.train.board import Board
from lorasmith.train.checkpoint import LORA_FILE, write_lora
from lorasmith.train.control import Requests
from lorasmith.train.describe import describe_data, describe_fit, duration
from lorasmith.train.deterministic import deterministic
from lorasmith.train.disk import check_disk
from lorasmith.train.estimate import save_every
from lorasmith.train.followed import share_forecast, share_past
from lorasmith.train.forecast import explained, foretell, time_left
from lorasmith.train.guards import STEPS_TO_CHANGE, Figures, no_effect, validation_not_finite, zero_lora
from lorasmith.train.interrupt import Interrupt, Stopped
from lorasmith.train.memory_guard import is_out_of_memory, told
from lorasmith.train.peers import LostError
from lorasmith.train.pictures import prepare
from lorasmith.train.ranks import ALONE, Ranks
from lorasmith.train.recover import recover
from lorasmith.train.resume import Past, begin, lora_metadata, settled
from lorasmith.train.resume_words import resume_command
from lorasmith.train.rollback import counting
from lorasmith.train.samples import draw_samples, sample_requests
from lorasmith.train.step import Batch
from lorasmith.train.trainer import Trainer
from lorasmith.train.validate import validation_batch, validation_loss

KOHYA_FILE = "lora-kohya.safetensors"
_STEPS_TO_FORETELL = 10


def train(recipe: Recipe, run: Run, *, allow_changes: bool = False, ranks: Ranks = ALONE) -> Iterator[Event]:
    """Train a LoRA as ``recipe`` says, with everything written into ``run``; a run taken up again goes on.

    Each event is in the run's events.jsonl and on its TensorBoard before it is yielded. At the end the run holds
    ``lora.safetensors`` (diffusers) and ``lora-kohya.safetensors`` (the same weights for other programs).

    Args:
        allow_changes: go on even if the recipe, the data, the base or a version is not what the run began with.
        ranks: the processes that train it together, each by a call of this. Only the first yields events and writes.

    Raises:
        LorasmithError: one of its kinds, for everything that a user can mend; the checkpoints before stay good.
        Stopped: after Ctrl-C, SIGTERM or a request; a step that was begun is finished and saved, and events have
            said how to go on.
    """
    board = Board(run.path / "tensorboard")
    try:
        requests = Requests(run.path) if ranks.first else None
        with deterministic(recipe.train.deterministic), Interrupt(requests) as interrupt:
            for event in interrupt.guard(_train(recipe, run, board, interrupt, allow_changes, ranks)):
                if ranks.first:
                    run.append(event)
                    board.show(event)
                    yield event
    except Stopped:
        ranks.require_all()  # else this is only the launcher ending those that are left
        if ranks.first:
            note = Note(_how_to_go_on(run, recipe))
            run.append(note)
            yield note
        raise
    except LostError as lost:
        lost.fix = f"Once that is mended: {resume_command(run.path)}, started as before."
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            "The memory is not enough for this recipe.",
            where=(str(error).splitlines() or [type(error).__name__])[0],
            fix="Train with --preset low-memory, or lower train.batch or data.resolution.",
        ) from error
    finally:
        board.close()


def _how_to_go_on(run: Run, recipe: Recipe) -> str:
    if not run.taken_up and not run.has_work():
        return "Stopped before the training began. The same command begins again."
    saved = run.checkpoints()
    step = step_of(saved[-1]) if saved else 0
    what = f"Stopped at step {step} of {recipe.train.steps}. "
    what += "The checkpoint holds the work so far." if saved else "No step had been saved."
    return f"{what} To go on: {resume_command(run.path)}"


def _train(
    recipe: Recipe, run: Run, board: Board, interrupt: Interrupt, allow_changes: bool, ranks: Ranks
) -> Generator[Event, None, None]:
    ranks.require_shares(recipe.train.batch * recipe.train.accumulation)
    device = ranks.device(recipe.train.device)
    dtype = pick_dtype(recipe.train.precision, device)
    dataset = read_dataset(recipe.data.folders, strict=recipe.data.strict, preserve=recipe.data.preserve)
    training, held_out = split(dataset, recipe.data.validation, recipe.train.seed)
    yield from describe_data(dataset, training, held_out)

    sd = load_base(recipe.base, device=device, dtype=dtype, vae=recipe.vae, weights=recipe.weights)
    yield from map(Note, sd.notes)
    size = recipe.data.resolution or sd.size
    yield from describe_fit(sd, dataset.examples, size)
    facts = {"base_sha256": sd.sha256, "dataset_sha256": dataset.sha256, "device": str(device)}
    ranks.require_same({"the base": sd.sha256, "the pictures and captions": dataset.sha256})
    ranks.require_same({"the kind of device": device.type, "the number format": str(dtype)})
    about_now = {**facts, "number_format": str(dtype).removeprefix("torch."), "seed": recipe.train.seed}
    about_now |= {"processes": ranks.world, "threads": torch.get_num_threads() if device.type == "cpu" else None}
    past = yield from share_past(ranks, begin(run, recipe, about_now, allow_changes))
    if ranks.first:
        board.draw_again(past.records)
    about = lora_metadata(recipe, facts, run.provenance)
    foretold = foretell(sd, settled(run, recipe), size, training, held_out, None, ranks)
    recipe, forecast = yield from share_forecast(ranks, foretold)
    run.record(gradient_checkpointing=recipe.train.gradient_checkpointing)
    latents, held_latents, text = yield from prepare(
        sd, recipe, run, size, dataset.pictures_found, (training, held_out), allow_changes, ranks
    )

    trainer = Trainer(sd, recipe, latents, text, ranks)
    trainer.rolled_back, trainer.slowings = ranks.tell(counting(run))
    held = validation_batch(held_latents, text, sd.alphas_cumprod) if held_latents.examples else None
    metadata = {**about, "resolution": str(size), "pictures": str(len(latents.examples))}
    requests = sample_requests(recipe.samples, latents.examples, size)
    session = _Session(recipe, run, trainer, held, requests, metadata, forecast, past, board)
    if ranks.first:
        yield from check_disk(run, recipe, session.adapter_bytes, len(requests), size, past.step)
    ranks.share_weights(trainer.parameters)
    yield from session.look()
    if past.checkpoint is not None:
        with ranks.copy_of(past.checkpoint) as checkpoint:
            trainer.restore(checkpoint)
        yield from session.look_again()
    yield from trainer.prepare()
    yield from explained(session.steps(interrupt), sd, trainer.room, size, (training, held_out))
    if ranks.first:
        yield session.finish()


class _Session:
    """The part of a training that steps, logs, validates, samples and saves."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        trainer: Trainer,
        held: Batch | None,
        requests: Sequence[Request],
        metadata: dict[str, str],
        forecast: Forecast,
        past: Past,
        board: Board,
    ) -> None:
        self.board, self.zero_watched = board, False
        self.recipe, self.run, self.trainer, self.past, self.ranks = recipe, run, trainer, past, trainer.ranks
        self.held, self.requests, self.metadata, self.forecast = held, requests, metadata, forecast
        self.save_every = save_every(recipe)
        self.figures: dict[str, float] = dict(past.figures)
        self.seconds_training, self.seconds_looking = past.seconds, 0.0
        self.foretold = False
        self.adapter_bytes = sum(p.numel() * p.element_size() for p in trainer.parameters)

    def steps(self, interrupt: Interrupt) -> Iterator[Event]:
        """Train to the end, or to the step in which the training is told to stop."""
        settings, trainer = self.recipe.train, self.trainer
        while trainer.step < settings.steps:
            interrupt.holding = True  # from here to the save there is something to lose
            yield from self._stretch(interrupt)
            if trainer.watch.diverged or not trainer.is_finite():
                self.past = yield from recover(self.run, self.recipe, trainer, self.board)
                self.figures, self.seconds_training = dict(self.past.figures), self.past.seconds
                continue
            due, (stop, save, drawing) = self._is_due(trainer.step), interrupt.wishes(self.ranks)
            if due or drawing or stop or save:
                if self.ranks.first:
                    yield self._save()
                interrupt.done("save")
                stop = interrupt.wishes(self.ranks).stop  # all have come here when the first has saved
                interrupt.holding = False
                if stop:
                    raise interrupt.stopped()
                if due:
                    yield from self.look()
                elif drawing:
                    yield from self._draw()
                if drawing:
                    interrupt.done("sample")
                yield from self._remove_superseded()

    def _stretch(self, interrupt: Interrupt) -> Iterator[Event]:
        """Train to the next step that is logged. Only here, at its end, does anyone wait for the device."""
        settings, trainer = self.recipe.train, self.trainer
        begun, first = time.perf_counter(), trainer.step
        figures = Figures(trainer.watch, trainer.pictures)
        while trainer.step == first or not (
            trainer.step % settings.log_every == 0 or self._is_due(trainer.step) or self.ranks.heard(_wanted(interrupt))
        ):
            if figures.add(trainer.step + 1, trainer.advance()):
                yield from figures.read()
                if trainer.watch.diverged:
                    break
        yield from figures.read()
        yield from told(trainer.room, self.ranks)
        seconds = time.perf_counter() - begun
        self.seconds_training += seconds
        if (means := figures.means()) is None:
            return  # each of these steps has an event of its own
        loss, norm = means
        rate = (trainer.step - first) * settings.batch * settings.accumulation / seconds
        self.figures |= {"loss": loss, "steps": trainer.step}
        memory = memory_mib(trainer.sd.device)
        yield StepDone(trainer.step, settings.steps, loss, trainer.learning_rate, norm, rate, memory)
        if not self.zero_watched and trainer.step >= min(STEPS_TO_CHANGE, settings.steps):
            self.zero_watched = True
            if trainer.is_zero():
                yield zero_lora(trainer.step)
        if trainer.step >= _STEPS_TO_FORETELL and not self.foretold:
            self.foretold = True
            yield self._time_left()

    def look(self) -> Iterator[Event]:
        """Validate and draw samples with the adapter as it is; at step 0 that is the base. What is done stays done."""
        begun, done = time.perf_counter(), self.past
        step, sd = self.trainer.step, self.trainer.sd
        if self.held is not None and step not in done.validated and (step == 0 or 0 in done.validated):
            with self.trainer.averaged():
                loss = yield from validation_loss(sd, self.held, 2 * self.recipe.train.batch, self.ranks)
            if math.isfinite(loss):
                done.validated[step] = loss
                yield Validated(step, loss, done.validated[0])
            else:
                yield validation_not_finite(step)
            if step > 0 and loss == done.validated[0]:
                yield no_effect(step)
        if step in done.validated:
            self.figures["base_validation_loss"] = done.validated[0]
            self.figures["validation_loss"] = done.validated[step]
        if step not in done.sampled:
            yield from self._draw()
        self.seconds_looking = time.perf_counter() - begun

    def look_again(self) -> Iterator[Event]:
        """After going on from a checkpoint, do of its look what a stop has prevented."""
        if self._is_due(self.trainer.step):
            yield from self.look()

    def _draw(self) -> Iterator[Event]:
        step = self.trainer.step
        with self.trainer.averaged():
            paths = yield from draw_samples(self.trainer.sd, self.requests, self.run.samples_folder(step), self.ranks)
        self.past.sampled.add(step)
        yield Sampled(step, paths)

    def _remove_superseded(self) -> Iterator[Event]:
        """Remove the checkpoints that the recipe does not keep; the newest has been read back by now."""
        settings, losses = self.recipe.train, self.past.validated
        steps = [step_of(path) for path in self.run.checkpoints()]
        best = min((step for step in steps if step in losses), key=lambda step: losses[step], default=None)
        for step in superseded(steps, best, settings.keep_last, settings.keep_every):
            if self.run.remove_checkpoint(step):
                yield Note(f"The checkpoint at step {step} is no longer kept.")

    def finish(self) -> Finished:
        """Write the LoRA in both formats and prove that it reads back."""
        lora = self.trainer.lora()
        metadata = self._metadata()
        files = (
            write_lora(lora, self.run.path / LORA_FILE, write_diffusers, metadata),
            write_lora(lora, self.run.path / KOHYA_FILE, write_kohya, metadata),
        )
        pictures = self.trainer.step * self.recipe.train.batch * self.recipe.train.accumulation
        if self.seconds_training:
            self.figures["samples_per_second"] = pictures / self.seconds_training
        self.run.record(result={file.name: sha256_file(file) for file in files})
        return Finished("train", files, self.figures)

    def _save(self) -> CheckpointSaved:
        step = self.trainer.step
        with self.run.commit_checkpoint(step) as folder:
            self.trainer.save(folder, self._metadata())
        return CheckpointSaved(step, self.run.checkpoint_folder(step))

    def _metadata(self) -> dict[str, str]:
        return {**self.metadata, "steps": str(self.trainer.step)}

    def _is_due(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.recipe.train.steps

    def _time_left(self) -> Note:
        done, steps = self.trainer.step, self.recipe.train.steps
        looks = sum(self._is_due(step) for step in range(done, steps + 1))
        seconds = (steps - done) * self.seconds_training / done + looks * self.seconds_looking
        foretold = time_left(self.forecast, (steps - done) / steps, looks / (math.ceil(steps / self.save_every) + 1))
        return Note(f"About {duration(seconds)} to go (forecast: {duration(foretold)}).")


def _wanted(interrupt: Interrupt) -> bool:
    """Return whether the stretch shall end at this step: to stop, or for what another process asks."""
    return interrupt.requested or interrupt.asked("save") or interrupt.asked("sample")


def memory_mib(device: torch.device) -> float:
    """Return the peak memory of the tensors on a CUDA device, elsewhere the process's memory now, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
