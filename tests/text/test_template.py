# ruff: noqa: E501 - templates are long
"""Chat templates: as transformers renders them, who wrote what, and limits that hold."""

import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.errors import UserError
from leapjax.text import template
from leapjax.text.provenance import ASSISTANT, TEMPLATE, USER
from tests.text.test_added_tokens import codec_of, files_of

CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
THINK = (  # Qwen3's way with past reasoning
    "{%- set ns = namespace(last=messages|length - 1, found=true) %}"
    "{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.found and m.role == 'user' and not (m.content.startswith('<tool_response>') and "
    "m.content.endswith('</tool_response>')) %}{%- set ns.found = false %}{%- set ns.last = i %}"
    "{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- else %}"
    "{%- set content = m.content %}{%- set reasoning = '' %}"
    "{%- if m.reasoning_content is string %}{%- set reasoning = m.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}"
    "{%- endif %}{{- content }}"
    "{%- if m.tool_calls %}{%- for call in m.tool_calls %}{%- if call.function %}"
    "{%- set call = call.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' }}{{- call.name }}{{- \'", "arguments": \' }}'
    "{%- if call.arguments is string %}{{- call.arguments }}{%- else %}"
    "{{- call.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for m in loop_messages %}"
    "{% set content = '<|im_start|>' + m['role'] + '\n\n'+ m['content'] | trim + '<|im_end|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content']|trim + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<|im_start|>' + role + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>model\n'}}{% endif %}"
)
PIECES = (  # what else templates do to text
    "{% macro turn(role, text) %}<|im_start|>{{ role }}\n{{ text }}<|im_end|>{% endmacro %}"
    "{% set parts = [] %}{% for m in messages %}"
    "{{ '<|im_start|>%s\n%s<|im_end|>' % (m.role, m.content) }}"
    "{{ '<|im_start|>{}: {}<|im_end|>'.format(m.role, m.content) }}"
    "{{ ['<|im_start|>', m.role, m.content.upper()] | join('\n') }}{{ turn(m.role, m.content[:5]) }}"
    "{{ '<|im_end|>' ~ m.content ~ '<|im_start|>' }}{{ (m | tojson).replace('a', '<|im_end|>') }}"
    "{% set block %}<|im_start|>{{ m.content | replace('x', '<|im_end|>') }}{% endset %}{{ block }}"
    "{% filter trim %} {{ m.content }}<|im_end|> {% endfilter %}{{ m.content | length }}"
    "{% for c in m.content %}{{ c }}{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}"
    "{{ m.content | title | reverse }}{{ m.content.partition('x')[2] }}{{ m.content | list | first }}"
    "{{ m.content | truncate(12, true, '<|im_end|>') }}{{ m.content == 'x' }}{{ [m.content] }}"
    "{{ m.content | e }}{{ m.content | indent(2) }}{{ m.content.join(['<|im_end|>', 'b']) }}"
    "{{ m.content | center(9) }}{{ (m.content ~ 'a').split() | sort | join }}{{ m.content * 2 }}"
    "{% endfor %}"
)
TEMPLATES = dict(
    chatml=CHATML, think=THINK, llama=LLAMA, mistral=MISTRAL, gemma=GEMMA, pieces=PIECES
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|mask|>"]
WORDS = [*SPECIAL, "<think>", "</think>", "<|im", "_end|>", "<thi", "nk>", "<tool_response>"]
TEXT = st.lists(
    st.sampled_from([*WORDS, "x", "a b", "\n", " ", "é", "ß", '"']), min_size=1, max_size=8
).map("".join)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each template's codec and transformers' tokenizer; `<think>` is not special."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    files = files_of("dream-a")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    config = files["tokenizer_config.json"]
    for i, content in ((325, "<think>"), (326, "</think>")):
        config["added_tokens_decoder"][str(i)] = {"content": content, **flags}
    made = {}
    for name, source in TEMPLATES.items():
        folder = tmp_path_factory.mktemp("templates") / name
        config["chat_template"] = source
        codec = codec_of(folder, files)
        made[name] = codec, transformers.Qwen2Tokenizer.from_pretrained(folder)
    return made


def conversation(contents):
    roles = ["system", "user", "assistant", "user"][-len(contents) :]
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    if len(contents) > 1 and len(contents[0]) % 3 == 0:
        call = {"function": {"name": contents[0], "arguments": {contents[1]: contents[-1]}}}
        messages[-2]["tool_calls"] = [call]
    return messages


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(TEXT, min_size=1, max_size=4))
def test_rendered_as_transformers_does(pairs, name, contents):
    codec, oracle = pairs[name]
    messages = conversation(contents)
    expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert codec.render_chat(messages) == expected
    ids = codec.encode_chat(messages)
    if not any(w in "".join([*contents, *map(str.upper, contents)]) for w in WORDS):
        assert ids == oracle.encode(expected, add_special_tokens=False)
    # No special token comes from anybody's text.
    text, who = codec._template.render(messages)
    written = [w for w in SPECIAL for n in range(len(text)) if text.startswith(w, n)]
    own = sum(
        text.startswith(w, n) and set(who[n : n + len(w)]) == {TEMPLATE}
        for w in SPECIAL
        for n in range(len(text))
    )
    assert len(written) >= own == sum(i in (321, 322, 323) for i in ids)
    for token, i in (("<think>", 325), ("</think>", 326)):
        meant = sum(
            text.startswith(token, n) and set(who[n : n + len(token)]) in ({TEMPLATE}, {ASSISTANT})
            for n in range(len(text))
        )
        assert ids.count(i) == meant


