"""Trains the judge: a small CLIP on renders of every kind, with and without blossoms.

Each step it answers the questions it will be asked (which kind, which colour, blossoms or not) and picks each
picture's caption out of the batch's (Radford et al. 2021). Linear heads that read the same answers off the picture,
and off each patch how much of it the item covers, help it start and are thrown away. So that it judges shape and colour
in reconstructions and generated pictures too, pictures are blurred, dimmed and speckled at random, items get patches of
other colours, which are no blossoms, and part of the pictures has been through the VAE, with noise on the latents: that
tears edges and blots colours, as an unfinished UNet does. Where there is a base already, some are drawn by it, which
has never seen a blossom; half of these get blossoms painted on.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lorasmith.dataset.subject import find_subject
from lorasmith.generate.sample import Request, sample
from lorasmith.model.judge import Judge
from lorasmith.model.stable_diffusion import load_base, pick_dtype
from lorasmith.starter.build.job import Job, Site, autocast, fingerprint
from lorasmith.starter.build.pool import JUDGE_SEEDS, Pictures, Row, changed, kept, picture_and_row, renders
from lorasmith.starter.build.tokenizer import MAX_TOKENS, write_tokenizer
from lorasmith.starter.build.unet import WORDINGS, wordings
from lorasmith.starter.questions import Choices, blossom_choices, colour_choices, kind_choices
from lorasmith.starter.renderer import BLOSSOM_PHRASES, COLOURS, SEEN_KINDS, with_blossoms
from lorasmith.starter.shapes import KINDS

SIZE, PATCH = 64, 8
SHARES = (0.5, 0.3, 0.2)  # of sharp renders, of renders that have been through the VAE, of the base's pictures
NOISE = 0.5  # the most on their latents, whose standard deviation is 1
MEAN = STD = (0.5, 0.5, 0.5)
_KINDS, _COLOURS = list(KINDS), list(COLOURS)


class Student(nn.Module):
    """The CLIP and the linear heads that only training uses."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        tower = {"num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 384, "hidden_act": "gelu"}
        self.clip = CLIPModel(
            CLIPConfig(
                text_config={
                    **tower, "num_hidden_layers": 2, "vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS,
                    "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
                },
                vision_config={**tower, "num_hidden_layers": 5, "image_size": SIZE, "patch_size": PATCH},
                projection_dim=128,
                attn_implementation="eager",  # torch's fused attention is slow backward on a CPU at this size
            )
        )  # fmt: skip
        # A wider start than transformers gives: the towers are small, and 0.02 leaves them numb for many steps.
        for module in (self.clip.vision_model, self.clip.text_model):
            for name, parameter in module.named_parameters():
                if parameter.ndim >= 2:
                    nn.init.normal_(
                        parameter, std=0.3 if "position" in name or "token" in name else parameter[0].numel() ** -0.5
                    )
        self.heads = nn.Linear(128, len(_KINDS) + 2 * len(_COLOURS) + 1)
        self.coverage = nn.Linear(128, 1)

    def texts(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of texts, of length 1: tokens (N, T) -> (N, 128)."""
        # Nothing after the end token matters (attention is causal), so the padding all texts share is cut off.
        padding = self.clip.config.text_config.pad_token_id
        longest = int((tokens != padding).sum(1).max()) + 1
        out = self.clip.text_model(input_ids=tokens[:, :longest]).pooler_output
        return F.normalize(self.clip.text_projection(out).float(), dim=-1)


def _degrade(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, dim, saturate and speckle a batch at random: (N, 3, H, W) in 0 to 1."""
    if rng.random() < 0.5:
        sigma = rng.uniform(0.3, 1.2)
        taps = torch.arange(-3, 4, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-(taps**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).view(1, 1, 1, 7).repeat(3, 1, 1, 1)
        x = F.conv2d(F.conv2d(x, kernel, padding=(0, 3), groups=3), kernel.transpose(2, 3), padding=(3, 0), groups=3)
    gain, contrast, colour = (1 + 0.1 * torch.randn(3, len(x), 1, 1, 1, device=x.device)).unbind()
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * colour
    x = (x - 0.5) * contrast + 0.5
    return (x * gain + rng.uniform(0, 0.06) * torch.randn_like(x)).clamp(0, 1)


def _patches(coverage: Tensor) -> Tensor:
    """Return smooth patches of colour to add to items, (N, 3, H, W); on half of the pictures hardly any.

    Args:
        coverage: of each pixel by the item, 0 to 1, (N, 1, H, W).
    """
    count, side = len(coverage), coverage.shape[-1]
    cells = int(torch.randint(3, 9, ()))
    field = torch.randn(count, 3, cells, cells, device=coverage.device)
    strength = 0.35 * torch.rand(count, 1, 1, 1, device=coverage.device) ** 2
    return F.interpolate(field, side, mode="bicubic") * strength * coverage


@torch.no_grad()
def _through(vae: AutoencoderKL, pictures: Pictures, number: int) -> Pictures:
    """Return pictures with masks, uint8 (N, 128, 128, 4), decoded from noisy latents: uint8 (N, SIZE, SIZE, 4)."""
    device = vae.device
    torch.manual_seed(number)
    x = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    seen = (x[:, :3] * 2 - 1).contiguous(memory_format=torch.channels_last)
    most = NOISE / vae.config.scaling_factor * torch.rand(len(x), 1, 1, 1, device=device)
    with autocast(device):
        latents = vae.encode(seen).latent_dist.mean
        latents = latents + most * torch.randn(latents.shape, device=device)
        decoded = vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5
    out = torch.cat([decoded.clamp(0, 1), x[:, 3:]], 1)
    out = F.interpolate(out, SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    return np.asarray((out * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


class _Questions:
    """The wordings of every question, tokenised once."""

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.kind = self._tokens([kind_choices()])
        self.blossom = self._tokens([blossom_choices(k) for k in _KINDS])
        self.colour = self._tokens([colour_choices(k) for k in _KINDS])

    def _tokens(self, asked: list[Choices]) -> list[list[Tensor]]:
        return [[self.encode(wordings) for wordings in choices.values()] for choices in asked]

    def encode(self, texts: Any) -> Tensor:
        out = self.tokenizer(
            list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        return out.input_ids.to(self.device)  # type: ignore[no-any-return]

    def one_wording(self, asked: list[Tensor], rng: np.random.Generator) -> Tensor:
        """Pick one wording for each choice."""
        return torch.stack([tokens[int(rng.integers(len(tokens)))] for tokens in asked])


def _labels(rows: list[Row]) -> dict[str, Tensor]:
    return {
        "kind": torch.tensor([_KINDS.index(str(r["kind"])) for r in rows]),
        "main": torch.tensor([_COLOURS.index(str(r["main"])) for r in rows]),
        "second": torch.tensor([_COLOURS.index(str(r["second"])) for r in rows]),
        "blossom": torch.tensor([int(bool(r["blossom"])) for r in rows]),
    }


def _by_base(start: Path, device: torch.device, first_seed: int, count: int) -> tuple[Pictures, list[Row]]:
    """Let the base in ``start`` draw the kinds it knows, at several guidance scales; half get blossoms painted on.

    Returns:
        Pictures with masks, uint8 (count, 128, 128, 4), and their rows. The kind is the one that was asked for, which
        the base draws nearly always; the colours are not to be trusted.
    """
    sd = load_base(str(start / "starter"), device=device, dtype=pick_dtype("auto", device))
    rng = np.random.default_rng(first_seed)
    rows, requests = [], []
    for seed in range(first_seed, first_seed + count):
        _, row = picture_and_row(seed, sd.size, SEEN_KINDS, 0.0, False)
        said = wordings(row, seed)[int(rng.integers(WORDINGS))]
        rows.append({**row, "caption": said})
        steps, guidance = int(rng.choice((10, 16))), float(rng.choice((1.5, 2, 3, 4, 5)))
        requests.append(Request(said, seed=seed, steps=steps, guidance=guidance))
    pictures = np.zeros((count, sd.size, sd.size, 4), np.uint8)
    for i, picture in sample(sd, requests, batch=32):
        mask = find_subject(picture).mask
        if i % 2 and mask.mean() > 0.02:
            phrase = BLOSSOM_PHRASES[int(rng.integers(len(BLOSSOM_PHRASES)))]
            rows[i] |= {"blossom": True, "caption": f"{rows[i]['caption']} {phrase}"}
            picture = _flowered(picture, mask, np.random.default_rng(first_seed + i))
        pictures[i] = np.dstack([picture, 255 * mask.astype(np.uint8)])
    return pictures, rows


def _flowered(picture: Pictures, mask: NDArray[np.bool_], rng: np.random.Generator) -> Pictures:
    """Return a picture, uint8 (size, size, 3), with blossoms on what ``mask``, (size, size), covers."""
    size = (2 * len(mask), 2 * len(mask))  # as the renderer does, which area-averages then
    alpha = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    painted = np.where(alpha[..., None] > 0.5, with_blossoms(rng, large, alpha), large)
    small = cv2.resize(painted, mask.shape, interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(np.rint(small), 0, 255), dtype=np.uint8)


class _Drawn:
    """What the judge learns from: sharp renders, others that have been through the VAE, pictures by the base.

    What a picture by the base shows is known but for its colours: the caption may have left them to the base.
    """

    def __init__(self, site: Site, vae: AutoencoderKL) -> None:
        gpu, self.device = site.device.type == "cuda", site.device
        sharp, rows = renders(
            site.work, "judge", JUDGE_SEEDS, 60_000 if gpu else 36_000,
            size=SIZE, blossom=0.5, masks=True, workers=site.workers,
        )  # fmt: skip
        whole, more = renders(
            site.work, "judge", JUDGE_SEEDS + 10_000_000, 24_000 if gpu else 8_000,
            blossom=0.5, masks=True, workers=site.workers,
        )  # fmt: skip
        seen_by = fingerprint(vae)
        parts = [sharp, changed(site.work / f"judge-coded-{seen_by}", whole, partial(_through, vae))]
        self.rows = [*rows, *more]
        if site.start:
            by_base = partial(_by_base, site.start, self.device, JUDGE_SEEDS + 20_000_000)
            made, asked = kept(site.work / "judge-by-base", partial(by_base, 8_000 if gpu else 2_400))
            parts.append(changed(site.work / f"judge-by-base-coded-{seen_by}", made, partial(_through, vae)))
            self.rows += asked
        self.pictures = tuple(parts)
        self.coloured = len(rows) + len(more)  # pictures whose colours are known
        shares = np.array(SHARES[: len(parts)])
        self.shares = shares / shares.sum()

    def batch(self, count: int, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the rows of ``count`` pictures, (count,), and the pictures with their masks, (count, 4, H, W)."""
        which = rng.choice(len(self.pictures), count, p=self.shares)
        place = rng.integers(0, np.take([len(part) for part in self.pictures], which))
        chosen = np.stack([self.pictures[part][i] for part, i in zip(which, place)])
        x = torch.from_numpy(chosen).to(self.device).permute(0, 3, 1, 2).float() / 255
        dy, dx = (int(d) for d in rng.integers(-6, 7, 2))
        x = (x.flip(3) if step % 2 else x).roll((dy, dx), (2, 3))
        first = np.cumsum([0, *(len(part) for part in self.pictures[:-1])])
        return torch.from_numpy(place + first[which]).to(self.device), x


def _heads_loss(
    answers: Tensor, kind: Tensor, main: Tensor, second: Tensor, blossom: Tensor, coloured: Tensor
) -> Tensor:
    """Return the loss of the linear heads' answers, (N, kinds + 2 colours + 1); colours count where ``coloured``."""
    k, c = len(_KINDS), len(_COLOURS)
    a, b, d, e = torch.split(answers, [k, c, c, 1], dim=1)
    colours = F.cross_entropy(b[coloured], main[coloured]) + F.cross_entropy(d[coloured], second[coloured])
    flowers = F.binary_cross_entropy_with_logits(e.squeeze(1), blossom.float())
    return F.cross_entropy(a, kind) + 0.5 * colours + flowers


def train_judge(site: Site, minutes: float | None, deadline: float, vae: AutoencoderKL) -> Job:
    """Train the judge for its budget, or go on with it; ``vae`` has learned its decoder by now."""
    work, device = site.work, site.device
    vocabulary = write_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    student = Student(vocabulary).to(device)
    if site.start:
        student.clip.load_state_dict(CLIPModel.from_pretrained(site.start / "judge", dtype=torch.float32).state_dict())
    job = Job(
        "judge", student, work, minutes, deadline, learning_rate=6e-4 if site.start else 1.2e-3, weight_decay=0.05
    )
    if job.idle:
        return job
    drawn = _Drawn(site, vae)
    truth = {k: v.to(device) for k, v in _labels(drawn.rows).items()}
    captions = tokenizer(
        [str(r["caption"]) for r in drawn.rows], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    )
    captions = captions.input_ids.to(device)
    ask = _Questions(tokenizer, device)
    count = 256 if device.type == "cuda" else 64

    def loss(fraction: float, step: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([11, step])
        at, x = drawn.batch(count, step, rng)
        covered = F.avg_pool2d(x[:, 3:], PATCH).flatten(1)
        x = _degrade((x[:, :3] + _patches(x[:, 3:])).clamp(0, 1), rng)
        kind, main, second, blossom = (truth[k][at] for k in ("kind", "main", "second", "blossom"))
        asked = int(rng.integers(len(_KINDS)))  # the kind whose colours are asked for in this step
        coloured = at < drawn.coloured
        ours = ((kind == asked) & coloured).nonzero().squeeze(1)
        with autocast(device):
            seen = student.clip.vision_model(pixel_values=(x - 0.5) / 0.5)
            answers = student.heads(seen.pooler_output).float()
            found = student.coverage(seen.last_hidden_state[:, 1:]).float().squeeze(2)
            picture = F.normalize(student.clip.visual_projection(seen.pooler_output).float(), dim=-1)
            half = count // 2  # captions are the dear part: half of the batch takes part
            tokens = torch.cat(
                [ask.one_wording(ask.kind[0], rng), *(ask.one_wording(b, rng) for b in ask.blossom),
                 ask.one_wording(ask.colour[asked], rng), captions[at[:half]]]
            )  # fmt: skip
            words = student.texts(tokens)
        scale = student.clip.logit_scale.exp().clamp(max=100).float()
        k, c = len(_KINDS), len(_COLOURS)
        kinds, pairs, colours, said = torch.split(words, [k, 2 * k, c, half])
        value = F.cross_entropy(scale * picture @ kinds.T, kind)
        pair = pairs.view(k, 2, -1)[kind]  # (count, 2, D): this picture's own kind, plain and with blossoms
        value = value + F.cross_entropy(scale * torch.einsum("nd,npd->np", picture, pair), blossom)
        if len(ours):
            value = value + F.cross_entropy(scale * picture[ours] @ colours.T, main[ours])
        match = scale * picture[:half] @ said.T
        own = torch.arange(half, device=device)
        value = value + 0.25 * (F.cross_entropy(match, own) + F.cross_entropy(match.T, own))
        value = value + _heads_loss(answers, kind, main, second, blossom, coloured)
        return value + 2 * F.binary_cross_entropy_with_logits(found, covered), count

    job.run(loss, site.say)
    return job


def write_judge(student: Student, folder: Path) -> None:
    """Write the judge as a Hugging Face CLIP folder in fp16."""
    student.clip.half().save_pretrained(folder)
    student.clip.float()
    write_tokenizer(folder)
    stated = {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "do_center_crop": False,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(stated, indent=1), encoding="utf-8")


def as_judge(student: Student, tokenizer: Any, device: torch.device) -> Judge:
    """Return the student as the judge that ``evaluate`` uses, without writing it."""
    return Judge(student.clip.eval(), tokenizer, SIZE, MEAN, STD, device)
