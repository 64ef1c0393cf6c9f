from __future__ import annotations

from pathlib import Path

from lorasmith.dataset import finding as module
from lorasmith.dataset.finding import KINDS, data_error, finding


def test_every_kind_is_used_and_has_a_fix() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(module.__file__).parents[1].rglob("*.py"))
    for code, kind in KINDS.items():
        assert sources.count(f'"{code}"') >= 2, f"{code} is in the table only"
        assert kind.fix.endswith((".", "metadata.jsonl", "WORD"))


def test_only_errors_about_folders_are_fatal_and_only_the_others_exclude() -> None:
    for code, kind in KINDS.items():
        found = finding(code, "Something.", Path("x"))
        assert found.fatal == (kind.severity == "error" and kind.about == "folder")
        assert found.excludes == (kind.severity == "error" and kind.about != "folder")


def test_a_finding_as_text() -> None:
    found = finding("bad-json", "Line 3 is not JSON.", Path("axe") / "metadata.jsonl", line=3)
    assert str(found) == f"Line 3 is not JSON. ({Path('axe') / 'metadata.jsonl'}:3)"
    assert str(finding("missing-folder", "The folder axe is not there.", Path("axe"))) == "The folder axe is not there."


def test_an_error_lists_what_it_can_and_counts_the_rest() -> None:
    text = str(data_error([finding("no-entry", f"{i}.png has no line.", Path(f"{i}.png")) for i in range(150)]))
    assert "150 problems" in text
    assert "99.png" in text
    assert text.endswith("and 50 more")
