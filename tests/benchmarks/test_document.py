"""A generated section in a document that people write too."""

import pytest

from leapjax.benchmarks.report import markers, write_section
from leapjax.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"# Notes\r\n\r\nbefore\n\n<!-- other: end -->\n")
    return path


def test_only_the_section_is_replaced(file):
    before = file.read_bytes()
    write_section(file, "speed", "first")
    with file.open("ab") as f:
        f.write(b"\nafter \xc3\xa9\n")
    write_section(file, "speed", "a longer\n\nsecond\n")
    text = file.read_bytes()
    assert text.startswith(before) and text.endswith("\nafter é\n".encode())
    assert b"first" not in text and b"a longer\n\nsecond\n<!--" in text


def test_the_same_text_twice_changes_nothing(file):
    write_section(file, "speed", "text")
    once = file.read_bytes()
    write_section(file, "speed", "text")
    assert file.read_bytes() == once


def test_sections_do_not_meet(file):
    write_section(file, "a", "one")
    write_section(file, "b", "two")
    write_section(file, "a", "three")
    text = file.read_text()
    assert text.index("three") < text.index(markers("a")[1]) < text.index("two")
    assert "one" not in text


def test_a_new_file(tmp_path):
    path = tmp_path / "new.md"
    write_section(path, "speed", "text")
    begin, end = markers("speed")
    assert path.read_text() == f"{begin}\ntext\n{end}\n"


@pytest.mark.parametrize("which", ["begin", "end", "twice", "turned"])
def test_broken_markers_are_left_alone(file, which):
    begin, end = markers("speed")
    text = {"begin": begin, "end": end, "twice": begin * 2 + end, "turned": end + begin}[which]
    file.write_text(text)
    with pytest.raises(UserError, match="not one pair"):
        write_section(file, "speed", "text")
    assert file.read_text() == text


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="can't be written"):
        write_section(tmp_path / "none" / "x.md", "speed", "text")
