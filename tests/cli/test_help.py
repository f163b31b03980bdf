"""What `--help` shows, and what a mistyped command line is told."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from leapjax.cli import help_policies
from leapjax.cli.help_format import HelpFormatter
from leapjax.cli.main import COMMANDS, main
from leapjax.policies import POLICIES

SCRIPTS = Path(__file__).parents[2] / "scripts"


def shown(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "60"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    text = shown(capsys, *([command] if command else []), "--help")
    if columns == "80":
        assert [line for line in text.splitlines() if len(line) > 80] == []
    if command:
        assert text == shown(capsys, "help", command)
        assert f"leapjax {command} " in text.split("usage:")[1].split("\n", 3)[3]  # an example


def test_layout_of_a_text():
    text = (
        "Prose that\nis filled.\n\nexamples:\n  # a comment that is longer\n"
        "  leapjax decode --model m --input in.jsonl\n\n  name  what it means here\n\nAn end:\n"
    )
    made = HelpFormatter("x", width=22)._fill_text(text, 22, "")
    assert made == (
        "Prose that is filled.\n\nexamples:\n  # a comment that is\n  # longer\n"
        "  leapjax decode \\\n      --model m \\\n      --input in.jsonl\n\n"
        "  name  what it means\n        here\n\nAn end:\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag(command, capsys):
    wrong = {"convert": "--overwrit", "train": "--stepz", "benchmark": "--modles"}
    assert main([command, wrong.get(command, "--modle"), "x"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean --" in error


def test_suggestions_are_near(capsys):
    assert main(["decode", "--treshold=0.5"]) == 2
    assert "--treshold=0.5; did you mean --threshold?" in capsys.readouterr().err
    assert main(["decode", "--xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["help", "decoed"]) == 2
    assert "did you mean 'decode'?" in capsys.readouterr().err


def test_policies_have_a_help_of_their_own(capsys):
    usual = shown(capsys, "decode", "--help")
    assert "--kl-history" not in usual and "--help-policies" in usual and "--threshold" in usual
    text = shown(capsys, "decode", "--help-policies")
    assert text == help_policies.text()
    assert max(map(len, text.splitlines())) <= 80
    parts = text.split("\n\n")[1:]
    assert [part.split()[0] for part in parts] == list(POLICIES)
    for part, policy in zip(parts, POLICIES.values(), strict=True):
        assert f"source: {policy.source}" in part
        for option in policy.reads:
            assert f"  --{option.replace('_', '-')} " in part
    assert "--kl-history" in text and "(default: 2)" in text


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "decode.py")])
    spec = importlib.util.spec_from_file_location("_command", SCRIPTS / "_command.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", ["jax", "leapjax", "yaml"])
def test_a_script_without_its_packages(command, package, capsys):
    with pytest.raises(SystemExit) as ended, command.installed():
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"package {package} is not" in error and "make demo" in error and "pip install" in error


def test_our_own_missing_module_is_no_missing_package(command):
    with pytest.raises(ModuleNotFoundError), command.installed():
        raise ModuleNotFoundError("No module named 'leapjax.nothing'", name="leapjax.nothing")


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.glob("[!_]*.py")))
def test_every_script_in_a_bare_clone(script):
    # -S leaves installed packages out, and is quick: nothing is imported.
    argv = [sys.executable, "-S", "-E", str(SCRIPTS / script), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "make demo" in done.stderr
