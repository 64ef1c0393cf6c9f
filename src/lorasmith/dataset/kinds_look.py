"""The kinds of finding that need a look at the pictures, or at all of them together; see ``kinds``."""

from __future__ import annotations

from lorasmith.dataset.kinds import Kind

_LEARNED = "The LoRA learns it as part of the subject and draws it too."
_NOTHING = "Nothing to do"

LOOKING: dict[str, Kind] = {
    # The file.
    "wrong-suffix": Kind(
        "warning",
        "picture",
        "Rename it to the suffix that its format has.",
        "The file is another format than its name says.",
        "It is read all the same here, but other programs refuse such files.",
    ),
    "alpha-used": Kind(
        "warning",
        "picture",
        "Lay it on a background of your choice; lorasmith curate can do that.",
        "A part of the picture is transparent.",
        "It is laid on white for the training, so white edges are learned.",
    ),
    "alpha-unused": Kind(
        "info",
        "picture",
        f"{_NOTHING}; saving it as RGB makes the file smaller.",
        "The picture has an alpha channel, and every pixel is opaque.",
        "Other tools may treat it as transparent.",
    ),
    "deep-colour": Kind(
        "info",
        "picture",
        f"{_NOTHING}, unless the picture then looks too dark or too bright.",
        "The picture has 16 or 32 bits for each value.",
        "It is scaled to 8 bits; other tools cut the bright part off.",
    ),
    "cmyk": Kind(
        "warning",
        "picture",
        "Convert it to sRGB in an editor, and look at the colours.",
        "The picture is in printing colours (CMYK).",
        "Its colours change when they are converted, often visibly.",
    ),
    "grey": Kind(
        "info",
        "picture",
        f"{_NOTHING}, if the LoRA may learn to draw without colour.",
        "The picture has no colour.",
        "Enough of such pictures, and the LoRA draws in grey too.",
    ),
    "colour-profile": Kind(
        "info",
        "picture",
        f"{_NOTHING} here; convert it to sRGB for other tools.",
        "The picture has a colour profile other than sRGB.",
        "It is converted to sRGB here; tools that ignore profiles show and learn other colours.",
    ),
    "bad-profile": Kind(
        "warning",
        "picture",
        "Save it as sRGB in an editor, and look at the colours.",
        "The picture's colour profile is damaged or not for this kind of picture.",
        "It is ignored, so the colours may not be what was meant.",
    ),
    "rotated": Kind(
        "info",
        "picture",
        f"{_NOTHING} here; other tools may show it lying on its side.",
        "The camera noted that the picture is to be turned (EXIF).",
        "It is turned upright for the training.",
    ),
    "file-name": Kind(
        "warning",
        "picture",
        "Rename it: letters, digits, dots, - and _ work everywhere.",
        "The name cannot exist on Windows, or is not Unicode text.",
        "The data set cannot be copied to, or unpacked on, every system.",
    ),
    "case-clash": Kind(
        "warning",
        "set",
        "Rename one of them.",
        "Names in one folder differ only by capitals.",
        "On Windows and macOS one of the files replaces the other.",
    ),
    # What it shows.
    "too-small": Kind(
        "warning",
        "picture",
        "Find a larger original, or leave it out.",
        "The picture must be enlarged by a quarter or more for the training's resolution.",
        "Enlarged pictures are soft, and the LoRA learns the softness.",
    ),
    "slightly-small": Kind(
        "info",
        "picture",
        f"{_NOTHING}; a larger original would be better.",
        "The picture must be enlarged, by less than a quarter.",
        "It gets a little soft.",
    ),
    "extreme-aspect": Kind(
        "warning",
        "picture",
        "Crop it to what matters, or pad it; lorasmith curate can do both.",
        "The picture is more than twice as long as wide.",
        "Training crops to a square, so more than half of the picture is never seen.",
    ),
    "blurred": Kind(
        "warning",
        "picture",
        "Replace it with a sharp picture, or leave it out.",
        "Even the sharpest edges in the picture are soft at the training's resolution.",
        "The LoRA learns the softness.",
    ),
    "over-exposed": Kind(
        "warning",
        "picture",
        "Use another picture, or lower its brightness from the raw file.",
        "Much of what the picture shows is pure white (a plain background does not count).",
        "What is white has no detail to learn.",
    ),
    "under-exposed": Kind(
        "warning",
        "picture",
        "Raise its brightness, or leave it out.",
        "Nearly all of what the picture shows is almost black (a plain background does not count).",
        "What is black has no detail to learn.",
    ),
    "borders": Kind(
        "warning",
        "picture",
        "Crop the bars off; lorasmith curate can do that.",
        "Bars of one colour lie along the picture's sides.",
        _LEARNED,
    ),
    "text": Kind(
        "warning",
        "picture",
        "Paint it over, or leave the picture out; lorasmith curate can do both.",
        "What looks like a watermark or overlaid text.",
        _LEARNED,
    ),
    "lines": Kind(
        "warning",
        "picture",
        "Paint them over; lorasmith curate can do that.",
        "Thin straight lines that do not belong to the subject.",
        _LEARNED,
    ),
    "several-subjects": Kind(
        "warning",
        "picture",
        "Crop to one of them, or say in the caption how many there are.",
        "The picture seems to show more than one thing of the same kind.",
        "The LoRA learns to draw several where one is asked for.",
    ),
    "cut-by-frame": Kind(
        "warning",
        "picture",
        'Use a picture that shows the whole of it, or say "close-up" in the caption.',
        "The subject runs out of the picture.",
        "The LoRA learns to draw it cut off.",
    ),
    # All of them together.
    "near-duplicates": Kind(
        "warning",
        "set",
        "Keep the best of each group.",
        "Pictures that are the same but for size, a slight crop or how they were saved.",
        "The picture counts several times, and the LoRA learns it by heart.",
    ),
    "mirrored-duplicates": Kind(
        "info",
        "set",
        f"{_NOTHING}, unless data.flip is on too.",
        "Pictures that are mirror images of each other.",
        "They show the same again; data.flip would add mirror images by itself.",
    ),
    "held-out-duplicates": Kind(
        "warning",
        "set",
        "Keep only one of each group, so that the validation loss means something.",
        "A picture that is held out to measure on is nearly the same as one that is trained on.",
        "The validation loss then looks better than it is.",
    ),
    "class-balance": Kind(
        "warning",
        "set",
        "Add pictures to the smaller class, or see what data.balance does.",
        "One class has more than three times the pictures of another.",
        "Each class is drawn equally often, so pictures of the small class come again and again.",
    ),
    "too-few": Kind(
        "warning",
        "set",
        "Add pictures: 15 to 30 good ones are a start.",
        "A class has fewer than ten pictures.",
        "The LoRA learns these pictures by heart instead of what they have in common.",
    ),
    "low-variety": Kind(
        "warning",
        "set",
        "Add pictures that differ in it, or say in each caption what it is.",
        "The pictures of a class hardly differ in background, composition or lighting.",
        "What is the same in all pictures is learned as part of the subject.",
    ),
    "plain-backgrounds": Kind(
        "info",
        "set",
        f"{_NOTHING} if that is what you want; else name the background in each caption.",
        "Most pictures of a class have a plain background of one colour.",
        "The LoRA learns the empty background along with the subject.",
    ),
}
