"""What is wrong or doubtful in a set of captions, from the words alone; no picture is opened."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasmith.dataset.alike import alike
from lorasmith.dataset.contents import Caption, Contents
from lorasmith.dataset.finding import Finding, finding, shown
from lorasmith.dataset.tokens import LIMIT, cut_at, token_count

_NAMES_SHOWN = 5
_MEASURED = 20_000  # characters of a caption; no encoder reads a hundredth of it
_ABOUT_CAPTIONS = frozenset(
    {"bad-csv", "bad-entry", "bad-json", "caption-key", "caption-without-picture", "duplicate-entry", "duplicate-key"}
    | {"line-too-long", "missing-file", "mixed-captions", "no-captions", "not-utf8", "outside-folder"}
    | {"unread-metadata"}
)
_USUAL = 0.5  # the share of a class's captions that name it, from which on those that do not are odd


@dataclass(frozen=True)
class Captioned:
    """A picture and its caption.

    Args:
        file: the picture.
        line: the line its caption stands on in ``source``, from 1.
        text: the caption; empty if there is none.
        label: the class.
        source: the file that holds the caption, if that is not known from ``file``.
    """

    file: Path
    line: int | None
    text: str
    label: str = ""
    source: Path | None = None


@dataclass(frozen=True)
class Problem:
    """A finding about one caption or several.

    Args:
        code: a key of ``finding.KINDS``.
        message: one sentence that makes sense by itself.
        members: which of the captions it is about, as indices, ascending.
    """

    code: str
    message: str
    members: tuple[int, ...]


def lint_captions(
    captions: Sequence[Captioned],
    *,
    trigger: str = "",
    class_words: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    limit: int = LIMIT,
) -> list[Finding]:
    """Return what ``problems`` finds as findings, each at the file and line of the first caption it is about.

    The pictures that a finding is about are its ``related`` files, where its file is not itself the first of them.
    """
    found = []
    for problem in problems(captions, trigger=trigger, class_words=class_words, limit=limit):
        first, *others = (captions[i] for i in problem.members)
        at, line = (first.source, first.line) if first.source else (first.file, None)
        related = ([first.file] if first.source else []) + [other.file for other in others]
        found.append(finding(problem.code, problem.message, at, line=line, related=related))
    return found


def lint_folders(contents: Sequence[Contents], *, trigger: str = "", limit: int = LIMIT) -> list[Finding]:
    """Return everything there is to say about the captions of folders; no picture is opened."""
    found = [f for each in contents for f in each.findings if f.code in _ABOUT_CAPTIONS]
    found += [x.caption for each in contents for x in each.listed if isinstance(x.caption, Finding)]
    return found + lint_captions(captions_of(contents), trigger=trigger, limit=limit)


def captions_of(contents: Sequence[Contents]) -> list[Captioned]:
    """Return the captions in folders; pictures for which only the folder's name stands are left out."""
    return [
        Captioned(x.path, x.caption.line, x.caption.text, x.folder.label, x.caption.file)
        for each in contents
        for x in each.listed
        if isinstance(x.caption, Caption) and (x.caption.file is not None or not x.caption.text)
    ]


def problems(
    captions: Sequence[Captioned],
    *,
    trigger: str = "",
    class_words: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    limit: int = LIMIT,
) -> list[Problem]:
    """Return everything wrong or doubtful in the captions, kind by kind.

    Args:
        captions: all of one set.
        trigger: a word that every caption shall hold.
        class_words: for each class, or for all, the words of which a caption shall hold at least one; None takes
            the class's name, and keeps silent where that is plainly not a word of the captions.
        limit: the tokens that the text encoder reads.
    """
    written = [i for i, c in enumerate(captions) if c.text.strip()]
    return [
        *_empty(captions),
        *_too_long(captions, written, limit),
        *_without_trigger(captions, written, trigger),
        *_without_class(captions, written, class_words),
        *_identical(captions, written),
        *_similar(captions, written),
    ]


def holds_word(text: str, word: str) -> bool:
    """Return whether a text holds a word or phrase, whatever its capitals and in the plural too."""
    parts = [re.escape(part) for part in re.split(r"[\s_-]+", word.strip()) if part]
    if not parts:
        return True
    phrase = r"[\s_-]+".join(parts)
    return re.search(rf"(?<!\w){phrase}(?:e?s)?(?!\w)", text, re.IGNORECASE) is not None


def _empty(captions: Sequence[Captioned]) -> Iterator[Problem]:
    for i, caption in enumerate(captions):
        if not caption.text.strip():
            yield Problem("empty-caption", f"{_name(caption)} has no caption.", (i,))


