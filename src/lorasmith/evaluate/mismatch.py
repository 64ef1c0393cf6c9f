"""Find captions that fit another picture better than their own, with a CLIP.

No threshold belongs to a particular CLIP. A caption that has nothing to do with its picture fits it no better than
the set's other captions do: the share of them that fit better is then spread evenly from 0 to 1, and for a right
caption it is near 0. So listing shares above 5 % finds 95 % of the captions that have nothing to do with their
picture, whatever the CLIP. How many such captions there are is estimated from the shares above a quarter, which right
captions hardly reach (Storey 2002, "A direct approach to false discovery rates"); where fewer than half of the listed
ones would then be wrong, the list is shortened. A CLIP that cannot tell the captions apart at all is found out too.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorasmith.dataset.bucket import fit
from lorasmith.dataset.picture import PictureError, open_rgb
from lorasmith.events import Event, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from lorasmith.model.judge import Judge

Vectors = NDArray[np.float32]

LISTED_FROM = 0.05  # so 95 % of the captions that fit no better than chance are listed
_UNLIKELY = 0.25  # a share that right captions hardly reach
_PRECISION = 0.5  # the least part of the listed captions that shall be wrong, by the estimate
_TELLS_NOTHING = 0.5  # the estimated share of wrong captions, from which on it is rather the CLIP that fails
FEWEST = 8  # captions; among fewer "better than the others" means little
_BLOCK = 512  # rows of the table of all scores that are held at once


@dataclass(frozen=True)
class Mismatch:
    """A caption that seems not to belong to its picture.

    Args:
        index: which.
        better: the share of the others that fit better: the mean over captions for this picture and pictures for
            this caption, 0 to 1. A caption drawn at random has 0.5 on average.
        captions_better: how many of the other captions fit the picture better.
        pictures_better: how many of the other pictures the caption fits better.
        best_caption: the one of the other captions that fits the picture best.
        best_picture: the one of the other pictures that the caption fits best.
        swapped_with: the listed one with which it seems to be swapped, if there is one.
    """

    index: int
    better: float
    captions_better: int
    pictures_better: int
    best_caption: int
    best_picture: int
    swapped_with: int | None = None


@dataclass(frozen=True)
class Mismatches:
    """What was found.

    Args:
        found: the captions that seem wrong, the worst first.
        wrong_share: the estimated share of wrong captions in the whole set, 0 to 1.
        likely_wrong: the estimated part of ``found`` that is really wrong, 0 to 1.
        telling: whether the CLIP can tell these captions apart; if not, nothing is listed.
        better: for every caption the share of the others that fit better, (N,).
    """

    found: tuple[Mismatch, ...]
    wrong_share: float
    likely_wrong: float
    telling: bool
    better: NDArray[np.float64]


def embed_files(judge: Judge, paths: Sequence[Path], batch: int = 32) -> Generator[Event, None, Vectors]:
    """Return the embeddings of pictures, (N, D), as events go by; a row of zeros for one that cannot be read."""
    rows: list[Vectors] = []
    yield Progress("compare", 0, len(paths))
    for start in range(0, len(paths), batch):
        squares = np.zeros((len(paths[start : start + batch]), judge.size, judge.size, 3), dtype=np.uint8)
        readable = np.zeros(len(squares), dtype=bool)
        for i, path in enumerate(paths[start : start + batch]):
            try:
                squares[i] = fit(open_rgb(path), (judge.size, judge.size))
                readable[i] = True
            except PictureError:
                continue
        rows.append(judge.embed_pictures(squares).cpu().numpy() * readable[:, None])
        yield Progress("compare", min(start + batch, len(paths)), len(paths))
    return np.concatenate(rows) if rows else np.zeros((0, 1), dtype=np.float32)


def embed_captions(judge: Judge, texts: Sequence[str], batch: int = 256) -> Vectors:
    """Return the embeddings of captions, (N, D); each different text is embedded once."""
    distinct = list(dict.fromkeys(texts))
    parts = [judge.embed_texts(distinct[i : i + batch]).cpu().numpy() for i in range(0, len(distinct), batch)]
    place = {text: i for i, text in enumerate(distinct)}
    return np.asarray(np.concatenate(parts)[[place[text] for text in texts]], dtype=np.float32)


def find_mismatches(pictures: Vectors, captions: Vectors, texts: Sequence[str]) -> Mismatches:
    """Find the captions that seem not to belong to their pictures.

    Args:
        pictures: embeddings (N, D); row i belongs to caption i.
        captions: embeddings (N, D).
        texts: the captions themselves: equal ones are not compared with each other.
    """
    table = _Table(pictures, captions, texts)
    better = table.better
    order = np.argsort(-better, kind="stable")
    wrong_share = min(1.0, float(np.mean(better > _UNLIKELY)) / (1 - _UNLIKELY)) if len(texts) else 0.0
    telling = len(texts) >= FEWEST and wrong_share <= _TELLS_NOTHING
    listed, likely = _listed(better, wrong_share) if telling else (np.zeros(len(texts), dtype=bool), 0.0)
    found = [table.evidence(int(i)) for i in order if listed[i]]
    return Mismatches(_with_swaps(found), wrong_share, likely, telling, better)


def _listed(better: NDArray[np.float64], wrong_share: float) -> tuple[NDArray[np.bool_], float]:
    """Return which captions are listed, and the estimated part of them that is wrong."""
    for limit in (LISTED_FROM, *np.unique(better[better > LISTED_FROM])):
        listed = better > limit
        if not listed.any():
            break
        likely = min(1.0, wrong_share * (1 - float(limit)) * len(better) / int(listed.sum()))
        if likely >= _PRECISION:
            return listed, likely
    return np.zeros(len(better), dtype=bool), 0.0


def _with_swaps(found: Sequence[Mismatch]) -> tuple[Mismatch, ...]:
    """Name the other of two whose captions fit each other's pictures best."""
    by_index = {m.index: m for m in found}
    result = []
    for m in found:
        other = by_index.get(m.best_caption)
        mutual = other is not None and other.best_caption == m.index
        swapped = m.best_caption if mutual else None
        result.append(Mismatch(**{**vars(m), "swapped_with": swapped}))
    return tuple(result)


