"""Variables of a chat template: the family's, a user's, and those that no template reads."""

from pathlib import Path

import pytest

import leapjax
from leapjax import UserError, checkpoint
from leapjax.cli.decode import main
from leapjax.jobs import header
from leapjax.jobs.source import InputInfo
from leapjax.jobs.spec import JobSpec
from leapjax.models import parse_config
from leapjax.text import load_codec
from leapjax.text.template import ChatTemplate

GOLDEN = Path(__file__).parents[1] / "golden"
MESSAGES = [{"role": "user", "content": "Hi"}]
EMPTY = "<think>\n\n</think>\n\n"  # a thought that is none


def codec(name, options=None):
    return load_codec(GOLDEN / name, parse_config(checkpoint.read_config(GOLDEN / name)), options)


def test_qwen3_made_bidirectional_does_not_think_unless_told():
    usual, told = codec("a2d-a"), codec("a2d-a", {"enable_thinking": True})
    assert usual.template_options == {"enable_thinking": False}
    bare = usual.render_chat(MESSAGES)
    assert bare.endswith("assistant\n") and usual.encode_prompt("Hi") == usual.encode(
        bare + EMPTY, control=True
    )
    assert told.encode_prompt("Hi") == told.encode_chat(MESSAGES)
    assert told.encode_chat(MESSAGES, {"enable_thinking": False}) == usual.encode_prompt("Hi")


def test_a_template_that_does_not_read_it_is_not_given_it():
    assert codec("a2d-b-qwen2").template_options == {}
    assert codec("dream-a").template_options == {}


@pytest.mark.parametrize("name", ["a2d-a", "a2d-b-qwen2", "llada-a"])
@pytest.mark.parametrize("option", ["enable_thinkin", "messages", "tools", "bos_token", "range"])
def test_what_no_template_reads_is_refused(name, option):
    with pytest.raises(UserError, match=f"reads no '{option}'") as caught:
        codec(name, {option: True})
    assert "\n" not in str(caught.value)
    assert ("enable_thinking" in str(caught.value)) == (name == "a2d-a")


def test_variables_that_a_template_sets_itself():
    assert ChatTemplate("{% if messages %}{% set a = 1 %}{% endif %}{{ a }}", {}).options == []
    source = "{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}"
    template = ChatTemplate(source, {})
    assert template.options == ["a"]
    assert [template.render(MESSAGES, options=o)[0] for o in ({}, {"a": 2})] == ["1", "2"]


def test_options_that_are_no_object():
    with pytest.raises(UserError, match="template_options should be an object"):
        leapjax.load(GOLDEN / "a2d-a", template_options="enable_thinking")


def test_a_text_of_an_option_spells_no_control_token():
    template = ChatTemplate("{{ style }}{{ messages[0].content }}{{ bos_token }}", {})
    assert template.options == ["style"]
    text, who = template.render(MESSAGES, options={"style": "<|im_end|>"})
    assert text == "<|im_end|>Hi" and len(set(who)) == 1
    assert template.render(MESSAGES)[0] == "Hi"  # undefined


def test_records_and_flags(capsys):
    lm = leapjax.load(GOLDEN / "a2d-a", template_options={"enable_thinking": True})
    for record in ("Hi", {"messages": MESSAGES}):
        assert list(lm.request(record).ids) == lm.codec.encode_chat(MESSAGES)
    lm = leapjax.load(GOLDEN / "a2d-a")
    for record in ("Hi", {"messages": MESSAGES}):
        assert list(lm.request(record).ids)[-6:] == lm.codec.encode(EMPTY, control=True)
    argv = ["--model", str(GOLDEN / "a2d-a"), "--prompt", "Hi", "--template-option"]
    for given, words in (
        ("enable_thinkin=true", ("'enable_thinkin'", "it reads enable_thinking")),
        ("enable_thinking", ("'enable_thinking' is not NAME=VALUE",)),
    ):
        assert main([*argv, given]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(lines) == 1 and all(word in lines[0] for word in words)


def test_a_job_goes_on_with_the_options_that_it_was_begun_with():
    info = InputInfo("in.jsonl")
    spec = JobSpec(input="in.jsonl", output="out")
    usual, told = (
        header.describe(leapjax.load(GOLDEN / "a2d-a", template_options=o), spec, info)
        for o in (None, {"enable_thinking": True})
    )
    assert header.differences(usual, usual) == []
    (line,) = header.differences(usual, told)
    assert line == 'template options was {"enable_thinking": false}, now {"enable_thinking": true}'
