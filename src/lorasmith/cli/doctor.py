"""``lorasmith doctor``: what this machine has, what is wrong with it, and how to mend that."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import click

from lorasmith.errors import OutputError
from lorasmith.files import require_writable
from lorasmith.starter.paths import judge_folder, starter_folder

_GIB = 2**30
_NETWORK_SECONDS = 4.0
_PYTORCH = "https://pytorch.org/get-started/locally/"


@dataclass(frozen=True)
class Check:
    """One thing looked at. A ``problem`` keeps lorasmith from working as it should; a ``note`` is good to know."""

    name: str
    status: Literal["ok", "note", "problem"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card as its driver sees it."""

    name: str
    driver: str
    memory_mib: int


@click.command("doctor", short_help="Check this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as one JSON object.")
def command(as_json: bool) -> None:
    """Check Python, torch, the graphics card, memory, disk, versions, the cache and the network.

    Each problem comes with what to do about it. The exit code is 0 when all is well and 1 when there is a problem.

    \b
    Examples:
      lorasmith doctor
      lorasmith doctor --json
    """
    from lorasmith.cli.screen import print_json, say

    checks = list(examine())
    problems = sum(check.status == "problem" for check in checks)
    if as_json:
        print_json({"ok": not problems, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            say(f"{check.status:8} {check.name}: {check.detail}")
            if check.fix:
                say(f"{'':8}   to do: {check.fix}")
        say("All is well." if not problems else f"{problems} problem{'s' if problems > 1 else ''} found.")
    if problems:
        click.get_current_context().exit(1)


def examine() -> Iterator[Check]:
    """Look at everything in turn; a check that fails itself is a problem, not the end of the examination."""
    for look in (_python, _packages, _torch, _memory, _disk, _cache, _starter, _network):
        try:
            yield from look()
        except Exception as error:
            name = look.__name__.strip("_")
            yield Check(name, "problem", f"the check failed: {type(error).__name__}: {error}", "Please report this.")


def _python() -> Iterator[Check]:
    detail = f"{platform.python_version()}, {platform.architecture()[0]}, {platform.platform()}"
    if sys.maxsize < 2**32:
        yield Check("python", "problem", detail, "Install the 64-bit Python: torch has no 32-bit build.")
    elif sys.prefix == sys.base_prefix:
        yield Check("python", "note", f"{detail}, no virtual environment")
    else:
        yield Check("python", "ok", detail)


def _packages() -> Iterator[Check]:
    """Compare what is installed with what lorasmith asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("lorasmith") or []]
    except metadata.PackageNotFoundError:
        yield Check("packages", "problem", "lorasmith itself is not installed", "Run: pip install -e .")
        return
    wrong, found = [], []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((requirement, "missing"))
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, version))
    for requirement, version in wrong:
        asked = f"{requirement.name}{requirement.specifier}"
        yield Check("packages", "problem", f"{asked} is needed, here: {version}", f'Run: pip install "{asked}"')
    if not wrong:
        yield Check("packages", "ok", ", ".join(found))


def _torch() -> Iterator[Check]:
    gpus = nvidia_gpus()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its own libraries does not load
        yield Check("torch", "problem", f"cannot be imported: {error}", f"Install it again, as {_PYTORCH} says.")
        return
    yield torch_build(torch.__version__, torch.version.cuda, bool(gpus))
    if torch.version.cuda and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _cuda_device(torch, index, gpus)
    elif torch.backends.mps.is_available():
        yield Check("gpu", "ok", "Apple's, through Metal")
    elif gpus and torch.version.cuda:
        yield Check(
            "gpu",
            "problem",
            f"{gpus[0].name} with driver {gpus[0].driver} cannot be used by a torch made for CUDA {torch.version.cuda}",
            "Update the driver from https://www.nvidia.com/drivers, then restart the computer.",
        )
    elif not gpus:
        yield Check("gpu", "note", "no NVIDIA card found: the CPU works, well for the starter, slowly for larger bases")


def torch_build(version: str, cuda: str | None, has_gpu: bool) -> Check:
    """Return whether this build of torch suits a machine with or without an NVIDIA card."""
    if has_gpu and cuda is None:
        return Check(
            "torch",
            "problem",
            f"{version} is built for the CPU only, and this machine has an NVIDIA card",
            "Run: pip uninstall -y torch, then: pip install torch --index-url https://download.pytorch.org/whl/cu130 "
            f"(for an older driver choose another CUDA version at {_PYTORCH})",
        )
    return Check("torch", "ok", f"{version}, {f'CUDA {cuda}' if cuda else 'CPU only'}")


def _cuda_device(torch: Any, index: int, gpus: list[Gpu]) -> Check:
    name = torch.cuda.get_device_name(index)
    driver = f"driver {gpus[0].driver}" if gpus else "driver unknown"
    try:  # a card too old or too new for this build is seen, but computes nothing
        torch.ones(2, device=f"cuda:{index}").sum().item()
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(index)
        detail = f"{name} (compute capability {major}.{minor}, {driver}) fails: {str(error).splitlines()[0]}"
        fix = f"Close programs that use the card; if it stays, choose a torch made for this card at {_PYTORCH}."
        return Check("gpu", "problem", detail, fix)
    return Check("gpu", "ok", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, {driver}")


def nvidia_gpus() -> list[Gpu]:
    """Return the NVIDIA cards that the driver's own tool sees; none when there is no driver or it does not answer."""
    tool = shutil.which("nvidia-smi") or shutil.which(r"C:\Windows\System32\nvidia-smi.exe")
    if not tool:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in row.split(",")] for row in answer.splitlines()]
    return [Gpu(r[0], r[1], int(r[2]) if r[2].isdecimal() else 0) for r in rows if len(r) == 3]


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free, {os.cpu_count()} processor cores"
    if memory.available < 2 * _GIB:
        yield Check("memory", "problem", detail, "Close other programs: even the starter wants 2 GiB free.")
    elif memory.available < 8 * _GIB:
        yield Check("memory", "note", f"{detail}: enough for the starter; Stable Diffusion v1.5 wants 8 GiB free")
    else:
        yield Check("memory", "ok", detail)


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / _GIB:.1f} GiB free in {Path.cwd()}"
    if free < _GIB:
        yield Check("disk", "problem", detail, "Free some space, or work in a folder on another disk.")
    else:
        yield Check("disk", "note" if free < 10 * _GIB else "ok", detail)


