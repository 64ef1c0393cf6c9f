from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.dataset.read import Example, read_dataset
from lorasmith.errors import DeviceError
from lorasmith.events import Event, Forecast, Note, Progress, StepDone, Warned
from lorasmith.model import stable_diffusion
from lorasmith.model.lora import LoraConfig, attach
from lorasmith.model.stable_diffusion import StableDiffusion, load_base
from lorasmith.recipe.load import load_recipe
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.starter.paths import starter_folder
from lorasmith.train import forecast as forecast_module
from lorasmith.train import machine as machine_module
from lorasmith.train.costs import Costs, size_of_parts
from lorasmith.train.cpu_kernels import fast_kernels
from lorasmith.train.estimate import Amounts, Estimator
from lorasmith.train.forecast import foretell, time_left
from lorasmith.train.loop import train
from lorasmith.train.machine import Machine, look_at
from lorasmith.train.step import Batch, errors
from lorasmith.train.suggest import Change, changed, suggestions
from lorasmith.train.tally import Tally

from .helpers import drain

MakeRecipe = Callable[..., Recipe]
AMOUNTS = Amounts(training=8, held_out=2, captions=3, samples=1)
LARGE = {"batch": 64, "precision": "fp32"}  # so that activations outweigh the miniature's weights


def machine(sd: StableDiffusion, room: float) -> Machine:
    held = sum(size_of_parts(sd).values())
    return Machine(held, int(room) - held, flops=1e11, flops_fp32=1e11, bandwidth=1e10, overhead=4e-6)


def estimator(sd: StableDiffusion, room: float = 2**40) -> Estimator:
    return Estimator(sd, sd.size, AMOUNTS, machine(sd, room))


def examples(count: int) -> list[Example]:
    return [Example(Path("nowhere.png"), f"caption {i}", "axe", 32, 32, f"{i:064}") for i in range(count)]


def measured(sd: StableDiffusion, recipe: Recipe, size: int) -> Tally:
    """Run the training's pass on real tensors and count what it holds."""
    lora, settings = recipe.lora, recipe.train
    sd.to("cpu", {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision])
    attach(sd, LoraConfig(lora.rank, 1.0, lora.dropout, lora.targets, lora.text_encoder))
    sd.unet.train()
    sd.text_encoder.train(lora.text_encoder)
    if settings.gradient_checkpointing:
        sd.unet.enable_gradient_checkpointing()
        if lora.text_encoder:
            sd.text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    n, edge, words = settings.batch, size // sd.vae_factor, (settings.batch, sd.max_tokens)
    with fast_kernels(sd.device, sd.dtype), Tally() as tally:
        text = torch.zeros(words, dtype=torch.long) if lora.text_encoder else torch.zeros(*words, 32, dtype=sd.dtype)
        latents, noise = (torch.randn(n, sd.latent_channels, edge, edge) for _ in range(2))
        batch = Batch(latents, noise, torch.zeros(n, dtype=torch.long), torch.full((n,), 0.5), text)
        torch.autograd.backward(errors(sd, batch).mean())
    return tally


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("lora", "settings", "size"),
    [
        ({}, {"precision": "fp32", "batch": 16}, 32),
        ({"targets": "all", "rank": 8}, {"precision": "bf16", "batch": 5}, 64),
        ({"text_encoder": True, "dropout": 0.1}, {"precision": "fp32", "batch": 3}, 48),
    ],
)
def test_the_count_without_data_is_that_of_real_tensors(
    sd: StableDiffusion,
    make_recipe: MakeRecipe,
    lora: dict[str, Any],
    settings: dict[str, Any],
    size: int,
    checkpointing: bool,
) -> None:
    recipe = make_recipe(lora=lora, train={**settings, "gradient_checkpointing": checkpointing})
    foretold = Costs(sd, recipe, size).step
    real = measured(sd, recipe, size)
    assert foretold.memory == pytest.approx(real.peak, rel=0.03)
    assert foretold.moved == pytest.approx(real.moved, rel=0.03)
    assert foretold.operations == pytest.approx(real.operations, rel=0.03)
    assert foretold.flops == pytest.approx(real.flops, rel=0.03)