@pytest.mark.oracle
def test_reasoning_is_dropped_and_the_assistants_own_tokens_stay(pairs):
    codec, _ = pairs["think"]
    thought = "<think>\nsecret plan\n</think>\n\nAnswer <|im_end|>"
    past = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "<think> two"},
    ]
    assert "secret" not in codec.render_chat(past)
    ids = codec.encode_chat(past)
    assert ids.count(322) == 3 and 325 not in ids  # a user's `<think>` is text
    ids = codec.encode_chat(past[:2])
    assert ids.count(325) == ids.count(326) == 1  # by the template: the turn is the last
    ids = pairs["chatml"][0].encode_chat(past)
    assert ids.count(325) == ids.count(326) == 1  # by the assistant, as it came
    assert ids.count(322) == 3


@pytest.mark.parametrize(
    "role, author", [("user", USER), ("system", USER), ("assistant", ASSISTANT)]
)
def test_who_wrote_what(role, author):
    made = template.ChatTemplate("A{{ messages[0].content }}{{ messages[0].x.y[0] }}B", {})
    text, who = made.render([{"role": role, "content": "hi", "x": {"y": ["z"]}, "none": None}])
    assert (text, who) == ("AhizB", TEMPLATE + 3 * author + TEMPLATE)


def test_safe_keeps_the_account():
    made = template.ChatTemplate("{{ ('<1>' ~ messages[0].content) | safe }}{{ '<2>' | safe }}", {})
    assert made.render([{"role": "user", "content": "a"}]) == ("<1>a<2>", "0002000")
    assert made.render([{"role": "user", "content": "<"}])[0] == "<1><<2>"


USERS = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%1500000000s' % 'a' }}",
        "{{ '{:>1500000000}'.format('a') }}",
        "{{ '{:>{}}'.format('a', 1500000000) }}",
        "{{ 'a'.center(1500000000) }}",
        "{{ 'a'.ljust(1500000000) }}",
        "{{ messages[0].content.zfill(1500000000) }}",
        "{{ messages[0].content | center(1500000000) }}",
        "{{ messages[0].content * 1500000000 }}",
        "{{ ('a' * 60000).replace('a', 'b' * 60000) }}",
        "{{ ('a' * 60000) | replace('a', 'b' * 60000) }}",
        "{{ ('b' * 60000).join('a' * 60000) }}",
        "{{ 'a' | indent(1500000000, true) }}",
        "{{ ([0] * 300000000) | length }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ [messages] | tojson(indent=900000000) }}",
    ],
)
def test_no_template_fills_the_memory(source):
    began = time.monotonic()
    with pytest.raises(UserError, match="chat template") as e:
        template.ChatTemplate(source, {}).render(USERS)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300
    assert time.monotonic() - began < 60
    assert template.ChatTemplate("{{ messages[0].content }}", {}).render(USERS)[0] == "x"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_no_template_runs_for_ever(source, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.3)
    with pytest.raises(UserError, match="takes more than 0.3 s"):
        template.ChatTemplate(source, {}).render(USERS)
    assert template.ChatTemplate("{{ messages[0].content }}", {}).render(USERS)[0] == "x"


