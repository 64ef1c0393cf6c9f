"""The review of captions: picture by picture on a terminal, or through a sheet."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from lorasmith.cli.screen import say, show
from lorasmith.dataset.caption import Describer, Proposal, Saver, open_folders, propose
from lorasmith.dataset.caption_edit import Edits
from lorasmith.dataset.caption_file import caption_of
from lorasmith.dataset.caption_sheet import read_sheet, write_sheet
from lorasmith.dataset.contents import Contents
from lorasmith.dataset.finding import shown
from lorasmith.events import Event, Finished, Warned

_SHEET = Path("captions.tsv")


def review_command(
    contents: Sequence[Contents], describer: Describer | None, edits: Edits, overwrite: bool, sheet: Path | None
) -> None:
    """Ask about each caption on a terminal, or write a sheet where there is none or one is named."""
    if sheet is None and sys.stdin.isatty() and sys.stdout.isatty():
        _ask(contents, _proposals(contents, describer, edits, overwrite))
        return
    path = sheet or _SHEET
    proposals: list[Proposal] = []
    show(_collected(propose(contents, describer, edits, overwrite=overwrite), proposals))
    count = write_sheet(path, contents, proposals)
    folders = " ".join(str(each.folder.path) for each in contents)
    say(f"{path}: a row for each picture, {count} with a proposal. Change the second column, then:")
    say(f"  lorasmith caption {folders} --apply {path}")


def apply_command(folders: Sequence[Path], sheet: Path, dry_run: bool) -> Iterator[Event]:
    """Write the captions of a sheet."""
    contents = open_folders(folders)
    proposals = read_sheet(sheet, contents)
    saver = Saver(contents)
    for proposal in proposals:
        saver.add(proposal)
    if not dry_run:
        saver.save()
    for path in saver.kept:
        yield Warned(f"The caption of {path.name} was changed since the sheet was written; it stays.")
    done = len(proposals) - len(saver.kept)
    yield Finished("caption", (*saver.written, *saver.backups), {"captions_changed": float(done)})


def _collected(events: Iterator[Event], proposals: list[Proposal]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, Proposal):
            proposals.append(event)
        else:
            yield event


def _proposals(
    contents: Sequence[Contents], describer: Describer | None, edits: Edits, overwrite: bool
) -> Iterator[Proposal]:
    """Yield the proposals as they are made; where nothing is to be made, every picture with its caption."""
    if describer is None and not edits:
        for each in contents:
            for listed in each.listed:
                now = caption_of(listed.caption)
                yield Proposal(listed.path, now, now, "")
        return
    for event in propose(contents, describer, edits, overwrite=overwrite):
        if isinstance(event, Proposal):
            yield event
        elif isinstance(event, Warned):
            say(f"Warning: {event.message}")


def _ask(contents: Sequence[Contents], proposals: Iterator[Proposal]) -> None:
    saver = Saver(contents)
    changed = seen = 0
    try:
        for proposal in proposals:
            seen += 1
            answer = _answer(proposal)
            if answer is None:
                break
            if answer != proposal.was and answer:
                source = proposal.source if answer == proposal.caption else ""
                saver.add(Proposal(proposal.path, answer, proposal.was, source))
                saver.save()  # at once: what was decided is never lost
                changed += 1
    finally:
        backups = f"; what was there before: {', '.join(map(str, saver.backups))}" if saver.backups else ""
        say(f"{changed} of {seen} captions changed{backups}.")


def _answer(proposal: Proposal) -> str | None:
    """Return the caption that is wanted, or None to stop."""
    say("")
    say(shown(proposal.path, None))
    say(f"  caption:  {shown(proposal.was, None) or '(none)'}")
    if proposal.caption != proposal.was:
        say(f"  proposal: {shown(proposal.caption, None)}")
    choice = click.prompt(
        "[a]ccept, [e]dit, [s]kip, [q]uit", type=click.Choice(["a", "e", "s", "q"]), default="a", show_choices=False
    )
    if choice == "e":
        return " ".join(str(click.prompt("  new caption", default=proposal.caption or None)).split())
    return {"a": proposal.caption, "s": proposal.was, "q": None}[choice]
