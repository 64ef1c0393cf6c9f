"""The result of a check as one self-contained page: no script, no network, each thumbnail in it once."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TextIO

from lorasmith.dataset.finding import KINDS, Finding, shown

PER_KIND = 48  # findings of one kind that are shown
THUMBNAILS = 1200  # in the whole page, some 6 MB
PER_GROUP = 8  # pictures of one finding
_TITLES = {"error": "Errors", "warning": "Warnings", "info": "Remarks"}
_ABOUT = {
    "error": "Something that was offered cannot be used.",
    "warning": "It is used, and likely does harm.",
    "info": "Nothing is wrong; it is said so that nothing is done quietly.",
}
_STYLE = """
:root{--ink:#1d2430;--soft:#667085;--line:#e3e7ee;--card:#fff;--page:#f4f6fa;--error:#c4320a;--warning:#b7791f;--info:#2f6fb3}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#9aa4b5;--line:#2c3440;--card:#1b212b;--page:#12161d;
--error:#ff8a65;--warning:#f2c14e;--info:#7db7f0}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:20px;margin:36px 0 2px}
.soft{color:var(--soft)}.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 18px;min-width:120px}
.tile b{display:block;font-size:24px}.error b,b.error{color:var(--error)}.warning b,b.warning{color:var(--warning)}
.info b,b.info{color:var(--info)}table{border-collapse:collapse;background:var(--card);border:1px solid var(--line)}
td,th{padding:6px 12px;text-align:left;border-bottom:1px solid var(--line);font-weight:400}th{color:var(--soft)}
meter{width:90px;vertical-align:middle}details{background:var(--card);border:1px solid var(--line);border-radius:10px;
margin:10px 0;padding:0 16px;border-left-width:5px}details.error{border-left-color:var(--error)}
details.warning{border-left-color:var(--warning)}details.info{border-left-color:var(--info)}
summary{cursor:pointer;padding:12px 0;font-weight:600}summary .n{float:right;color:var(--soft);font-weight:400}
.why{margin:0 0 12px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(168px,1fr));gap:12px;padding-bottom:16px}
.one{font-size:12.5px;line-height:1.35;overflow-wrap:anywhere}
.wide{grid-column:1/-1}.row{display:flex;flex-wrap:wrap;gap:6px}
.t{width:168px;height:168px;background:#8884 center/contain no-repeat;border-radius:6px;margin-bottom:4px;
box-shadow:inset 0 0 0 1px var(--line)}
.row .t{width:112px;height:112px}code{font-size:12px}ul{margin:0 0 14px;padding-left:20px;overflow-wrap:anywhere}
"""


@dataclass(frozen=True)
class PageInput:
    """What the page shows.

    Args:
        report: what findings.json holds.
        findings: all of them.
        thumbnail: returns the small JPEG of a picture, or None if there is none.
    """

    report: dict[str, Any]
    findings: Sequence[Finding]
    thumbnail: Callable[[Path], bytes | None]


class _Thumbnails:
    """Each picture's thumbnail as a CSS class, so that a picture in several places costs its bytes once."""

    def __init__(self, thumbnail: Callable[[Path], bytes | None]) -> None:
        self._thumbnail = thumbnail
        self._names: dict[Path, str] = {}
        self.rules: list[str] = []
        self.left_out = 0

    def place(self, path: Path) -> str:
        """Return the element that shows a picture; empty if it has no thumbnail or the page is full."""
        if path not in self._names:
            if len(self.rules) >= THUMBNAILS:
                self.left_out += 1
                return ""
            data = self._thumbnail(path)
            if data is None:
                return ""
            self._names[path] = f"p{len(self.rules)}"
            encoded = base64.b64encode(data).decode("ascii")
            self.rules.append(f".{self._names[path]}{{background-image:url(data:image/jpeg;base64,{encoded})}}\n")
        name = _text(path.name)
        return f'<div class="t {self._names[path]}" role="img" aria-label="{name}" title="{name}"></div>'


def write_page(page: PageInput, stream: TextIO) -> None:
    """Write the page as HTML."""
    thumbnails = _Thumbnails(page.thumbnail)
    groups: dict[str, list[Finding]] = defaultdict(list)
    for found in page.findings:
        groups[found.code].append(found)
    body = [_head(page)]
    for severity, title in _TITLES.items():
        codes = [code for code in KINDS if code in groups and groups[code][0].severity == severity]
        if codes:
            body.append(f'<h2>{title}</h2><p class="soft">{_ABOUT[severity]}</p>')
            body += [_group(code, groups[code], thumbnails) for code in codes]
    if not groups:
        body.append("<h2>Nothing is wrong.</h2>")
    if thumbnails.left_out:
        body.append(f'<p class="soft">The page holds {THUMBNAILS:,} thumbnails; further pictures go without one.</p>')
    stream.write('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>lorasmith check</title>\n')
    stream.write('<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>')
    stream.write(_STYLE)
    stream.writelines(thumbnails.rules)
    stream.write("</style></head><body><main>\n")
    stream.write("\n".join(body))
    stream.write("\n</main></body></html>\n")


