"""Every printed command that asks the embedded model something gets the right answer."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

import leapjax
from leapjax.cli.decode_arguments import add_arguments
from leapjax.cli.main import COMMANDS, main
from leapjax.options import set_flags
from leapjax.tasks.base import extract_final
from leapjax.terminal import examples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"""leapjax decode (?:"[^"]*"|[^\n`#"])*--prompt (?:"[^"]*"|[^\n`#"])*""")


def printed(capsys):
    """Every text that prints commands, by where it is."""
    for page in PAGES:
        yield page.name, page.read_text()
    for argv in (["--help"], *([name, "--help"] for name in COMMANDS)):
        assert main(argv) == 0
        yield " ".join(argv), capsys.readouterr().out
    from leapjax.terminal import samples

    yield "samples", samples.NEXT


def test_every_printed_question_is_answered_rightly(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found, seen = {}, set()
    for where, text in printed(capsys):
        for command in COMMAND.findall(text.replace("\\\n", " ")):
            args = parser.parse_args(shlex.split(command.split(" | ")[0])[2:])
            if args.model is None and args.config is None and "…" not in args.prompt:
                assert not set_flags(args), command  # else the table below needs its options
                found |= {question: f"{where}: {command}" for question in args.prompt}
                seen.add(where)
    assert {"README.md", "--help", "decode --help"} <= seen
    assert found.keys() == examples.ANSWERS.keys()
    lm = leapjax.load()
    for answer, question in zip(lm.generate(list(found)), found, strict=True):
        assert extract_final(answer.text) == examples.ANSWERS[question], found[question]


def test_the_numbers_of_the_table_are_right():
    signs = {"finds": 1, "loads": 1, "adds": 1, "drops": -1, "leaves": -1}
    for question, number in examples.ANSWERS.items():
        parts = re.findall(r"(has|carries|" + "|".join(signs) + r") (\d+)", question)
        assert sum(signs.get(verb, 1) * int(n) for verb, n in parts) == int(number)
        assert len(parts) == len(re.findall(r"\d+", question))


@pytest.mark.parametrize("flags", [["--prompt", examples.QUESTION], ["--chat"]])
def test_the_embedded_model_says_what_it_knows(flags, capsys, monkeypatch):
    import io

    from leapjax.cli.decode import main as decode

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{examples.QUESTION}\n/help\n"))
    assert decode(flags) == 0
    streams = capsys.readouterr()
    assert streams.err.count(examples.EMBEDDED) == 1
    assert extract_final(streams.out) == "17"
    assert "--model" in examples.EMBEDDED and "word problems" in examples.EMBEDDED