class _Table:
    """The scores of all pictures against all captions, made anew block by block rather than kept.

    Each is freed of what the picture scores with all captions, and the caption with all pictures: some captions fit
    everything a little, and so do some pictures.
    """

    def __init__(self, pictures: Vectors, captions: Vectors, texts: Sequence[str]) -> None:
        self._pictures, self._captions = pictures.astype(np.float32), captions.astype(np.float32)
        self._text = np.unique(np.asarray(texts, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)
        n = len(texts)
        self._of_captions = self._captions @ self._pictures.mean(0) if n else np.zeros(0, np.float32)
        mean = self._captions.mean(0) if n else np.zeros(0, np.float32)
        self._of_pictures = self._pictures @ mean if n else np.zeros(0, np.float32)
        own = (self._pictures * self._captions).sum(1) - self._of_pictures - self._of_captions
        self._own = np.asarray(own, dtype=np.float32)
        self._rows, self._columns = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        others, ties = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(n, start + _BLOCK))
            scores, different = self._block(rows)
            slack = 1e-5  # float32 sums come out a little different in another order
            over_own, over_theirs = scores - self._own[rows, None], scores - self._own[None]
            self._rows[rows] = ((over_own > slack) & different).sum(1)
            self._columns += ((over_theirs > slack) & different).sum(0)
            ties[rows] += ((np.abs(over_own) <= slack) & different).sum(1)
            ties += ((np.abs(over_theirs) <= slack) & different).sum(0)
            others[rows] = different.sum(1)
        # As good is half better: a CLIP to which all is alike says nothing, not that all is right.
        self.better = (self._rows + self._columns + 0.5 * ties) / (2.0 * np.maximum(others, 1))

    def _block(self, rows: slice) -> tuple[Vectors, NDArray[np.bool_]]:
        scores = self._pictures[rows] @ self._captions.T - self._of_pictures[rows, None] - self._of_captions[None]
        return scores, self._text[rows, None] != self._text[None]

    def evidence(self, i: int) -> Mismatch:
        scores, different = self._block(slice(i, i + 1))
        best_caption = int(np.where(different[0], scores[0], -np.inf).argmax())
        column = self._pictures @ self._captions[i] - self._of_pictures
        best_picture = int(np.where(different[0], column, -np.inf).argmax())
        rows, columns = int(self._rows[i]), int(self._columns[i])
        return Mismatch(i, float(self.better[i]), rows, columns, best_caption, best_picture)