def _head(page: PageInput) -> str:
    report = page.report
    counts = {severity: sum(f.severity == severity for f in page.findings) for severity in _TITLES}
    tiles = [("", "pictures found", report["pictures_found"]), ("", "usable", report["pictures_usable"])]
    tiles += [(severity, title.lower(), counts[severity]) for severity, title in _TITLES.items()]
    boxes = "".join(f'<div class="tile {kind}"><b>{number:,}</b>{title}</div>' for kind, title, number in tiles)
    sources = ", ".join(_text(source) for source in report["sources"])
    return (
        f'<h1>lorasmith check</h1><div class="soft">{sources}, for a training at {report["resolution"]} px</div>'
        f'<div class="tiles">{boxes}</div>{_classes(report["classes"])}'
    )


def _classes(classes: Sequence[dict[str, Any]]) -> str:
    aspects = ("background", "composition", "light")
    head = "".join(f"<th>{aspect}</th>" for aspect in aspects)
    rows = []
    for each in classes:
        figures = each["variety"] or {}
        cells = "".join(
            f'<td><meter min="0" max="1" low="0.3" value="{figures[a]:.3f}"></meter> {figures[a]:.2f}</td>'
            if a in figures
            else "<td>too few</td>"
            for a in aspects
        )
        captions = _text(each["captions_from"] or "the folder's name")
        used = f"{each['pictures_usable']} of {each['pictures_found']}"
        rows.append(f"<tr><td>{_text(each['label'])}</td><td>{used}</td><td>{captions}</td>{cells}</tr>")
    return (
        f"<table><tr><th>class</th><th>usable</th><th>captions</th>{head}</tr>{''.join(rows)}</table>"
        '<p class="soft">Variety, 0 to 1: how different two pictures of the class are on average; 0 is all alike, '
        "0.5 as varied as two wholly different kinds, 0.9 as ten.</p>"
    )


def _group(code: str, findings: Sequence[Finding], thumbnails: _Thumbnails) -> str:
    kind = KINDS[code]
    cards, lines = [], []
    for found in findings[:PER_KIND]:
        pictures = ([found.file] if found.file is not None else []) + list(found.related)
        places = [place for path in list(dict.fromkeys(pictures))[:PER_GROUP] if (place := thumbnails.place(path))]
        where = f"<br>{_place_of(found)}" if found.line else ""
        if len(places) > 1:
            unseen = len(set(pictures)) - PER_GROUP
            rest = f" <span class='soft'>and {unseen} more</span>" if unseen > 0 else ""
            row = "".join(places)
            cards.append(f'<div class="one wide"><div class="row">{row}</div>{_text(found.message)}{where}{rest}</div>')
        elif places:
            cards.append(f'<div class="one">{places[0]}{_text(found.message)}{where}</div>')
        else:
            lines.append(f"<li>{_text(found.message)} {_place_of(found)}</li>")
    listed = f"<ul>{''.join(lines)}</ul>" if lines else ""
    grid = f'<div class="grid">{"".join(cards)}</div>' if cards else ""
    left = len(findings) - PER_KIND
    more = f'<p class="soft">{left:,} more are in findings.json.</p>' if left > 0 else ""
    opened = " open" if kind.severity != "info" else ""
    return (
        f'<details class="{kind.severity}"{opened}><summary><span class="n">{len(findings):,}</span>{code}</summary>'
        f'<p class="why">{_text(kind.means)} {_text(kind.why)} <b>To do:</b> {_text(kind.fix)}</p>'
        f"{listed}{grid}{more}</details>"
    )


def _place_of(found: Finding) -> str:
    """Return the file and line of a finding, short, with the whole path where the pointer rests."""
    if found.file is None:
        return ""
    short = f"{found.file.parent.name}/{found.file.name}" + (f":{found.line}" if found.line else "")
    return f'<code title="{_text(found.where)}">{_text(short)}</code>'


def _text(value: object) -> str:
    """Return text that is safe in HTML and, with any control characters escaped, to look at."""
    return escape(shown(value, limit=None))
