"""``lorasmith caption --lint``: what is wrong with captions, and with a CLIP, which do not fit their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorasmith.cli.screen import show
from lorasmith.dataset.caption import open_folders
from lorasmith.dataset.caption_lint import Captioned, captions_of, lint_folders
from lorasmith.dataset.check import Found
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.events import Event, Finished, Note, Warned

_ORDER = {"error": 0, "warning": 1, "info": 2}


def lint_command(folders: Sequence[Path], trigger: str, clip: str | None, device: str, as_json: bool) -> int:
    """Print the findings about captions and return the exit code: 1 if there is anything to mend."""
    found: list[Finding] = []
    show(_lint(folders, trigger, clip, device, found, as_json), as_json=as_json)
    return 1 if any(f.severity != "info" for f in found) else 0


def _lint(
    folders: Sequence[Path], trigger: str, clip: str | None, device: str, found: list[Finding], as_json: bool
) -> Iterator[Event]:
    contents = open_folders(folders)
    captions = captions_of(contents)
    found += lint_folders(contents, trigger=trigger)
    yield from _compare([c for c in captions if c.text], clip, device, found)
    found.sort(key=lambda f: _ORDER[f.severity])
    for each in found:
        if as_json:
            yield Found(each.code, each.severity, each.message, each.file, each.line, each.fix, each.related)
        else:
            yield Note(f"{each.severity:7} {each.code}: {each}\n          to do: {each.fix}")
    figures = {"captions": float(sum(bool(c.text) for c in captions)), "pictures": 0.0, "findings": float(len(found))}
    figures["pictures"] = float(sum(each.pictures_found for each in contents))
    yield Finished("lint", (), figures)


def _compare(captions: Sequence[Captioned], clip: str | None, device: str, found: list[Finding]) -> Iterator[Event]:
    from lorasmith.starter.wording import are_renderers

    if clip is None and not are_renderers([c.text for c in captions]):
        yield Note("Captions are not compared with the pictures; name a CLIP for that with --clip FOLDER.")
        return
    if not captions:
        return
    import numpy as np

    from lorasmith.evaluate.mismatch import embed_captions, embed_files, find_mismatches
    from lorasmith.model.judge import load_judge
    from lorasmith.model.stable_diffusion import pick_device
    from lorasmith.starter.paths import judge_folder

    folder = judge_folder() if clip in (None, "starter") else Path(str(clip))
    judge = load_judge(folder, pick_device(device))
    pictures = yield from embed_files(judge, [c.file for c in captions])
    readable = np.flatnonzero(np.abs(pictures).sum(1) > 0)
    kept = [captions[int(i)] for i in readable]
    if len(kept) < len(captions):
        yield Warned(f"{len(captions) - len(kept)} pictures cannot be read; lorasmith check says why.")
    texts = [c.text for c in kept]
    result = find_mismatches(pictures[readable], embed_captions(judge, texts), texts)
    if not result.telling:
        why = "there are too few" if len(kept) < 8 else "by its measure hardly any fits its own picture better"
        yield Note(f"The CLIP {folder.name} cannot tell these captions apart ({why}), so none is listed as misplaced.")
        return
    share = f"about {result.wrong_share:.0%} of the captions seem not to belong to their pictures"
    sure = f"; of the {len(result.found)} listed, about {result.likely_wrong:.0%}" if result.found else ""
    yield Note(f"By the CLIP {folder.name}, {share}{sure}.")
    for m in result.found:
        own, best, other = kept[m.index], kept[m.best_caption], kept[m.best_picture]
        names = (shown(f"{c.label}/{c.file.name}") for c in (own, best, other))
        name, best_name, other_name = names
        if m.swapped_with is not None:
            more = f"it seems swapped with that of {best_name}"
        else:
            more = f"best fits that of {best_name}, and the caption best fits {other_name}"
        what = (
            f'"{shown(own.text)}" hardly fits {name}: {m.captions_better} of {len(kept) - 1} other captions fit the '
            f"picture better, and {m.pictures_better} other pictures fit the caption better; {more} "
            f'("{shown(best.text)}").'
        )
        related = (own.file, best.file, other.file) if own.source else (best.file, other.file)
        found.append(finding("mismatched-caption", what, own.source or own.file, line=own.line, related=related))
