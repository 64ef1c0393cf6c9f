"""The samplers by name. Each is a diffusers scheduler with the base's own noise schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lorasmith.errors import RecipeError
from lorasmith.model.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Sampler:
    """How a sampler is made, and what other programs call it.

    Attributes:
        scheduler: the diffusers class.
        options: what is set besides the base's schedule.
        title: its name in AUTOMATIC1111's web UI, which picture files carry.
    """

    scheduler: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"
SAMPLERS = {
    "dpm++2m": Sampler(_DPM, "DPM++ 2M", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m-karras": Sampler(
        _DPM, "DPM++ 2M Karras", {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}
    ),
    "dpm++2m-sde": Sampler(_DPM, "DPM++ 2M SDE", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler-a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "ddim": Sampler("DDIMScheduler", "DDIM", {"clip_sample": False}),
    "pndm": Sampler("PNDMScheduler", "PLMS", {"skip_prk_steps": True}),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
}


def sampler(name: str) -> Sampler:
    """Return a sampler by its name.

    Raises:
        RecipeError: there is none; the message names the nearest.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    near = get_close_matches(name, SAMPLERS, n=1)
    raise RecipeError(
        f'There is no sampler "{name}".' + (f' Did you mean "{near[0]}"?' if near else ""),
        fix=f"Choose one of {', '.join(SAMPLERS)}.",
    )


def make_scheduler(sd: StableDiffusion, name: str) -> Any:
    """Return a new scheduler of a sampler's name with the base's noise schedule and prediction type.

    Raises:
        RecipeError: there is no such sampler.
    """
    import diffusers

    chosen = sampler(name)
    return getattr(diffusers, chosen.scheduler).from_config(sd.scheduler_config, **chosen.options)