def _cache() -> Iterator[Check]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from lorasmith.cache import cache_folder

    for what, folder, variable in (
        ("cache of encoded pictures", cache_folder(), "LORASMITH_CACHE"),
        ("cache of downloaded models", Path(HF_HUB_CACHE), "HF_HUB_CACHE"),
    ):
        try:
            require_writable(folder)
        except OutputError as error:
            yield Check("cache", "problem", f"{what}: {error.what} ({folder})", f"{error.fix} {variable} names it.")
        else:
            yield Check("cache", "ok", f"{what}: {folder}")


def _starter() -> Iterator[Check]:
    for name, folder, file in (
        ("starter", starter_folder(), "model_index.json"),
        ("judge", judge_folder(), "config.json"),
    ):
        if (folder / file).is_file():
            yield Check(name, "ok", f"the built-in model is in {folder}")
        else:
            fix = "Install lorasmith again, or make it: python -m lorasmith.starter.build --help"
            yield Check(name, "problem", f"the built-in model is not in {folder}", fix)


def _network() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Check("network", "note", "switched off by HF_HUB_OFFLINE: only models on this machine can be used")
        return
    reason = within(_NETWORK_SECONDS, _reach_hub)
    if reason is None:
        yield Check("network", "ok", "huggingface.co answers")
    else:
        yield Check("network", "note", f"offline ({reason}): the starter and models on this machine can be used")


def _reach_hub() -> str | None:
    """Return None when Hugging Face answers, else why not."""
    request = urllib.request.Request("https://huggingface.co/", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not a kind one
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def within(seconds: float, ask: Callable[[], str | None]) -> str | None:
    """Return what ``ask`` returns, or that it gave no answer in time: a name look-up obeys no other timeout."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:.0f} s"
