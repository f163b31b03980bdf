"""Texts, conversations, chat templates and files of records, drawn from small grammars."""

import json

from tests.fuzz.values import ODD, near

PLAIN = ["Hello", "2 + 3 = 5", "  two  blanks ", "line\nline\n\n", "naïve café", "数字 ３", "😀 ok", "{{ x }}",
         "{% if %}", "a\tb", "I'm here, you're there.", "12345 apples", "e\u0301 a\u0308", "<b>&amp;</b>",
         "x" * 40, "Ünïcödé", "\u00a0nbsp\u2003", "The dog 's toy , is it ? Yes ! do n't", "\r\n",
         "<think>so</think>", "<tool_call>"]  # fmt: skip


def texts(rng, spellings):
    """A few texts; some spell control tokens."""
    out = ["", "Tom has 12 apples."]
    for _ in range(6):
        parts = rng.sample(PLAIN, rng.randrange(1, 4))
        if spellings and rng.random() < 0.5:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(spellings))
        out.append(rng.choice(["", " "]).join(parts))
    return out


def conversations(rng, contents=PLAIN):
    """Lists of messages with plain contents."""
    shapes = ["u", "su", "uau", "suau", "uu", "ua", "s", "uaua", "tu"]
    roles = {"u": "user", "s": "system", "a": "assistant", "t": "tool"}
    out = []
    for shape in ["u", *rng.sample(shapes, 3)]:
        out.append([{"role": roles[r], "content": rng.choice(contents)} for r in shape])
    return out


_EXPRESSIONS = [
    "message['content']", "message.content", "message['content'] | trim", "message.role | upper",
    "message['content'].strip()", "message.content | length", "message['content'][:3]", "bos_token",
    "eos_token", "pad_token", "mask_token", "unk_token", "loop.index", "loop.last", "messages | length",
    "message.content.split('\\n')[-1]", "message.content | replace('a', 'b')", "message | tojson",
    "message.content.upper()", "'a' * 3", "message.get('name', 'x')", "message.missing",
    "messages[0].content", "tools", "documents", "none", "true", "1 / 2", "[1, 2] | join('-')",
    "message.content ~ '!'", "'%s' % message.role", "'%05d' % loop.index", "'{}'.format(message.role)",
    "message.content | safe", "message.content | e", "strftime_now('%Y')[:2]", "undefined_name",
    "undefined_name.attribute", "message['content'].startswith('<')", "message.items() | list | length",
    "messages[-1]['role']", "namespace(a=1).a", "range(3) | list", "message.content.center(50)",
    "message.content | title", "messages | map(attribute='role') | join(',')",
    "message.content | indent", "message.content.split('</think>')[-1].lstrip('\\n')",
    "''.__class__", "message.__class__.__mro__", "messages | tojson(indent=2)",
    "add_generation_prompt", "message.tool_calls", "message.content | list | first", "dict(a=1)",
    "messages | selectattr('role', 'equalto', 'user') | list | length", "1 // 0",
    "message.content | int", "message.content is string", "message.tool_calls is defined", "2 ** 10",
    "'%9s' % 'a'", "message.content.zfill(60)", "message.content.ljust(60)",
    "message.content | wordwrap(5)", "message.content | string | reverse", "message.content | d('x')",
]  # fmt: skip
_STATEMENTS = [
    "{% if loop.first %}A{% endif %}", "{% if message.role == 'user' %}U{% else %}V{% endif %}",
    "{% set x = message.role %}{{ x }}", "{% if loop.index0 > 0 %}{% continue %}{% endif %}",
    "{% if loop.index > 1 %}{% break %}{% endif %}", "{# a comment #}", "{%- if true -%} x {%- endif -%}",
    "{% generation %}{{ message.content }}{% endgeneration %}", "{{- ' y ' -}}", "\n  {% if 1 %}\n  z\n{% endif %}\n",
    "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "{% raw %}{{ x }}{% endraw %}",
    "{% for c in message.content[:2] %}{{ c }}{% endfor %}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1) }}",
    "{% filter upper %}abc{% endfilter %}", "{% call foo() %}{% endcall %}", "{% include 'x' %}",
    "{% import 'x' as y %}", "{% extends 'x' %}", "{% block b %}B{% endblock %}", "{% do 1 %}",
    "{% if tools %}T{% endif %}", "{% if not message.tool_calls %}N{% endif %}", "{% with a=1 %}{{ a }}{% endwith %}",
    "{% if '<think>' in message.content %}K{% endif %}", "{% set message = {'role': 'x'} %}{{ message.role }}",
    "{% trans %}t{% endtrans %}", "{% autoescape true %}{{ '<' }}{% endautoescape %}",
]  # fmt: skip
_BREAKS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{% endif %}",
    "{% for %}",
    "{{ 'a }}",
    "{#",
    "{{ messages",
    "{% if x",
]


def template(rng, real, config):
    """A chat template: a real one with a change, or a new one."""
    names = [v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)]
    names += [t["content"] for t in config.get("added_tokens_decoder", {}).values()]
    if rng.random() < 0.4:
        return _change(rng, real, names)
    body = []
    for _ in range(rng.randrange(1, 6)):
        how = rng.random()
        if how < 0.45:
            body.append("{{ " + rng.choice(_EXPRESSIONS) + " }}")
        elif how < 0.75:
            body.append(rng.choice(_STATEMENTS))
        elif how < 0.95:
            body.append(rng.choice([*names, "\n", " ", "x", "\n\n", "é"]))
        else:
            body.append(rng.choice(_BREAKS))
    loop = "{% for message in messages %}" + "".join(body) + "{% endfor %}"
    end = "{% if add_generation_prompt %}" + rng.choice(names) + "{% endif %}"
    return rng.choice(["", "{{ bos_token }}"]) + loop + rng.choice([end, "", "\n"])


