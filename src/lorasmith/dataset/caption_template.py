"""Captions from a template: words that are known of a picture without a model that understands pictures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from lorasmith.dataset.caption_edit import with_articles
from lorasmith.dataset.colours import colour_shares, colour_spread
from lorasmith.dataset.contents import Listed
from lorasmith.dataset.picture import Picture
from lorasmith.dataset.subject import find_subject
from lorasmith.errors import RecipeError

DEFAULT = "a [{colours} ]{class}[ on a {background} background]"
FIELDS = {
    "class": "the words of the class's folder: 10_battle_axe is battle axe",
    "folder": "the words of the subfolder that the picture lies in, if it lies in one",
    "file": "the words of the file's name: red-axe_03.png is red axe; IMG_2034.jpg has none",
    "colour": "the commonest colour of the subject; none if it has many",
    "colours": "the two commonest, if both are common: silver and brown",
    "background": "the colour of the background, after plain if it is even; none if it is mixed",
}
_SPELT = {"color": "colour", "colors": "colours"}
_SIDE = 256  # pixels of the longer side; colours need no more
_SURE = 0.3  # of the subject that was found; under it the middle of the picture stands for the subject
_COMMON, _SECOND = 0.25, 0.22  # share of the subject's pixels
_ONE_COLOUR = 0.5  # share of the background's pixels
_PLAIN = 3.8  # Lab units; stone, sand and grass lie above it, backdrops of photos below
_CAMERA = "img dsc dscn dscf pxl mvimg image picture pic photo screenshot file untitled copy final"
_NO_WORDS = frozenset(_CAMERA.split())


@dataclass(frozen=True)
class Template:
    """A text with fields in braces; a part in brackets is left out when a field in it is empty."""

    text: str

    @property
    def looks(self) -> bool:
        """Whether pictures have to be opened for it."""
        return bool({"colour", "colours", "background"} & set(_fields(self.text)))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the caption, with the articles that suit."""

        def part(match: re.Match[str]) -> str:
            return _filled(match[1], values) if all(values[f] for f in _fields(match[1])) else ""

        text = _filled(re.sub(r"\[([^\[\]]*)\]", part, self.text), values)
        return with_articles(" ".join(text.split()))


def parse_template(text: str) -> Template:
    """Return a template.

    Raises:
        RecipeError: it names fields that there are not, or its brackets do not close; all are listed.
    """
    problems = []
    for name in re.findall(r"\{([^{}]*)\}", text):
        if _SPELT.get(name, name) not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            problems.append(f"there is no field {{{name}}}{f'; did you mean {{{close[0]}}}?' if close else ''}")
    rest = re.sub(r"\{[^{}]*\}", "", text)
    if "{" in rest or "}" in rest:
        problems.append("a brace is not closed")
    if set(re.sub(r"\[[^\[\]]*\]", "", text)) & set("[]"):
        problems.append("a bracket is not closed, or lies in another")
    if not text.strip():
        problems.append("it is empty")
    if problems:
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise RecipeError(
            f"The template cannot be used: {'; '.join(problems)}.", where="--template", fix=f"The fields are {fields}."
        )
    return Template(re.sub(r"\{(\w+)\}", lambda m: f"{{{_SPELT.get(m[1], m[1])}}}", text))


def known_words(listed: Listed, picture: Picture | None) -> dict[str, str]:
    """Return the value of every field of ``FIELDS``; empty where it is not known.

    Args:
        listed: the picture's file.
        picture: uint8 RGB (height, width, 3), if colours are wanted.
    """
    parent = listed.path.parent
    values = {
        "class": listed.folder.words,
        "folder": _words(parent.name) if parent != listed.folder.path else "",
        "file": _words(listed.path.stem),
        **dict.fromkeys(("colour", "colours", "background"), ""),
    }
    return values if picture is None else {**values, **colour_words(picture)}


def colour_words(picture: Picture) -> dict[str, str]:
    """Return the words for the colours of a picture's subject and background: colour, colours, background.

    Args:
        picture: uint8 RGB (height, width, 3).
    """
    height, width = picture.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    subject = find_subject(small)
    mask = subject.mask if subject.confidence >= _SURE and subject.mask.any() else _middle(small)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    shares = list(colour_shares(small[inside if inside.any() else mask]).items())
    common = [name for (name, share), least in zip(shares, (_COMMON, _SECOND)) if share >= least]
    around = small[outside]
    behind = next(((name, share) for name, share in colour_shares(around).items()), ("", 0.0))
    even = colour_spread(around) <= _PLAIN
    name = behind[0].replace("silver", "light grey")  # a background is hardly called silver
    background = f"plain {name}" if even and name else name if behind[1] >= _ONE_COLOUR else ""
    return {"colour": common[0] if common else "", "colours": " and ".join(common), "background": background}


def _middle(picture: Picture) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : max(height // 4 + 1, height - height // 4), width // 4 : max(width // 4 + 1, width * 3 // 4)] = 1
    return mask


def _fields(text: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", text)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]], text)


def _words(name: str) -> str:
    """Return the words of a file's or folder's name: letters only, without what cameras and programs call files."""
    parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    mixed = set(re.findall(r"[^\W_]*\d[^\W_]*", name))  # as in 3f2a9c: no word
    noise = {letters.casefold() for part in mixed for letters in re.findall(r"[^\W\d_]+", part)}
    kept = [p.lower() for p in parts if len(p) > 1 and p.casefold() not in _NO_WORDS and p.casefold() not in noise]
    return " ".join(kept)
