"""What a picture file says of how it was made: the ``parameters`` text of AUTOMATIC1111's web UI.

    an axe with pink blossoms <lora:weapons:0.8>
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: 1a2b3c4d5e, Model: starter, ...

Other programs read it, and the web UI draws the picture again from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from lorasmith import __version__
from lorasmith.generate.sample import Request
from lorasmith.generate.samplers import sampler

_FIELD = re.compile(r'\s*([^:,]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LORA = re.compile(r" ?<lora:([^:>]+):([^>]+)>")
_LAST_LINE = re.compile(r"Steps: \d+,.*")


@dataclass(frozen=True)
class LoraNote:
    """A LoRA that took part: its name, its weight, and the SHA-256 of its file."""

    name: str
    weight: float
    sha256: str


def parameters_text(
    request: Request, size: tuple[int, int], model: str, model_sha256: str, loras: Sequence[LoraNote] = ()
) -> str:
    """Return the text for a picture of ``size`` (width, height) in pixels."""
    prompt = request.prompt + "".join(f" <lora:{lora.name}:{lora.weight:g}>" for lora in loras)
    fields = {
        "Steps": str(request.steps),
        "Sampler": sampler(request.sampler).title,
        "CFG scale": f"{request.guidance:g}",
        "Seed": str(request.seed),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_sha256[:10],
        "Model": model,
    }
    if loras:
        fields["Lora hashes"] = ", ".join(f"{lora.name}: {lora.sha256[:12]}" for lora in loras)
    fields["Version"] = f"lorasmith {__version__}"
    lines = [prompt, f"Negative prompt: {request.negative}" if request.negative else ""]
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items()))
    return "\n".join(line for line in lines if line)


def parse_parameters(text: str) -> dict[str, str]:
    """Return the fields of such a text, from whichever program: "Prompt", "Negative prompt", "Steps", "Seed", ...

    LoRAs are taken out of the prompt into "Loras", as ``name:weight`` with a comma between. A text without the line
    that begins with "Steps" is all prompt.
    """
    lines = text.strip().split("\n")
    settings = lines.pop() if _LAST_LINE.fullmatch(lines[-1]) else ""
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt: ")
    fields = {"Prompt": _LORA.sub("", prompt.removeprefix("\n")), "Negative prompt": negative}
    if loras := _LORA.findall(prompt):
        fields["Loras"] = ",".join(f"{name}:{weight}" for name, weight in loras)
    for name, value in _FIELD.findall(settings):
        fields[name] = json.loads(value) if value.startswith('"') else value.strip()
    return fields


def png_bytes(picture: NDArray[np.uint8], parameters: str) -> bytes:
    """Return a PNG file of a picture (H, W, 3) uint8; the same arguments give the same bytes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", parameters.replace("\0", ""))
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG", pnginfo=text)
    return stream.getvalue()


def _quoted(value: str) -> str:
    # The web UI quotes a value that would otherwise end early.
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value