def test_counting_leaves_the_base_as_it_was(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    before = {name: (id(p), p.device, p.dtype) for name, p in sd.unet.named_parameters()}
    attention = torch.nn.functional.scaled_dot_product_attention
    sd.unet.register_forward_hook(lambda *_: pytest.fail("the base itself was run, or its hook"))
    costs = Costs(sd, make_recipe(lora={"text_encoder": True}, train={"gradient_checkpointing": True}), 32)
    assert costs.step.memory > 0 and costs.decoding.memory > 0 and costs.caption.memory > 0
    assert {name: (id(p), p.device, p.dtype) for name, p in sd.unet.named_parameters()} == before
    assert not sd.unet.is_gradient_checkpointing and not sd.unet.training
    assert torch.nn.functional.scaled_dot_product_attention is attention


def test_more_of_anything_needs_more(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    def need(size: int = 32, lora: dict[str, Any] | None = None, **train: Any) -> int:
        return Costs(sd, make_recipe(lora=lora or {}, train=train), size).step.memory

    by_batch = [need(batch=n) for n in (1, 2, 4, 8)]
    assert by_batch == sorted(by_batch) and by_batch[3] > 6 * by_batch[0]
    by_size = [need(size=n) for n in (16, 32, 48, 64)]
    assert by_size == sorted(by_size) and by_size[3] > 10 * by_size[0]
    assert need(batch=8, gradient_checkpointing=True) < 0.7 * need(batch=8)
    assert need(batch=8, precision="bf16") < need(batch=8)
    assert need(lora={"targets": "all"}) > need(lora={"targets": "attention+ff"}) > need()
    assert need(accumulation=2) - need() == Costs(sd, make_recipe(), 32).adapter  # a gradient that waits


def test_the_tally_counts_what_lives() -> None:
    with Tally() as tally:
        kept = torch.zeros(1000)
        view = kept.view(10, 100)[:5]
        assert tally.live == 4000
        (view + 1).sum()
        assert tally.live == 4000 and tally.peak == 4000 + 2000 + 4
        del kept
        assert tally.live == 4000  # the view holds it
        del view
        assert tally.live == 0
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert tally.flops == 2 * 3 * 4 * 5


def test_what_is_on_the_device_in_each_phase(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train={"precision": "fp32"})
    on_gpu = estimator(replace(sd, device=torch.device("cuda")))
    on_cpu = estimator(sd)
    parts, adapter = size_of_parts(sd), Costs(sd, recipe, 32).adapter
    data = on_cpu.costs(recipe).latents_size(8 + 2)
    gpu, cpu = on_gpu.memory(recipe), on_cpu.memory(recipe)
    assert data == 2 * 10 * 6 * 8 * 8 * 4
    work_space = gpu["training"] - parts["unet"] - 3 * adapter - data - on_gpu.costs(recipe).step.memory
    assert work_space == gpu["encoding"] - sum(parts.values()) - on_gpu.costs(recipe).encoding(1).memory
    taken = cpu["training"] - sum(parts.values()) - 3 * adapter - data
    assert 0 <= taken - on_cpu.costs(recipe).step.memory < parts["unet"]  # the heap's holes
    with_text = on_gpu.memory(changed(recipe, {"lora.text_encoder": True}))
    assert with_text["training"] > gpu["training"] + parts["text_encoder"]
    held = replace(on_cpu.machine, held=on_cpu.machine.held + 12345)  # libraries
    assert Estimator(sd, 32, AMOUNTS, held).memory(recipe)["training"] == cpu["training"] + 12345


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count each recipe once in a test, whatever the memory there is: counting takes half a second."""
    found: dict[Recipe, Costs] = {}
    usual = Estimator.costs

    def costs(self: Estimator, recipe: Recipe) -> Costs:
        if recipe not in found:
            found[recipe] = usual(self, recipe)
        return found[recipe]

    monkeypatch.setattr(Estimator, "costs", costs)


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("share", [0.85, 0.15])
def test_what_is_suggested_fits_and_saves_what_it_says(
    sd: StableDiffusion, make_recipe: MakeRecipe, share: float
) -> None:
    recipe = make_recipe(data={"resolution": 128}, lora={"targets": "all", "rank": 16}, train=LARGE)
    need = estimator(sd).need(recipe)
    tight = estimator(sd, room=need * share)
    changes = suggestions(tight, recipe)
    assert changes
    for change in changes:
        then = changed(recipe, change.settings)
        assert tight.fits(then)
        assert (tight.need(then), need - tight.need(then)) == (change.need, change.saves)
        assert Recipe.model_validate(then.model_dump()) == then  # the schema allows it
    if share == 0.85:
        texts = [str(change) for change in changes]
        assert any(text.startswith("train.gradient_checkpointing = true saves") for text in texts)
        assert any(text.startswith("train.batch = 1, train.accumulation = 64 saves") for text in texts)
        assert any(text.startswith("--preset low-memory (") for text in texts)
        assert any("data.resolution = 64" in text for text in texts)
    else:  # no change of one thing is enough
        assert all(len(change.settings) > 1 for change in changes)


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("native", [True, False])
def test_no_number_format_is_suggested_that_the_device_imitates(
    sd: StableDiffusion, make_recipe: MakeRecipe, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "_cpu_multiplies_bf16", lambda: native)
    recipe = make_recipe(train=LARGE)
    changes = suggestions(estimator(sd, room=estimator(sd).need(recipe)), recipe)
    assert changes and any("train.precision" in change.settings for change in changes) is native


def told(sd: StableDiffusion, recipe: Recipe, room: float) -> tuple[list[Event], tuple[Recipe, Forecast]]:
    return drain(foretell(sd, recipe, sd.size, examples(8), examples(2), machine(sd, room)))


@pytest.mark.usefixtures("remembered")
def test_too_little_memory_is_refused_with_what_helps(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train={**LARGE, "gradient_checkpointing": False})
    need = max(told(sd, recipe, 2**40)[1][1].memory_mib.values()) * 2**20
    with pytest.raises(DeviceError) as caught:
        told(sd, recipe, need / 1.3)
    assert "needs about" in caught.value.what and "the computer has" in caught.value.what
    assert caught.value.fix is not None
    assert "train.gradient_checkpointing = true saves" in caught.value.fix
    assert "train.ignore_memory_forecast = true" in caught.value.fix
    close, _ = told(sd, recipe, need / 1.05)
    assert [type(event) for event in close] == [Forecast, Warned]
    forced, _ = told(sd, changed(recipe, {"train.ignore_memory_forecast": True}), need / 1.3)
    assert [type(event) for event in forced] == [Forecast, Warned]
    enough, _ = told(sd, recipe, need * 1.2)
    assert [type(event) for event in enough] == [Forecast]


@pytest.mark.usefixtures("remembered")
def test_nothing_helps_where_not_even_the_weights_fit(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    with pytest.raises(DeviceError) as caught:
        told(sd, make_recipe(train=LARGE), 1000)
    assert caught.value.fix is not None and "smaller base" in caught.value.fix


@pytest.mark.usefixtures("remembered")
def test_gradient_checkpointing_is_on_only_where_it_is_needed(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train=LARGE)
    assert recipe.train.gradient_checkpointing is None
    events, (free, forecast) = told(sd, recipe, 2**40)
    assert free.train.gradient_checkpointing is False and len(events) == 1
    need = max(forecast.memory_mib.values()) * 2**20
    events, (tight, _) = told(sd, recipe, need)
    assert tight.train.gradient_checkpointing is True
    assert isinstance(events[0], Note) and events[0].message.startswith("Gradient checkpointing is on")
    _, (kept, _) = told(sd, changed(recipe, {"train.gradient_checkpointing": False}), need)
    assert kept.train.gradient_checkpointing is False


def test_pictures_to_preserve_cost_a_pass_of_the_base(
    sd: StableDiffusion, make_recipe: MakeRecipe, folders: list[Path]
) -> None:
    recipe = make_recipe(data={"preserve": (folders[1],)})
    training = read_dataset(folders[:1], preserve=folders[1:]).examples
    # of two classes, and of six and three pictures
    assert [forecast_module._preserved(training, balanced) for balanced in (True, False)] == [0.5, 1 / 3]
    usual = estimator(sd).machine
    times = [
        Estimator(sd, 32, replace(AMOUNTS, preserved=share), usual).seconds(recipe)["training"]
        for share in (0.0, 0.25, 0.5)
    ]
    assert times[0] < times[1] < times[2] < 1.5 * times[0]
    assert times[2] - times[0] == pytest.approx(2 * (times[1] - times[0]))


def test_time_goes_with_the_work(sd: StableDiffusion, make_recipe: MakeRecipe) -> None:
    estimate = estimator(sd)
    recipe = make_recipe(train={"steps": 100, "save_every": 20})
    usual = estimate.seconds(recipe)
    assert all(seconds > 0 for seconds in usual.values())
    assert estimate.seconds(changed(recipe, {"train.steps": 200}))["training"] == pytest.approx(2 * usual["training"])
    often = estimate.seconds(changed(recipe, {"train.save_every": 4}))
    assert often["samples"] == pytest.approx(usual["samples"] * 26 / 6)
    assert often["validation"] == pytest.approx(usual["validation"] * 26 / 6)
    assert often["checkpoints"] == pytest.approx(usual["checkpoints"] * 5)
    slow = Estimator(
        sd, 32, AMOUNTS, replace(estimate.machine, flops=1e9, flops_fp32=1e9, bandwidth=1e8, overhead=4e-4)
    )
    assert slow.seconds(recipe)["training"] == pytest.approx(100 * usual["training"])
    forecast = Forecast({}, 0.0, usual)
    assert time_left(forecast, 0.5, 0.0) == usual["training"] / 2
    assert time_left(forecast, 1.0, 1.0) == pytest.approx(sum(usual.values()) - usual["encoding"])


def test_the_forecast_comes_before_the_work_and_again_after_ten_steps(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 12, "log_every": 5})
    with Run.create(tmp_path / "run", recipe) as run:
        events = list(train(recipe, run))
    kinds = [type(event) for event in events]
    assert kinds.count(Forecast) == 1
    assert kinds.index(Note) < kinds.index(Forecast) < kinds.index(Progress)
    later = [i for i, event in enumerate(events) if isinstance(event, Note) and "to go (forecast: " in event.message]
    steps = [event.step for event in events[: later[0]] if isinstance(event, StepDone)]
    assert len(later) == 1 and steps[-1] == 10


def test_checkpointing_that_the_memory_calls_for_changes_no_loss(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    recipe = make_recipe(train={**LARGE, "batch": 8, "steps": 3, "log_every": 1})
    base = load_base(str(tiny_base))
    need = estimator(base).need(changed(recipe, {"train.gradient_checkpointing": False}))
    losses = []
    for room in (2**40, need):
        monkeypatch.setattr(forecast_module, "look_at", lambda *_, room=room: machine(base, room))
        with Run.create(tmp_path / str(room), recipe) as run:
            events = list(train(recipe, run))
        on = any(isinstance(e, Note) and "checkpointing is on" in e.message for e in events)
        assert on == (room == need)
        losses.append([event.loss for event in events if isinstance(event, StepDone)])
    assert losses[0] == losses[1]


def test_the_refusal_comes_before_anything_is_encoded(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    small = machine(load_base(str(tiny_base)), 1000)
    monkeypatch.setattr(forecast_module, "look_at", lambda *_: small)
    recipe, events = make_recipe(), list[Event]()
    with Run.create(tmp_path / "run", recipe) as run, pytest.raises(DeviceError, match="needs about"):
        for event in train(recipe, run):
            events.append(event)
    assert isinstance(events[-1], Forecast) and not any(isinstance(event, Progress) for event in events)


def test_a_machine_is_measured() -> None:
    found = look_at(torch.device("cpu"), torch.float32)
    assert found.held > 50e6 and found.free > 0 and found.room == found.held + found.free
    assert found.flops == found.flops_fp32 > 1e8 and found.bandwidth > 1e7 and 0 < found.overhead < 1e-2


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert machine_module._allowed(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert machine_module._allowed(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine_module._allowed(tmp_path) == 500


def test_a_change_reads_as_a_recipe() -> None:
    change = Change({"train.gradient_checkpointing": True, "lora.rank": 8}, 3 * 2**30, 2**29)
    assert str(change) == "train.gradient_checkpointing = true, lora.rank = 8 saves 3.0 GiB: 512 MiB"


@pytest.fixture
def full_size(sd: StableDiffusion) -> StableDiffusion:
    """Return SD v1.5 in its true size in bfloat16 on a GPU, without data."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = (320, 640, 1280, 1280)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, block_out_channels=sizes, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    assert round(sum(p.numel() for p in unet.parameters()) / 1e5) == 8595
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False).eval()
    sd.tokenizer.model_max_length = 77
    whole = replace(sd, unet=unet, vae=vae, text_encoder=text_encoder).to("meta", torch.bfloat16)
    whole.device = torch.device("cuda")
    return whole


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "gigabytes"), [("low-memory", 4), ("default", 8), ("reference", 4)])
def test_the_presets_train_stable_diffusion_in_the_memory_they_name(
    full_size: StableDiffusion, preset: str, gigabytes: float
) -> None:
    recipe = changed(load_recipe(None, preset=preset), {"train.precision": "bf16"})
    amounts = Amounts(training=100, held_out=10, captions=50, samples=4)
    estimate = Estimator(full_size, 512, amounts, machine(full_size, gigabytes * 1e9))
    assert estimate.need(recipe) < gigabytes * 1e9
    # One picture both ways, by hand: 1.7 to 1.8 TFLOP; a good third more where most of the way forwards is repeated.
    once = estimate.costs(recipe).step.flops / recipe.train.batch
    assert 1.65e12 < once / (1.37 if recipe.train.gradient_checkpointing else 1.0) < 1.85e12


_WHOLE = """
import json, resource, sys
from pathlib import Path
from lorasmith.events import Forecast
from lorasmith.recipe.schema import Recipe
from lorasmith.run import Run
from lorasmith.train.loop import train
recipe = Recipe.model_validate_json(sys.argv[1])
with Run.create(Path(sys.argv[2]), recipe) as run:
    (forecast,) = [event for event in train(recipe, run) if isinstance(event, Forecast)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([max(forecast.memory_mib.values()), peak]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts a process's memory in KiB")
@pytest.mark.skipif(not (starter_folder() / "model_index.json").is_file(), reason="needs the starter")
@pytest.mark.parametrize("settings", [{"batch": 4}, {"batch": 24}, {"batch": 24, "gradient_checkpointing": True}])
def test_a_process_takes_what_was_foretold(
    folders: list[Path], make_recipe: MakeRecipe, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert len(read_dataset(folders).examples) == 9
    recipe = make_recipe(train={"steps": 4, **settings}, lora={"targets": "all"}).model_copy(update={"base": "starter"})
    command = [sys.executable, "-c", _WHOLE, recipe.model_dump_json(), str(tmp_path / "run")]
    foretold, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert foretold == pytest.approx(peak, rel=0.15)
