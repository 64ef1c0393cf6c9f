"""Every kind of finding about the data, in one table: docs/check.md is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
About = Literal["folder", "picture", "entry", "caption", "set"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Args:
        severity: ``error``: something that was offered is not used; ``warning``: it is used, but look at it;
            ``info``: said so that nothing is done quietly.
        about: what it is about; an error about a ``folder`` stops a training, one about a ``picture`` leaves out
            that picture, one about an ``entry`` leaves out one line of a metadata file or one file of an archive.
        fix: what to do about it, as one sentence.
        means: what it means, as one sentence.
        why: why it matters, as one sentence.
    """

    severity: Severity
    about: About
    fix: str
    means: str
    why: str


_STOPS = "Nothing of it can be read, so a training refuses to start."
_LEFT_OUT = "The picture is left out."
_LINE_LOST = "The line is left out, and with it the picture's caption."
_MEMBER_LOST = "The file is left out; it is not even unpacked."
_COPY = "Copy the picture again from where it came from, or remove it."
_REPACK = "Remove it from the archive, or unpack the archive yourself and check the folder."

READING: dict[str, Kind] = {
    # A folder cannot be used at all.
    "missing-folder": Kind(
        "error",
        "folder",
        "Check the path; one in a recipe starts at the recipe's folder.",
        "The folder is not there.",
        _STOPS,
    ),
    "not-a-folder": Kind(
        "error", "folder", "Name the folder that holds the pictures.", "What was named is a single file.", _STOPS
    ),
    "unreadable-folder": Kind(
        "error", "folder", "Give yourself the right to read it.", "The system refuses to list the folder.", _STOPS
    ),
    "no-pictures": Kind(
        "error",
        "folder",
        "Put pictures (PNG, JPEG, WebP, ...) into it, or leave the folder out.",
        "No file in the folder is a picture by its name.",
        _STOPS,
    ),
    "folder-in-folder": Kind(
        "error",
        "folder",
        "Name only one of the two, so that no picture is used twice.",
        "Two folders are named, and one lies in the other.",
        "Its pictures would count twice, under two classes.",
    ),
    "unreadable-metadata": Kind(
        "error",
        "folder",
        "Give yourself the right to read it, or write it again.",
        "The file of captions cannot be opened.",
        _STOPS,
    ),
    "utf16-metadata": Kind(
        "error",
        "folder",
        "Save it as UTF-8; in PowerShell: (Get-Content metadata.jsonl) | Set-Content -Encoding utf8 metadata.jsonl",
        "The file of captions is UTF-16, as older PowerShell writes it.",
        _STOPS,
    ),
    "nothing-usable": Kind(
        "error",
        "folder",
        "Mend what is listed here, or leave the folder out.",
        "The folder has pictures, but none of them can be used.",
        _STOPS,
    ),
    # A line of a metadata file cannot be used.
    "bad-json": Kind(
        "error",
        "entry",
        'Write one object per line, as {"file_name": "1.png", "text": "a red axe"}.',
        "A line of metadata.jsonl is not JSON.",
        _LINE_LOST,
    ),
    "bad-csv": Kind(
        "error",
        "entry",
        'Put a caption with a comma or a quote into "double quotes".',
        "A line of metadata.csv does not have the cells that its first line promises.",
        _LINE_LOST,
    ),
    "not-utf8": Kind(
        "error", "entry", "Save the file as UTF-8.", "A line has bytes that are not UTF-8, as Latin-1 has.", _LINE_LOST
    ),
    "line-too-long": Kind("error", "entry", "Write one picture per line.", "A line is longer than 1 MiB.", _LINE_LOST),
    "bad-entry": Kind(
        "error",
        "entry",
        'Give each line a "file_name" and a "text", both as strings.',
        "A line names no picture.",
        _LINE_LOST,
    ),
    "outside-folder": Kind(
        "error",
        "entry",
        "Copy the picture into the folder and name it relative to the folder.",
        "A line names a file outside the folder, by ../, an absolute path, a drive, a web address or a link.",
        "It is refused, because a data set from elsewhere could so read any file of this machine.",
    ),
    "missing-file": Kind(
        "error",
        "entry",
        "Correct the name (capitals count), or remove the line.",
        "A caption without its picture: the line names a file that is not there.",
        _LINE_LOST,
    ),
    "duplicate-entry": Kind(
        "error",
        "entry",
        "Remove one of the lines; the first is used.",
        "Two lines name the same picture.",
        "Only one caption can be used, and it may be the wrong one.",
    ),
    "duplicate-key": Kind(
        "warning",
        "entry",
        "Keep one of the values; the last is used.",
        "A line gives the same key twice.",
        "One of the two values is silently lost in every reader of JSON or CSV.",
    ),
    # A picture cannot be used.
    "no-entry": Kind(
        "error",
        "picture",
        "Add a line for it to the metadata file, or move it out of the folder.",
        "A picture without a caption: the folder's metadata file has no line for it.",
        _LEFT_OUT,
    ),
    "bad-caption": Kind(
        "error", "picture", "Write its caption as plain UTF-8 text.", "The caption is no text.", _LEFT_OUT
    ),
    "link-outside": Kind(
        "error",
        "picture",
        "Copy the picture itself into the folder.",
        "The file is a link to a file outside the folder.",
        _LEFT_OUT,
    ),
    "unreadable-file": Kind(
        "error",
        "picture",
        "Give yourself the right to read it, or remove it.",
        "The file cannot be opened: rights, a broken link, a circle of links, or no file at all.",
        _LEFT_OUT,
    ),
    "empty-file": Kind("error", "picture", _COPY, "The file has no bytes.", _LEFT_OUT),
    "not-a-picture": Kind(
        "error",
        "picture",
        "Replace it with a real picture, or remove it.",
        "The file's bytes are no picture in any format that is read.",
        _LEFT_OUT,
    ),
    "unsupported-format": Kind(
        "error", "picture", "Export it as PNG or JPEG.", "A format that cannot be read here, as HEIC or PSD.", _LEFT_OUT
    ),
    "damaged-picture": Kind("error", "picture", _COPY, "The file is cut short or damaged.", _LEFT_OUT),
    "too-many-pixels": Kind(
        "error",
        "picture",
        "Scale the picture down; training uses a small copy anyway.",
        "The file says it has more than 45.5 million pixels, or as a JPEG more than 120 million.",
        "It is left out: but for JPEG, all of it would have to be decoded, and a small file that says so is an attack.",
    ),
    "animated": Kind(
        "error", "picture", "Save the frame that you want as a PNG.", "The file is an animation.", _LEFT_OUT
    ),
    # An archive, or a file in it.
    "bad-archive": Kind(
        "error",
        "folder",
        "Make the archive again, or name the unpacked folder.",
        "The file ends in .zip but cannot be read as one.",
        _STOPS,
    ),
    "archive-name": Kind(
        "error",
        "entry",
        _REPACK,
        "A file's name in the archive leads out of it: ../, an absolute path, a drive.",
        "It is not unpacked: it could overwrite any file of this machine.",
    ),
    "archive-link": Kind(
        "error",
        "entry",
        _REPACK,
        "A file in the archive is a link or a device.",
        "It is not unpacked: it could lead to any file of this machine.",
    ),
    "archive-nested": Kind("error", "entry", _REPACK, "An archive in the archive.", _MEMBER_LOST),
    "archive-too-large": Kind(
        "error",
        "entry",
        _REPACK,
        "A file in the archive, or all of them, unpack to far more than pictures do.",
        "It is not unpacked: it would fill the disk, and a small archive that does so is an attack.",
    ),
    "archive-damaged": Kind("error", "entry", _REPACK, "A file in the archive cannot be unpacked.", _MEMBER_LOST),
    "archive-encrypted": Kind(
        "error",
        "entry",
        "Make the archive again without a password.",
        "A file in the archive needs a password.",
        _MEMBER_LOST,
    ),
    "archive-twice": Kind(
        "error",
        "entry",
        _REPACK,
        "Two files in the archive have the same name, perhaps but for capitals.",
        "Only the first is used; which one other programs use is chance.",
    ),
    # Used, but worth a look.
    "no-captions": Kind(
        "warning",
        "folder",
        "Describe each picture in metadata.jsonl; better captions, better LoRA.",
        "The folder has no captions at all; its name is used for all pictures.",
        "Whatever the caption does not say is learned as part of the class itself.",
    ),
    "empty-caption": Kind(
        "warning",
        "picture",
        "Write what the picture shows.",
        "The picture has no caption; the folder's name is used.",
        "Whatever the caption does not say is learned as part of the class itself.",
    ),
    "caption-without-picture": Kind(
        "warning",
        "caption",
        "Rename it as its picture is named, or remove it.",
        "A .txt or .caption file has no picture of the same name beside it.",
        "A misspelt name means that a picture goes without its caption.",
    ),
    "several-pages": Kind(
        "warning",
        "picture",
        "Save the page that you want as a PNG, if it is not the first.",
        "The file holds several pictures.",
        "Only the first is used.",
    ),
    "duplicate-picture": Kind(
        "warning",
        "picture",
        "Remove one of them, unless it is meant to count twice.",
        "Two files are equal, byte for byte.",
        "The picture counts twice, and the LoRA learns it by heart sooner.",
    ),
    "folder-twice": Kind(
        "warning",
        "folder",
        "Name it once; use data.balance to weigh classes.",
        "A folder is named twice.",
        "It is read once.",
    ),
    "unread-metadata": Kind(
        "warning",
        "folder",
        "Write the captions as metadata.jsonl in the folder that you name.",
        "A file of captions that is not used: it lies in a subfolder, is empty, or needs pyarrow.",
        "Its captions are missing from the training.",
    ),
    # Said so that nothing is done quietly.
    "subfolders": Kind(
        "info",
        "folder",
        "Nothing to do, if each subfolder is a class of its own.",
        "The folder holds only folders; each is a class.",
        "The classes are drawn equally often.",
    ),
    "repeats": Kind(
        "info",
        "folder",
        "Nothing to do; set data.balance to weigh classes.",
        "The folder is named as kohya's scripts want it, 10_name: each picture ten times in an epoch.",
        "The number is not used here: classes are drawn equally often, and a training is counted in steps.",
    ),
    "mixed-captions": Kind(
        "info",
        "folder",
        "Nothing to do, if both are meant.",
        "Some captions come from a metadata file and some from files beside the pictures.",
        "A picture that has both takes the metadata file's.",
    ),
    "caption-key": Kind(
        "info",
        "folder",
        'Nothing to do; "text" is the usual key.',
        "The captions stand under another key than text.",
        "Other trainers may not find them.",
    ),
    "unused-files": Kind(
        "info",
        "folder",
        "Nothing to do, if none of them is meant to be a picture or a caption.",
        "Files that are neither pictures nor captions.",
        "They are left alone.",
    ),
    "link": Kind(
        "info",
        "picture",
        "Nothing to do here; copy the picture itself before you send the folder elsewhere.",
        "The file is a link to another file in the folder.",
        "It counts once, and many archives lose links.",
    ),
}
