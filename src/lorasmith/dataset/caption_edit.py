"""Change captions all in one way; every edit may be made again without changing anything further."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.dataset.caption_lint import holds_word
from lorasmith.errors import RecipeError

_PASSES = 20
_LONGEST_REPEAT = 12  # words
_STOPS = ".,;:!?"
_ARTICLE = re.compile(r"\b([Aa])(n?)(?= (\w))")


@dataclass(frozen=True)
class Edits:
    """What is done to captions, in the order of the fields.

    Args:
        replace: pairs of what is found, as whole words whatever their capitals, and what takes its place.
        dedup: remove phrases between commas that were there before, and words said twice in a row.
        prefix: what every caption begins with.
        trigger: a word put before captions that lack it.
        suffix: what every caption ends with.
    """

    replace: tuple[tuple[str, str], ...] = ()
    dedup: bool = False
    prefix: str = ""
    trigger: str = ""
    suffix: str = ""

    def __bool__(self) -> bool:
        return bool(self.replace or self.dedup or self.prefix or self.suffix or self.trigger)

    def __call__(self, text: str) -> str:
        """Return the edited caption, on one line with single spaces; an empty one stays empty."""
        text = " ".join(text.split())
        if not text:
            return ""
        trigger = " ".join(self.trigger.split())
        led = bool(trigger) and text.startswith(f"{trigger}, ")  # by an earlier edit: the prefix comes after it
        text = text.removeprefix(f"{trigger}, ") if led else text
        for old, new in self.replace:
            text = _replaced(text, old, new)
        if self.dedup:
            text = without_repeats(text)
        text = _with_prefix(text, " ".join(self.prefix.split()))
        if led or (trigger and not holds_word(text, trigger)):
            text = f"{trigger}, {text}" if text else trigger
        return _with_suffix(text, " ".join(self.suffix.split()))


def parse_replacements(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ``OLD=NEW`` texts; NEW may be empty.

    Raises:
        RecipeError: some are not; all are listed.
    """
    pairs = [text.partition("=") for text in texts]
    wrong = [text for text, (old, equals, _) in zip(texts, pairs) if not equals or not old.strip()]
    if wrong:
        raise RecipeError(
            f"{', '.join(map(repr, wrong))} does not say what to replace by what.",
            where="--replace",
            fix='Write OLD=NEW, as --replace "hatchet=axe".',
        )
    return tuple((" ".join(old.split()), " ".join(new.split())) for old, _, new in pairs)


def without_repeats(text: str) -> str:
    """Return a caption without phrases between commas that came before, and without words repeated in a row."""
    before = None
    while before != text:
        before, text = text, _once(text)
    return text


def _once(text: str) -> str:
    kept: list[str] = []
    for word in text.split():
        kept.append(word)
        said = [w.casefold().rstrip(_STOPS) for w in kept[-2 * _LONGEST_REPEAT :]]
        for count in range(1, len(said) // 2 + 1):
            parted = kept[-count - 1][-1] in _STOPS
            if said[-count:] == said[-2 * count : -count] and not parted:
                del kept[-2 * count : -count]
                break
    text = " ".join(kept)
    if "," not in text:
        return text
    end = text[-1] if text[-1] in ".!?" else ""
    seen: dict[str, str] = {}
    for phrase in text.removesuffix(end).split(","):
        plain = " ".join(phrase.casefold().split())
        if plain:
            seen.setdefault(plain, phrase.strip())
    return ", ".join(seen.values()) + end


def with_articles(text: str) -> str:
    """Return a text in which "a" and "an" suit the letter that follows."""
    return _ARTICLE.sub(lambda m: m[1] + ("n" if m[3].lower() in "aeiou" else ""), text)


def _replaced(text: str, old: str, new: str) -> str:
    """Replace whole words. What already reads NEW stays, so "axe=battle axe" twice is still one battle axe."""

    def whole(words: str) -> str:
        start, end = (r"(?<!\w)" if words[0].isalnum() else ""), (r"(?!\w)" if words[-1].isalnum() else "")
        return start + r"\s+".join(map(re.escape, words.split())) + end

    kept = new and new.casefold() != old.casefold() and old.casefold() in new.casefold()
    pattern = f"({whole(new)})|{whole(old)}" if kept else f"((?!))|{whole(old)}"

    def put(match: re.Match[str]) -> str:
        found = match[0]
        if match[1]:
            return found
        return new[:1].upper() + new[1:] if found[:1].isupper() and not old[:1].isupper() else new

    for _ in range(_PASSES):  # what is replaced may form what is looked for with its neighbours
        changed = re.sub(pattern, put, text, flags=re.IGNORECASE)
        if not new:  # close the gap: no space before a comma, no comma before another
            changed = re.sub(r"(?:\s*[,;:])*\s*([,.;:!?])", r"\1", changed).lstrip(" ,;:")
        changed = " ".join(changed.split())
        if changed == text:
            break
        text = changed
    return text


def _with_prefix(text: str, prefix: str) -> str:
    return text if not prefix or text.casefold().startswith(prefix.casefold()) else f"{prefix} {text}"


def _with_suffix(text: str, suffix: str) -> str:
    if not suffix or text.casefold().endswith(suffix.casefold()):
        return text
    return f"{text.rstrip(' .,;:')}{'' if suffix[0] in ',.;:!?' else ' '}{suffix}"
