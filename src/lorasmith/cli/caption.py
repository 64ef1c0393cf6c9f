"""``lorasmith caption``: write captions, edit them, review them, and find what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorasmith.errors import RecipeError

if TYPE_CHECKING:
    from lorasmith.dataset.caption import Describer
    from lorasmith.events import Event


@click.command("caption", short_help="Write, edit and check the captions of pictures.")
@click.argument(
    "folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(readable=False, path_type=Path)
)
@click.option("--with", "maker", metavar="template|blip|MODEL", help="What writes captions: a MODEL is a folder or id.")
@click.option("--template", help="Text with fields; implies --with template.  [see below]")
@click.option("--overwrite", is_flag=True, help="With --with: also replace captions that people wrote.")
@click.option("--trigger", default="", metavar="WORD", help="Put this word before captions that lack it.")
@click.option("--prefix", default="", metavar="TEXT", help="Begin every caption with this.")
@click.option("--suffix", default="", metavar="TEXT", help="End every caption with this.")
@click.option("--replace", "replacements", multiple=True, metavar="OLD=NEW", help="Replace whole words; repeatable.")
@click.option("--dedup", is_flag=True, help="Remove phrases and words that are said twice.")
@click.option("--review", is_flag=True, help="Decide picture by picture; without a terminal, write a sheet to edit.")
@click.option("--sheet", type=click.Path(path_type=Path), help="With --review: write this sheet.  [captions.tsv]")
@click.option("--apply", "apply_sheet", type=click.Path(path_type=Path), help="Write the captions of an edited sheet.")
@click.option("--dry-run", is_flag=True, help="Show what would change; write nothing.")
@click.option("--lint", is_flag=True, help="Find what is wrong with the captions; write nothing.")
@click.option(
    "--clip", metavar="FOLDER", help='With --lint: a CLIP that compares captions with pictures, or "starter".'
)
@click.option("--device", default="auto", show_default=True, help="Where models compute: auto, cpu, cuda, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def command(
    folders: tuple[Path, ...],
    maker: str | None,
    template: str | None,
    overwrite: bool,
    trigger: str,
    prefix: str,
    suffix: str,
    replacements: tuple[str, ...],
    dedup: bool,
    review: bool,
    sheet: Path | None,
    apply_sheet: Path | None,
    dry_run: bool,
    lint: bool,
    clip: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Write captions into a metadata.jsonl in each FOLDER, which is one class of pictures; the one before is kept.

    --with writes captions for pictures that have none, and anew where a program wrote them and no person changed them
    since. The other options edit all captions, old and new, and change nothing the second time. A describing that was
    stopped goes on where it was.

    The fields of a template are {class}, {folder}, {file}, {colour}, {colours} and {background}; a part in [brackets]
    is left out when a field in it is not known.

    --lint ends with exit code 1 when there is anything to mend.

    \b
    Examples:
      lorasmith caption pictures/axe --with template
      lorasmith caption pictures/axe --template "a {colour} {class}[ on a {background} background]" --dry-run
      lorasmith caption pictures/axe --with blip --trigger zxaxe --review
      lorasmith caption pictures/axe --replace hatchet=axe --suffix ", studio photo"
      lorasmith caption pictures/axe --lint --clip models/clip-vit-large-patch14
    """
    from lorasmith.dataset.caption_edit import Edits, parse_replacements

    edits = Edits(parse_replacements(replacements), dedup, prefix, trigger, suffix)
    _refuse_nonsense(
        {"--with or --template": bool(maker or template), "--review": review, "--apply": bool(apply_sheet)},
        lint=lint, clip=clip, edits=bool(edits), overwrite=overwrite, sheet=sheet, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    if lint:
        from lorasmith.cli.caption_lint import lint_command

        click.get_current_context().exit(lint_command(folders, trigger, clip, device, as_json))
    from lorasmith.cli.screen import say, show
    from lorasmith.dataset.caption import caption, open_folders

    if apply_sheet:
        from lorasmith.cli.caption_review import apply_command

        show(apply_command(folders, apply_sheet, dry_run), as_json=as_json)
        return
    contents = open_folders(folders)  # before a model is loaded
    if maker not in (None, "template") and not as_json:
        say(f"Loading {maker} ...")
    describer = _describer(maker, template, device)
    if review:
        from lorasmith.cli.caption_review import review_command

        review_command(contents, describer, edits, overwrite, sheet)
        return
    events = caption(folders, describer, edits, overwrite=overwrite, dry_run=dry_run)
    show(events if as_json else _in_words(events), as_json=as_json)
    if dry_run and not as_json:
        say("Nothing was written.")


def _refuse_nonsense(
    asked: dict[str, bool],
    *,
    lint: bool,
    clip: str | None,
    edits: bool,
    overwrite: bool,
    sheet: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    makes, reviews, applies = asked.values()
    problems = []
    if lint and (makes or reviews or applies or overwrite):
        problems.append("--lint only looks, so it goes with --trigger, --clip and --json alone")
    if clip and not lint:
        problems.append("--clip goes with --lint")
    if applies and (makes or reviews or overwrite or edits):
        problems.append("--apply takes the captions as the sheet has them, so no other option can change them")
    if overwrite and not makes:
        problems.append("--overwrite goes with --with")
    if sheet and not reviews:
        problems.append("--sheet goes with --review")
    if reviews and (dry_run or as_json):
        problems.append("--review asks a person, so it goes neither with --dry-run nor with --json")
    if not (lint or makes or reviews or applies or edits):
        what = "The captions are neither to be written nor edited nor looked at."
        raise RecipeError(what, fix="Name --with, --lint, --review or an edit such as --trigger; see --help.")
    if problems:
        raise RecipeError(
            f"These options do not go together: {'; '.join(problems)}.", fix="See lorasmith caption --help."
        )


def _describer(maker: str | None, template: str | None, device: str) -> Describer | None:
    if template is not None and maker not in (None, "template"):
        raise RecipeError("--template goes with --with template only.", where=f"--with {maker}", fix="Drop one.")
    if maker == "template" or template is not None:
        from lorasmith.dataset.caption import TemplateDescriber
        from lorasmith.dataset.caption_template import DEFAULT, parse_template

        return TemplateDescriber(parse_template(DEFAULT if template is None else template))
    if maker is None:
        return None
    from lorasmith.model.captioner import load_captioner
    from lorasmith.model.stable_diffusion import pick_device, pick_dtype

    chosen = pick_device(device)
    return load_captioner(maker, chosen, pick_dtype("auto" if chosen.type == "cuda" else "fp32", chosen))


def _in_words(events: Iterator[Event]) -> Iterator[Event]:
    from lorasmith.dataset.caption import Proposal
    from lorasmith.dataset.finding import shown
    from lorasmith.events import Note

    for event in events:
        if isinstance(event, Proposal):
            was = f"\n    was: {shown(event.was, None)}" if event.was else ""
            yield Note(f"{event.path.parent.name}/{shown(event.path.name)}: {shown(event.caption, None)}{was}")
        else:
            yield event