def _too_long(captions: Sequence[Captioned], written: Sequence[int], limit: int) -> Iterator[Problem]:
    for i in written:
        text = captions[i].text[:_MEASURED]
        _, cut = cut_at(text, limit)
        if cut.strip():
            count = f"more than {limit}" if len(captions[i].text) > _MEASURED else str(token_count(text))
            what = f'The caption of {_name(captions[i])} has {count} tokens of {limit}; cut is: "{shown(cut.strip())}".'
            yield Problem("long-caption", what, (i,))


def _without_trigger(captions: Sequence[Captioned], written: Sequence[int], trigger: str) -> Iterator[Problem]:
    for i in written:
        if not holds_word(captions[i].text, trigger):
            what = f'The caption of {_name(captions[i])} lacks the trigger word "{shown(trigger)}".'
            yield Problem("no-trigger", what, (i,))


def _without_class(
    captions: Sequence[Captioned],
    written: Sequence[int],
    class_words: Mapping[str, Sequence[str]] | Sequence[str] | None,
) -> Iterator[Problem]:
    classes: dict[str, list[int]] = defaultdict(list)
    for i in written:
        classes[captions[i].label].append(i)
    for label, members in classes.items():
        words = _words_of(label, class_words)
        if not words:
            continue
        named = " or ".join(f'"{shown(word)}"' for word in words)
        without = [i for i in members if not any(holds_word(captions[i].text, word) for word in words)]
        if class_words is None and len(without) > (1 - _USUAL) * len(members):
            count = "None" if len(without) == len(members) else f"Only {len(members) - len(without)}"
            what = f"{count} of the {len(members)} captions in {shown(label)} say {named}."
            yield Problem("class-never-named", what, tuple(without))
            continue
        for i in without:
            what = f'The caption of {_name(captions[i])} never says {named}: "{shown(captions[i].text)}".'
            yield Problem("no-class-word", what, (i,))


def _words_of(label: str, class_words: Mapping[str, Sequence[str]] | Sequence[str] | None) -> list[str]:
    if class_words is None:
        name = re.sub(r"^\d+_", "", label).strip(" _-")  # as 10_axe, in kohya's layout
        return [name] if re.search(r"[^\W\d_]", name) else []
    return list(class_words.get(label, ()) if isinstance(class_words, Mapping) else class_words)


def _identical(captions: Sequence[Captioned], written: Sequence[int]) -> Iterator[Problem]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in written:
        groups[_plain(captions[i].text)].append(i)
    for members in groups.values():
        if len(members) > 1:
            text = shown(captions[members[0]].text)
            what = f'{len(members)} captions are the same, "{text}": {_names(captions, members)}.'
            yield Problem("identical-captions", what, tuple(members))


def _similar(captions: Sequence[Captioned], written: Sequence[int]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for i in written:
        first.setdefault(_plain(captions[i].text), i)
    members = list(first.values())
    neighbours: dict[int, set[int]] = defaultdict(set)
    for a, b in alike([captions[i].text for i in members]):
        neighbours[members[a]].add(members[b])
        neighbours[members[b]].add(members[a])
    for group in _stars(neighbours):
        texts = "; ".join(f'"{shown(captions[i].text)}"' for i in group[:2])
        members = sorted(group)
        what = f"{len(group)} captions are nearly the same ({_names(captions, members)}), such as {texts}."
        yield Problem("similar-captions", what, tuple(members))


def _stars(neighbours: Mapping[int, set[int]]) -> list[list[int]]:
    """Return groups in which all are neighbours of one, which comes first: not a chain of ever less alike ones."""
    groups: list[list[int]] = []
    home: dict[int, list[int]] = {}
    for centre in sorted(neighbours, key=lambda i: (-len(neighbours[i]), i)):
        if centre in home:
            continue
        near = sorted(i for i in neighbours[centre] if i not in home)
        if near:
            group = [centre, *near]
            groups.append(group)
        else:  # all it is like are taken, so it joins one of them
            group = home[min(neighbours[centre])]
            group.append(centre)
        home |= dict.fromkeys((centre, *near), group)
    return sorted(groups, key=min)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _name(caption: Captioned) -> str:
    return shown(f"{caption.label}/{caption.file.name}" if caption.label else caption.file.name)


def _names(captions: Sequence[Captioned], members: Sequence[int]) -> str:
    several = len(Counter(captions[i].label for i in members)) > 1
    names = [_name(captions[i]) if several else shown(captions[i].file.name) for i in members[:_NAMES_SHOWN]]
    more = f" and {len(members) - _NAMES_SHOWN} more" if len(members) > _NAMES_SHOWN else ""
    return ", ".join(names) + more
