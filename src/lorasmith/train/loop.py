"""The training from the first look at the pictures to the proved LoRA, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence

import psutil
import torch

from lorasmith.cache import cache_folder
from lorasmith.dataset.bucket import View, views
from lorasmith.dataset.read import Example, read_dataset
from lorasmith.dataset.split import split
from lorasmith.errors import DataError, DeviceError, RunError
from lorasmith.events import CheckpointSaved, Event, Finished, Forecast, Note, Sampled, StepDone, Validated
from lorasmith.files import sha256_file
from lorasmith.generate.sample import Request
from lorasmith.model.formats import write_diffusers, write_kohya
from lorasmith.model.stable_diffusion import StableDiffusion, load_base, pick_device, pick_dtype
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.run_manifest import step_of, superseded
from lorasmith.train.board import Board
from lorasmith.train.checkpoint import DIVERGED, LORA_FILE, write_lora
from lorasmith.train.control import Requests
from lorasmith.train.describe import describe_data, describe_fit, duration
from lorasmith.train.disk import check_disk
from lorasmith.train.encode import (
    Cache,
    LatentSet,
    TextSet,
    encode_captions,
    encode_pictures,
    tokenize_captions,
)
from lorasmith.train.estimate import save_every
from lorasmith.train.forecast import foretell, time_left
from lorasmith.train.interrupt import Interrupt, Stopped
from lorasmith.train.resume import Past, begin, lora_metadata, record_pictures, settled
from lorasmith.train.resume_words import resume_command
from lorasmith.train.samples import draw_samples, sample_requests
from lorasmith.train.step import Batch
from lorasmith.train.trainer import Trainer
from lorasmith.train.validate import validation_batch, validation_loss

KOHYA_FILE = "lora-kohya.safetensors"
_STEPS_TO_FORETELL = 10


def train(recipe: Recipe, run: Run, *, allow_changes: bool = False) -> Iterator[Event]:
    """Train a LoRA as ``recipe`` says, with everything written into ``run``; a run taken up again goes on.

    Each event is in the run's events.jsonl and on its TensorBoard before it is yielded. At the end the run holds
    ``lora.safetensors`` (diffusers) and ``lora-kohya.safetensors`` (the same weights for other programs).

    Args:
        allow_changes: go on even if the recipe, the data, the base or a version is not what the run began with.

    Raises:
        LorasmithError: one of its kinds, for everything that a user can mend; the checkpoints before stay good.
        Stopped: after Ctrl-C, SIGTERM or a request; a step that was begun is finished and saved, and events have
            said how to go on.
    """
    board = Board(run.path / "tensorboard")
    try:
        with Interrupt(Requests(run.path)) as interrupt:
            for event in interrupt.guard(_train(recipe, run, board, interrupt, allow_changes)):
                run.append(event)
                board.show(event)
                yield event
    except Stopped:
        note = Note(_how_to_go_on(run, recipe))
        run.append(note)
        yield note
        raise
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "The GPU's memory is not enough for this recipe.",
            where=str(error).splitlines()[0],
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
    recipe: Recipe, run: Run, board: Board, interrupt: Interrupt, allow_changes: bool
) -> Generator[Event, None, None]:
    device = pick_device(recipe.train.device)
    dtype = pick_dtype(recipe.train.precision, device)
    dataset = read_dataset(recipe.data.folders, strict=recipe.data.strict)
    training, held_out = split(dataset, recipe.data.validation, recipe.train.seed)
    yield from describe_data(dataset, training, held_out)

    sd = load_base(recipe.base, device=device, dtype=dtype, vae=recipe.vae, weights=recipe.weights)
    yield from map(Note, sd.notes)
    size = recipe.data.resolution or sd.size
    yield from describe_fit(sd, dataset.examples, size)
    facts = {"base_sha256": sd.sha256, "dataset_sha256": dataset.sha256, "device": str(device)}
    past = yield from begin(run, recipe, {**facts, "seed": recipe.train.seed}, allow_changes)
    board.draw_again(past.records)
    about = lora_metadata(recipe, facts, run.provenance)
    recipe, forecast = yield from foretell(sd, settled(run, recipe), size, training, held_out)
    run.record(gradient_checkpointing=recipe.train.gradient_checkpointing)
    latents, held_latents, text = yield from _encode(sd, recipe, size, training, held_out)
    record_pictures(run, latents.examples, allow_changes)

    trainer = Trainer(sd, recipe, latents, text)
    held = validation_batch(held_latents, text, sd.alphas_cumprod) if held_latents.examples else None
    metadata = {**about, "resolution": str(size), "pictures": str(len(latents.examples))}
    requests = sample_requests(recipe.samples, latents.examples, size)
    session = _Session(recipe, run, trainer, held, requests, metadata, forecast, past)
    yield from check_disk(run, recipe, session.adapter_bytes, len(requests), size, past.step)
    yield from session.look()
    if past.checkpoint is not None:
        trainer.restore(past.checkpoint)
        yield from session.look_again()
    yield from trainer.prepare()
    yield from session.steps(interrupt)
    yield session.finish()


def _encode(
    sd: StableDiffusion, recipe: Recipe, size: int, training: Sequence[Example], held_out: Sequence[Example]
) -> Generator[Event, None, tuple[LatentSet, LatentSet, TextSet]]:
    """Encode pictures and captions, then send the parts that are not trained off the device."""
    data, cache = recipe.data, Cache(cache_folder())

    def trained_views(example: Example) -> list[View]:
        return views(data.crop, data.crops, data.flip, recipe.train.seed, example.sha256)

    def middle(example: Example) -> list[View]:
        return views("center", 1, False, recipe.train.seed, example.sha256)

    latents = yield from encode_pictures(sd, training, size, trained_views, cache, "encoding")
    if not latents.examples:
        raise DataError("None of the pictures could be encoded.", fix="Look at the warnings before this.")
    held = yield from encode_pictures(sd, held_out, size, middle, cache, "encoding held-out pictures")
    captions = [example.caption for example in (*latents.examples, *held.examples)]
    sd.vae.to("cpu")
    if recipe.lora.text_encoder:
        text = tokenize_captions(sd, captions)
    else:
        text = yield from encode_captions(sd, captions, cache)
        sd.text_encoder.to("cpu")
    return latents, held, text


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
    ) -> None:
        self.recipe, self.run, self.trainer, self.past = recipe, run, trainer, past
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
            due, drawing = self._is_due(trainer.step), interrupt.asked("sample")
            if due or drawing or interrupt.requested or interrupt.asked("save"):
                yield self._save()
                interrupt.done("save")
                interrupt.holding = False
                if interrupt.requested:
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
        sums = torch.zeros(2, device=trainer.sd.device)
        while trainer.step == first or not (
            trainer.step % settings.log_every == 0 or self._is_due(trainer.step) or _wanted(interrupt)
        ):
            sums += trainer.advance()
        count = trainer.step - first
        loss, norm = (sums / count).tolist()
        seconds = time.perf_counter() - begun
        self.seconds_training += seconds
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is no longer finite (between steps {first + 1} and {trainer.step}).",
                where=str(self.run.path),
                fix=DIVERGED,
            )
        rate = count * settings.batch * settings.accumulation / seconds
        self.figures |= {"loss": loss, "steps": trainer.step}
        memory = memory_mib(trainer.sd.device)
        yield StepDone(trainer.step, settings.steps, loss, trainer.learning_rate, norm, rate, memory)
        if trainer.step >= _STEPS_TO_FORETELL and not self.foretold:
            self.foretold = True
            yield self._time_left()

    def look(self) -> Iterator[Event]:
        """Validate and draw samples with the adapter as it is; at step 0 that is the base. What is done stays done."""
        begun, done = time.perf_counter(), self.past
        step, sd = self.trainer.step, self.trainer.sd
        if self.held is not None and step not in done.validated:
            done.validated[step] = yield from validation_loss(sd, self.held, 2 * self.recipe.train.batch)
            yield Validated(step, done.validated[step], done.validated[0])
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
        paths = yield from draw_samples(self.trainer.sd, self.requests, self.run.samples_folder(step))
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
