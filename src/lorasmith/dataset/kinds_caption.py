"""The kinds of finding about captions; see ``kinds``."""

from __future__ import annotations

from lorasmith.dataset.kinds import Kind

CAPTIONS: dict[str, Kind] = {
    "identical-captions": Kind(
        "warning",
        "set",
        "Say in each what is particular to its picture.",
        "Several pictures have the same caption.",
        "Words that do not vary with the pictures cannot be told apart, so a prompt cannot choose between them.",
    ),
    "similar-captions": Kind(
        "warning",
        "set",
        "Say in each what tells its picture from the others, if anything does.",
        "Several captions say nearly the same in nearly the same words.",
        "What tells the pictures apart stays unsaid, so a prompt cannot ask for it.",
    ),
    "long-caption": Kind(
        "warning",
        "caption",
        "Put what matters first, or shorten it.",
        "The caption has more tokens than the text encoder reads.",
        "What is cut is never learned.",
    ),
    "no-trigger": Kind(
        "warning",
        "caption",
        "Add it with: lorasmith caption FOLDER --trigger WORD",
        "The caption lacks the trigger word.",
        "The picture then teaches its style to prompts without the word.",
    ),
    "no-class-word": Kind(
        "warning",
        "caption",
        "Name the thing by the same word in every caption.",
        "The caption never names its class, as most captions of the class do.",
        "What the picture shows is not learned as what the word means.",
    ),
    "class-never-named": Kind(
        "info",
        "set",
        "Nothing to do, if the folder's name is no word for what the pictures show.",
        "Most captions of a class never say the name of its folder.",
        "A prompt with that word will not draw what the pictures show.",
    ),
    "mismatched-caption": Kind(
        "warning",
        "set",
        "Look at the picture, and correct or swap the caption.",
        "The caption fits another picture of the set better than its own, by a CLIP's measure.",
        "The LoRA learns wrong words for what it sees.",
    ),
}
