"""The training from the first look at the pictures to the proved LoRA, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence

import psutil
import torch

from lorasmith import __version__
from lorasmith.dataset.bucket import View, views
from lorasmith.dataset.read import Example, read_dataset
from lorasmith.dataset.split import split
from lorasmith.errors import DataError, DeviceError, RunError
from lorasmith.events import CheckpointSaved, Event, Finished, Note, Sampled, StepDone, Validated
from lorasmith.generate.sample import Request
from lorasmith.model.formats import write_diffusers, write_kohya
from lorasmith.model.stable_diffusion import StableDiffusion, load_base, pick_device, pick_dtype
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.board import Board
from lorasmith.train.checkpoint import DIVERGED, LORA_FILE, write_lora
from lorasmith.train.describe import describe_data, describe_fit, duration
from lorasmith.train.encode import (
    Cache,
    LatentSet,
    TextSet,
    cache_folder,
    encode_captions,
    encode_pictures,
    tokenize_captions,
)
from lorasmith.train.interrupt import Interrupt
from lorasmith.train.samples import draw_samples, sample_requests
from lorasmith.train.step import Batch
from lorasmith.train.trainer import Trainer
from lorasmith.train.validate import validation_batch, validation_loss

KOHYA_FILE = "lora-kohya.safetensors"
_STEPS_TO_FORETELL = 10


def train(recipe: Recipe, run: Run) -> Iterator[Event]:
    """Train a LoRA as ``recipe`` says, with everything written into ``run``.

    Each event is in the run's events.jsonl and on its TensorBoard before it is yielded. At the end the run holds
    ``lora.safetensors`` (diffusers) and ``lora-kohya.safetensors`` (the same weights for other programs).

    Raises:
        LorasmithError: one of its kinds, for everything that a user can mend; the checkpoints before stay good.
        KeyboardInterrupt: after Ctrl-C; the step was finished and saved, and events have said so.
    """
    board = Board(run.path / "tensorboard")
    try:
        for event in _train(recipe, run):
            run.append(event)
            board.show(event)
            yield event
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "The GPU's memory is not enough for this recipe.",
            where=str(error).splitlines()[0],
            fix="Train with --preset low-memory, or lower train.batch or data.resolution.",
        ) from error
    finally:
        board.close()


def _train(recipe: Recipe, run: Run) -> Iterator[Event]:
    device = pick_device(recipe.train.device)
    dtype = pick_dtype(recipe.train.precision, device)
    dataset = read_dataset(recipe.data.folders, strict=recipe.data.strict)
    training, held_out = split(dataset, recipe.data.validation, recipe.train.seed)
    yield from describe_data(dataset, training, held_out)

    sd = load_base(recipe.base, device=device, dtype=dtype)
    size = recipe.data.resolution or sd.size
    yield from describe_fit(sd, dataset.examples, size)
    run.record(base_sha256=sd.sha256, dataset_sha256=dataset.sha256, seed=recipe.train.seed, device=str(device))
    latents, held_latents, text = yield from _encode(sd, recipe, size, training, held_out)

    trainer = Trainer(sd, recipe, latents, text)
    held = validation_batch(held_latents, text, sd.alphas_cumprod) if held_latents.examples else None
    metadata = {
        "lorasmith": __version__,
        "base": recipe.base,
        "base_sha256": sd.sha256,
        "dataset_sha256": dataset.sha256,
        "resolution": str(size),
        "pictures": str(len(latents.examples)),
    }
    session = _Session(recipe, run, trainer, held, sample_requests(recipe.samples, latents.examples, size), metadata)
    yield from session.look()
    with Interrupt() as interrupt:
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
    ) -> None:
        self.recipe, self.run, self.trainer = recipe, run, trainer
        self.held, self.requests, self.metadata = held, requests, metadata
        self.save_every = recipe.train.save_every or math.ceil(recipe.train.steps / 5)
        self.figures: dict[str, float] = {}
        self.seconds_training = self.seconds_looking = 0.0
        self.foretold = False

    def steps(self, interrupt: Interrupt) -> Iterator[Event]:
        """Train to the end, or to the step in which the user interrupts."""
        settings, trainer = self.recipe.train, self.trainer
        while trainer.step < settings.steps:
            yield from self._stretch(interrupt)
            if self._is_due(trainer.step):
                yield self._save()
                for event in self.look():
                    yield event
                    if interrupt.requested:
                        break
            if interrupt.requested and trainer.step < settings.steps:
                if not self._is_due(trainer.step):
                    yield self._save()
                yield Note(f"Stopped at step {trainer.step} of {settings.steps}. The checkpoint holds the work so far.")
                raise KeyboardInterrupt

    def _stretch(self, interrupt: Interrupt) -> Iterator[Event]:
        """Train to the next step that is logged. Only here, at its end, does anyone wait for the device."""
        settings, trainer = self.recipe.train, self.trainer
        begun, first = time.perf_counter(), trainer.step
        sums = torch.zeros(2, device=trainer.sd.device)
        while trainer.step == first or not (
            trainer.step % settings.log_every == 0 or self._is_due(trainer.step) or interrupt.requested
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
            yield self._forecast()

    def look(self) -> Iterator[Event]:
        """Validate and draw samples with the adapter as it is; at step 0 that is the base."""
        begun = time.perf_counter()
        step, sd = self.trainer.step, self.trainer.sd
        if self.held is not None:
            loss = yield from validation_loss(sd, self.held, 2 * self.recipe.train.batch)
            self.figures.setdefault("base_validation_loss", loss)
            self.figures["validation_loss"] = loss
            yield Validated(step, loss, self.figures["base_validation_loss"])
        paths = yield from draw_samples(sd, self.requests, self.run.samples_folder(step))
        yield Sampled(step, paths)
        self.seconds_looking = time.perf_counter() - begun

    def finish(self) -> Finished:
        """Write the LoRA in both formats and prove that it reads back."""
        lora = self.trainer.lora()
        metadata = self._metadata()
        files = (
            write_lora(lora, self.run.path / LORA_FILE, write_diffusers, metadata),
            write_lora(lora, self.run.path / KOHYA_FILE, write_kohya, metadata),
        )
        pictures = self.trainer.step * self.recipe.train.batch * self.recipe.train.accumulation
        self.figures["samples_per_second"] = pictures / self.seconds_training
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

    def _forecast(self) -> Note:
        done, steps = self.trainer.step, self.recipe.train.steps
        looks = sum(self._is_due(step) for step in range(done, steps + 1))
        seconds = (steps - done) * self.seconds_training / done + looks * self.seconds_looking
        return Note(f"About {duration(seconds)} to go.")


def memory_mib(device: torch.device) -> float:
    """Return the peak memory of the tensors on a CUDA device, elsewhere the process's memory now, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