def _change(rng, text, names):
    place = rng.randrange(len(text))
    return rng.choice([
        text[:place] + text[place + rng.randrange(1, 9) :],
        text[:place] + rng.choice(["{{ " + rng.choice(_EXPRESSIONS) + " }}", rng.choice(_STATEMENTS),
                                   rng.choice(_BREAKS), rng.choice(names), "\0", "\u2028"]) + text[place:],
        text.replace("| trim", rng.choice(["", "| upper", "| nope"])),
        text.replace("message['content']", "message." + rng.choice(["content", "text", "content.x"])),
        text.replace("{%", "{%-", rng.randrange(4)),
        text.replace("%}", "-%}", rng.randrange(4)),
        text.replace("add_generation_prompt", rng.choice(["True", "false", "nope"])),
        text.replace(rng.choice(names), rng.choice([*names, "<other>"])),
        text + "\n", "\n" + text, text * 2,
        "{% set messages = messages[1:] %}" + text,
        text.replace("messages", "conversation"),
        "\ufeff" + text,
    ])  # fmt: skip


def records(rng, config):
    """A file of records as Latin-1 text (bytes), and flags for it."""
    mask, vocabulary = config["mask_token_id"], config["vocab_size"]
    good = [
        {"prompt": "Tom has 2 apples."},
        {"id": "a", "prompt_ids": [1, 2, 3]},
        {"id": 7, "messages": [{"role": "user", "content": "Hi"}], "note": {"a": [1]}},
        {"infill_ids": [1, mask, 2, mask, mask, 3]},
        {"prompt": "Hi", "options": {"threshold": 0.5, "seed": 3}},
        {"prompt": "Hi", "stop": ["a", "b"]},
        {"prompt": "Hi", "stop": "zz", "id": "x" * 50},
    ]
    record = json.loads(json.dumps(rng.choice(good)))
    keys = [
        "id",
        "prompt",
        "messages",
        "prompt_ids",
        "infill_ids",
        "options",
        "stop",
        "extra",
        "Prompt",
    ]
    ids = [[], [0], [vocabulary], [-1], [1.0], ["1"], [True], [[1]], [mask], [2**70], list(range(40)),
           "abc", {"0": 1}, [1] * 600]  # fmt: skip
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(keys)
        how = rng.random()
        if how < 0.15 and key in record:
            del record[key]
        elif how < 0.35 and key.endswith("_ids"):
            record[key] = rng.choice(ids)
        elif how < 0.5 and key == "messages":
            record[key] = rng.choice([
                [{"role": r, "content": rng.choice(PLAIN)} for r in
                 rng.choice([["user"], ["User"], ["system"], ["user", "user"], ["robot"], ["assistant"], [""]])],
                [{"role": "user"}], [{"content": "a"}], [{"role": "user", "content": rng.choice(ODD)}],
                [{"role": "user", "content": [{"type": "text", "text": "a"}]}], ["user"], [[]], "hi",
                [{"role": "user", "content": "a", "tool_calls": [{"a": 1}]}],
            ])  # fmt: skip
        elif how < 0.75 and key == "options":
            name = rng.choice(["threshold", "radius", "steps", "temperature", "top_k", "top_p", "seed",
                               "cfg_scale", "early_stop", "gen_length", "policy", "nope", "cache"])  # fmt: skip
            record[key] = rng.choice(
                [{name: rng.choice(ODD)}, {name: 0.5}, {name: 1}, [name], None, name]
            )
        else:
            record[key] = rng.choice([rng.choice(ODD), near(rng, record.get(key))])
    # The fastest way to a big integer of 5,000 digits and the like is a literal.
    line = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        place = rng.randrange(len(line) + 1)
        line = rng.choice([
            line[:place], line[:place] + b"\xff" + line[place:], b"\xef\xbb\xbf" + line,
            line.decode("utf-8", "replace").encode("utf-16"), line + line, b"[" + line + b"]", b"\0" + line,
            line[:-1] + b', "id": 1, "id": 2}', line[:-1] + b', "id": 1e400}', b"{" * 3000, b"null",
            line[:-1] + b', "id": ' + b"1" * 5000 + b"}", line + b",", b"  " + line + b"  \r",
            line[:-1] + b', "extra": NaN}', line[:-1] + b', "extra": -0}', b"", b"\n\n" + line,
        ])  # fmt: skip
    lines = [json.dumps(rng.choice(good)).encode(), line]
    if rng.random() < 0.3:
        rng.shuffle(lines)
    if rng.random() < 0.6:
        lines = [line]
    flags = []
    if rng.random() < 0.3:
        flags += ["--max-errors", rng.choice(["1", "0", "5"])]
    if rng.random() < 0.15:
        flags += ["--num-samples", "2"]
    if rng.random() < 0.2:
        flags += ["--raw"]
    if rng.random() < 0.2:
        flags += ["--details"]
    end = rng.choice(["\n", "\n", "", "\r\n"])
    return {"records": b"\n".join(lines).decode("latin-1") + end, "flags": flags}