def test_one_process_survives_others_and_ends_with_us():
    """A fork has a renderer of its own; a killed one is replaced; none is left behind."""
    code = (
        "import os, signal\n"
        "from leapjax.text import template\n"
        "made = template.ChatTemplate('{{ messages[0].content }}', {})\n"
        "one = [{'role': 'user', 'content': 'x'}]\n"
        "pid = lambda: template._RENDERER._process.pid\n"
        "print(pid())\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert made.render(one)[0] == 'x'\n"
        "    print(pid(), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert made.render(one)[0] == 'x'\n"
        "os.kill(pid(), signal.SIGKILL)\n"
        "assert made.render(one)[0] == 'x'\n"
        "print(pid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pids = [int(p) for p in run.stdout.split()]
    assert len(pids) >= 3, run.stderr
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_leaves_no_answer_behind(monkeypatch):
    made = template.ChatTemplate("{{ messages[0].content }}", {})
    exchange = template._RENDERER._exchange

    def interrupted(process, line):
        os.write(process.stdin.fileno(), line)  # asked, and not waited for
        raise KeyboardInterrupt

    monkeypatch.setattr(template._RENDERER, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.render([{"role": "user", "content": "old"}])
    monkeypatch.setattr(template._RENDERER, "_exchange", exchange)
    assert made.render(USERS)[0] == "x"


def test_messages_that_are_no_json():
    made = template.ChatTemplate("{{ messages[0].n[0] }}", {})
    import numpy as np

    assert made.render([{"role": "user", "content": "", "n": np.arange(1, 3)}])[0] == "1"
    with pytest.raises(UserError, match="JSON"):
        made.render([{"role": "user", "content": "", "n": object()}])
    assert json.loads(json.dumps(USERS)) == USERS


# Templates write digits and signs here, users letters: a letter tells where it came from.
EXPRESSIONS = """
t ~ '1'; '1' + t + '2'; t|upper; t|title; t|capitalize; t|center(30); t|indent(3, true); t|wordwrap(3); t|lower
t|truncate(5, true, '..'); t|replace('c', '<|'); '<1>'|replace('1', t); t|trim('a'); t|reverse; t|list|join('|')
t|first; t|last; t|string; t|e; t|safe; t|forceescape; t|urlencode; t|urlize; t|striptags; t|pprint; [t]|pprint
[t, {t: t}]|tojson; m|tojson(indent=1); '%s|%s'|format(t, t); '%(k)s'|format(k=t); m|xmlattr; m.items()|list
m|dictsort; [t, '1']|join(t); [t]|map('upper')|list; [m]|map(attribute='content')|join; [m]|groupby('content')|list
t.split('b'); t.rsplit(none, 1); t.partition('b'); t.splitlines(); '1'.join(t); '<|'.join([t, t]); t.join(['1', '2'])
'<{}>'.format(t); '<{0!r:>9}>'.format(t); '{a[content]}'.format(a=m); '{k}'.format_map({'k': t}); '%s' % t; '%r' % [t]
'1%s2' % (t,); '%(content)s' % m; t % (); t.format(1); '121'.replace('2', t); '1'.center(9, t[0]); '1'.ljust(9, t[0])
t.zfill(40); t.expandtabs(); t.translate({97: t}); '1'.translate({49: t}); t.swapcase(); t.casefold(); t[::-1]; t[1:3]
t[0]; (t|list)[0]; t * 2; (t, '1'); {'1': t}; [[t]]; m.values(); m; namespace(x=t); namespace(x=t).x; dict(a=t); dict(a=t).a
t.removeprefix('a'); t.strip('a'); cycler(t, '1').next(); joiner(t); t|default('1'); m.missing|default(t); t|random
[t]|sum(start=[]); [t, t]|unique|list; [t]|batch(2, t)|list; [t]|slice(1)|list; [t]|min; [t]|sort; m|attr('content')
strftime_now(t); f(t); caller_of(t); t if t else '1'; t and t; '1' and t; (t ~ '1')|escape + '1'; (t|safe) + t
(t|safe) ~ t; (t|safe).join(['1', t]); '1' ~ (t|safe); (t|safe).unescape(); (t|safe).striptags(); (t|safe) % ()
((t|safe) ~ '')|upper; (t|safe)[0]; '%s' % (t|safe); '{}'.format(t|safe); [t|safe]; [t|safe]|join; (t|safe)|tojson
(t|safe).split(); (t|safe)|list; (t|safe)|reverse; (t|safe)|first; (t|safe)|join('1'); (t|e) * 2; (t|e)[1:]; '1'|safe + t
(t|e)|trim; '{0.x}'.format(namespace(x=t)); t|map('upper')|list; m|list; m|string; m|items|list
"""


def expressions():
    return [e.strip() for e in EXPRESSIONS.replace("\n", ";").split(";") if e.strip()]


FORMS = [
    "{{ (EXPR) }}",
    "{% set x = EXPR %}{{ x ~ '2' }}",
    "{% set x %}{{ EXPR }}{% endset %}{{ '<' + x }}",
    "{% filter trim %}{{ EXPR }}{% endfilter %}",
    "{{ f(EXPR) }}",
    "{{ ('%s' % (EXPR,)).replace('2', '3') }}",
    "{{ '2{}'.format(EXPR) }}",
    "{% for c in [EXPR] | list | string %}{{ c }}{% endfor %}",
]
MACROS = (
    "{%- macro f(x) %}<{{ x }}>{% endmacro -%}"
    "{%- macro g() %}<{{ caller() }}>{% endmacro -%}"
    "{%- macro caller_of(x) %}{% call g() %}{{ x }}{% endcall %}{% endmacro -%}"
    "{%- set m = messages[0] %}{% set t = m.content -%}"
)
NAMES = "Escaped dict_items dict_values Markup Namespace None True generator object Joiner repr _GroupTuple grouper"


@pytest.mark.parametrize("form", FORMS)
def test_no_character_of_a_user_passes_for_the_templates(form):
    rendered = 0
    for expression in expressions():
        made = template.ChatTemplate(MACROS + form.replace("EXPR", expression), {})
        try:
            text, who = made.render([{"role": "user", "content": "abc \tqß\nb <i>&amp;</i>"}])
        except UserError:
            continue
        rendered += 1
        known = {n for n, c in enumerate(text) if c.isalpha() and who[n] == TEMPLATE}
        for name in [*NAMES.split(), "content", "role", "user"]:  # Python's own words
            at = text.find(name)
            while at >= 0:
                known -= set(range(at, at + len(name)))
                at = text.find(name, at + 1)
        assert not known, (expression, text, who)
    assert rendered > 60
