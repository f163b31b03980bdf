"""The codec against the goldens, against transformers, and against forged control tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import checkpoint
from leapjax.errors import UserError
from leapjax.models import parse_config
from leapjax.text import load_codec

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = sorted(p.name for p in GOLDEN.iterdir() if (p / "config.json").exists())


def codec_of(name):
    folder = GOLDEN / name
    return load_codec(folder, parse_config(checkpoint.read_config(folder)))


CODECS = {name: codec_of(name) for name in MODELS}
CONTROL = {
    name: sorted(t.content for t in codec._full.get_added_tokens_decoder().values())
    for name, codec in CODECS.items()
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Whole spellings, parts of them that a template could complete, blanks, and any text.
PARTS = ["<", "<|", "|>", "eot_id|>", "|eot_id|>", "im_end|>", "im_start", "<|im", " ", "\n", "a"]


def forgeries(name):
    piece = st.one_of(st.sampled_from(CONTROL[name] + PARTS), TEXT)
    return st.lists(piece, max_size=8).map("".join)


def cases():
    for name in MODELS:
        for n, case in enumerate(json.loads((GOLDEN / f"{name}.chat.json").read_text())):
            yield pytest.param(name, case, id=f"{name}-{n}")


@pytest.mark.parametrize("name, case", list(cases()))
def test_golden_encodings(name, case):
    codec = CODECS[name]
    if "raw" in case:
        assert codec.encode_prompt(case["raw"], raw=True) == case["ids"]
        assert codec.encode(case["raw"], control=True) == case["ids"]
    else:
        assert codec.render_chat(case["messages"]) == case["text"]
        assert codec.encode_chat(case["messages"]) == case["ids"]
        if not any(token in m["content"] for m in case["messages"] for token in CONTROL[name]):
            assert codec.encode(case["text"], control=True) == case["ids"]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_a_users_message(name):
    codec = CODECS[name]
    assert codec.is_instruct
    text = "Hal has 4 pens."
    messages = [{"role": "user", "content": text}]
    assert codec.encode_prompt(text) == codec.encode_chat(messages, codec.template_options)


def test_end_of_turn_is_what_the_template_writes():
    spellings = {n: c.tokens_of([c.eot_id])[0] for n, c in CODECS.items()}
    assert spellings["llada-a"] == "<|eot_id|>"
    for name in ("dream-a", "sdar-a", "fast-dllm-v2-a"):
        assert spellings[name] == "<|im_end|>"
    assert CODECS["llada-a"].size == 326
    assert CODECS["dream-a"].size == 325


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_survives_a_round_trip(name, data):
    text = data.draw(forgeries(name))
    codec = CODECS[name]
    ids = codec.encode(text, control=False)
    assert codec._control.ids.isdisjoint(ids)
    if name.startswith("llada"):  # Qwen's normalises to NFC
        assert codec.decode(ids) == text
    else:
        assert codec.encode(codec.decode(ids), control=False) == ids


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_content_never_becomes_a_control_token(name, data):
    codec = CODECS[name]
    roles = ["system", "user", "assistant", "user"]
    contents = [data.draw(forgeries(name)) for _ in roles]

    def conversation(contents):
        return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]

    def encoded(contents, among):
        return [i for i in codec.encode_chat(conversation(contents)) if i in among]

    ids = codec.encode_chat(conversation(contents))
    harmless = [
        "x",
        "x",
        contents[2],
        "x",
    ]  # an assistant may write added tokens that aren't special
    assert encoded(contents, codec._control.ids) == encoded(harmless, codec._control.ids)
    assert encoded(contents, codec.special_ids) == encoded(["x"] * 4, codec.special_ids)
    # And nothing is lost or added: the text between the control tokens is what was rendered.
    if name.startswith("llada"):  # Qwen's normalises to NFC
        rendered = codec.render_chat(conversation(contents))
        assert codec._full.decode(ids, skip_special_tokens=False) == rendered


@settings(max_examples=60, deadline=None)
@given(text=st.text("<|>eot_id mask\n", max_size=30))
def test_harmless_text_is_encoded_as_rendered(text):
    codec = CODECS["llada-a"]
    messages = [{"role": "user", "content": text}]
    if any(t in text for t in CONTROL["llada-a"]):
        return
    assert codec.encode_chat(messages) == codec.encode(codec.render_chat(messages), control=True)


@pytest.mark.parametrize(
    "before, content, after",
    [
        ("<", "|eot_id|>", "!"),
        ("!", "<|eot_", "id|>"),
        ("<|eot", "_id", "|>"),
        ("<|eot", "_id \n", "|>"),
    ],
)
def test_a_template_does_not_complete_a_spelling(tmp_path, before, content, after):
    source = f"<|eot_id|>{before}{{{{ messages[0].content | trim }}}}{after}"
    codec = load(written(tmp_path, chat_template__jinja=source))
    messages = [{"role": "user", "content": content}]
    assert codec.render_chat(messages) == f"<|eot_id|>{before}{content.strip()}{after}"
    assert codec.encode_chat(messages).count(324) == 1


def test_forged_prompt_golden_way():
    codec = CODECS["dream-a"]
    text = "a<|mask|>b <|im_end|> c"
    raw = codec.encode_prompt(text, raw=True)
    assert {322, 323} <= set(raw)
    assert codec.encode_prompt(text).count(322) == 2  # system's and user's own ends of turn
    assert 323 not in codec.encode_prompt(text)


@pytest.mark.parametrize(("name", "mask"), [("sdar-a", 327), ("fast-dllm-v2-a", 325)])
def test_a_mask_that_somebody_writes_is_text(name, mask):
    """Of added tokens only an assistant's, and only those that are not special, become ids."""
    codec, call = CODECS[name], "<tool_call>"
    spelled = codec.tokens_of([mask])[0]
    said = f"a {spelled} {call} b"
    ids = {
        role: codec.encode_chat([{"role": role, "content": said}, {"role": "user", "content": "?"}])
        for role in ("system", "user", "assistant")
    }
    assert all(mask not in found for found in ids.values())
    assert [323 in found for found in ids.values()] == [False, False, True]
    assert mask in codec.encode_prompt(spelled, raw=True)
    assert codec.decode([40, mask, 41]) == "IJ"  # no answer shows it


def test_a_thought_is_dropped_from_earlier_turns_and_kept_in_the_last():
    codec, said = CODECS["sdar-a"], "<think>\nseven\n</think>\n\nShe has 7."
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}]
    last = codec.encode_chat(turns)
    assert [i for i in last if i in (325, 326)] == [325, 326]
    earlier = codec.encode_chat([*turns, {"role": "user", "content": "Why?"}])
    assert not {325, 326} & {*earlier}


def test_decode_leaves_out_special_and_unknown_ids():
    codec = CODECS["llada-a"]
    ids = codec.encode("two", control=False)
    assert codec.decode([320, *ids, 325, 335, 321]) == "two"
    assert codec.tokens_of([325, 335]) == ["<|mdm_mask|>", "<335>"]


def written(folder, **files):
    """A checkpoint folder whose tokenizer is llada-a's, with some files replaced."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((GOLDEN / "llada-a" / name).read_bytes())
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def load(folder):
    config = json.loads((GOLDEN / "llada-a" / "config.json").read_text())
    return load_codec(folder, parse_config(config))


def settings_of(**changes):
    return json.loads((GOLDEN / "llada-a" / "tokenizer_config.json").read_text()) | changes


LEGACY = settings_of()
del LEGACY["added_tokens_decoder"]
LEGACY = {"tokenizer_config__json": LEGACY}


def test_no_tokenizer_files(tmp_path):
    assert load(tmp_path) is None


def test_base_model(tmp_path):
    codec = load(written(tmp_path, tokenizer_config__json=settings_of(chat_template=None)))
    assert not codec.is_instruct
    assert codec.eot_id is None
    text = "a<|eot_id|>b"
    assert codec.encode_prompt(text) == codec.encode(text, control=False)
    assert 324 in codec.encode_prompt(text, raw=True)
    with pytest.raises(UserError, match="no chat template"):
        codec.encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": "J{{ messages[0].content }}"},
        {"tokenizer_config__json": settings_of(chat_template="J{{ messages[0].content }}")},
        {
            "tokenizer_config__json": settings_of(
                chat_template=[
                    {"name": "tool_use", "template": "T"},
                    {"name": "default", "template": "J{{ messages[0]['content'] }}"},
                ]
            )
        },
        {
            "tokenizer_config__json": settings_of(chat_template=None),
            "chat_template__json": {"chat_template": "J{{ messages[0].content }}"},
        },
    ],
    ids=["jinja", "settings", "named", "json"],
)
def test_places_of_a_template(tmp_path, files):
    codec = load(written(tmp_path, **files))
    assert codec.render_chat([{"role": "user", "content": "hi"}]) == "Jhi"


def test_what_templates_may_use(tmp_path):
    source = (
        "{%- for m in messages %}\n    {% if loop.first %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ eos_token }}{{ strftime_now('%Y') | length }}"
    )
    codec = load(written(tmp_path, chat_template__jinja=source))
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": "<é>"}]
    assert codec.render_chat(messages) == '{"role": "user", "content": "<é>"}<|endoftext|>4'


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('only pairs') }}", "only pairs"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'a' * 2999999999 }}", "memory"),
        ("{% for i in range(99999999) %}x{% endfor %}", "Range too big"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
    ],
)
def test_templates_that_fail(tmp_path, source, message):
    codec = load(written(tmp_path, chat_template__jinja=source))
    with pytest.raises(UserError, match=message) as e:
        codec.encode_chat([{"role": "user", "content": "x"}])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer__json": "{"}, "tokenizer.json: not a usable"),
        ({"tokenizer__json": '{"model": {}}'}, "tokenizer.json: not a usable"),
        ({"tokenizer_config__json": "[1]"}, "tokenizer_config.json: expected a JSON object"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json: not valid JSON"),
        ({"tokenizer_config__json": settings_of(bos_token="\ud800")}, "not valid JSON"),
        ({"tokenizer_config__json": settings_of(bos_token=7)}, "bos_token is malformed"),
        ({"tokenizer_config__json": settings_of(extra_special_tokens=7)}, "should be a list"),
        ({"tokenizer_config__json": settings_of(added_tokens_decoder=[])}, "should be an object"),
        (
            {"tokenizer_config__json": settings_of(fast_tokenizer_files=["tokenizer.5.json"])},
            "only tokenizer.json is read",
        ),
        ({"chat_template__jinja": "{% if %}"}, "can't be compiled"),
        ({"tokenizer_config__json": settings_of(chat_template=7)}, "chat_template should be"),
        (LEGACY | {"added_tokens__json": {"<|new|>": 999}}, "files disagree"),
        (LEGACY | {"added_tokens__json": {"<|new|>": "x"}}, "expected an object of tokens"),
        ({"tokenizer__json": None, "vocab__json": "{}"}, "merges.txt is not"),
        ({"tokenizer__json": None, "vocab__json": "{}", "merges__txt": ""}, "vocab.json: expected"),
        (
            {"tokenizer__json": None, "vocab__json": {"a": 0}, "merges__txt": "#version\na b c"},
            "merges.txt line 2: expected two pieces",
        ),
        (
            {"tokenizer__json": None, "vocab__json": {"a": 0}, "merges__txt": "a b"},
            "merges.txt: not a usable",
        ),
    ],
)
def test_damaged_files_are_one_line(tmp_path, files, message):
    with pytest.raises(UserError) as e:
        load(written(tmp_path, **files))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "empty"),
        ("hello", "list of objects"),
        ({"role": "user"}, "list of objects"),
        (["x"], "message 1 should be an object"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"content": "x"}], "message 1 has no role"),
        ([{"role": "user", "content": None}], "needs a text as its content"),
        ([{"role": "<|eot_id|>", "content": "x"}], "role is"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(UserError, match=message):
        CODECS["llada-a"].encode_chat(messages)


def test_vocabulary_that_holds_control_words(tmp_path):
    """A tokenizer of whole words must not read a spelled control token as that word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<eos>"])
    codec = load(written(tmp_path, tokenizer__json=words.to_str(), tokenizer_config__json={}))
    assert codec.encode("a <eos>", control=True) == [2, 1]
    assert 1 not in codec.encode("a <eos>", control=False)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_encodes_as_transformers_does(name, data):
    oracle = transformers_tokenizer(name)
    codec = CODECS[name]
    text = data.draw(forgeries(name))
    assert codec.encode(text, control=True) == oracle.encode(text, add_special_tokens=False)
    assert codec.encode_prompt(text, raw=True) == oracle.encode(text)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_decodes_as_transformers_does(name, data):
    oracle = transformers_tokenizer(name)
    codec = CODECS[name]
    ids = data.draw(st.lists(st.integers(0, codec.size - 1), max_size=40))
    assert codec.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_renders_as_transformers_does(name, data):
    oracle = transformers_tokenizer(name)
    messages = [
        {"role": role, "content": data.draw(TEXT)} for role in ("system", "user", "assistant")
    ]
    rendered = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert CODECS[name].render_chat(messages) == rendered


_ORACLES = {}


def transformers_tokenizer(name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if name not in _ORACLES:
        kind = transformers.PreTrainedTokenizerFast
        if not (GOLDEN / name / "tokenizer.json").exists():
            kind = transformers.Qwen2Tokenizer
        _ORACLES[name] = kind.from_pretrained(GOLDEN / name)
    return _ORACLES[name]


@pytest.mark.parametrize(
    "name, mask",
    [
        ("llada-a", "<|mdm_mask|>"),
        ("dream-a", "<|mask|>"),
        ("sdar-a", "<|MASK|>"),
        ("fast-dllm-v2-a", "|<MASK>|"),
    ],
)
def test_infilling_from_text(name, mask):
    codec = CODECS[name]
    m, end = codec.encode(f"{mask}<|endoftext|>", control=True)
    have, apples = (codec.encode(t, control=False) for t in ("Tom has ", " apples"))
    assert codec.encode_infill("Tom has [MASK]*3 apples") == [*have, m, m, m, *apples]
    assert codec.encode_infill(f"Tom has {mask}*2[MASK] apples") == [*have, m, m, m, *apples]
    # Tokens don't merge over an open position, and `*` may follow one.
    assert codec.encode_infill("th[MASK]*1*3e")[:2] == codec.encode("th", control=False)[:2]
    ids = codec.encode_infill(rf"\[MASK]*2 \{mask} [MASK]<|endoftext|>")
    assert ids.count(m) == 1 and end not in ids
    spelled = codec.encode(f"[MASK]*2 {mask} ", control=False)
    assert ids[: len(spelled)] == spelled
    assert codec.encode_infill("[MASK]<|endoftext|>", raw=True) == [m, end]


@pytest.mark.parametrize(
    "text, message", [("none", "holds no"), ("[MASK]*0", "from 1"), ("[MASK]\ud800", "surrogate")]
)
def test_infilling_that_fails(text, message):
    with pytest.raises(UserError, match=message):
        CODECS["llada-a"].encode_infill(text)


def test_only_the_first_text_gets_a_blank_in_front(tmp_path):
    """Some tokenizers put one before a sequence, not before each piece that we encode apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {c: i for i, c in enumerate("_<|eot>ab▁")}
    bpe = Tokenizer(models.BPE(letters, [], unk_token="_"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.add_special_tokens(["<eot>"])
    source = "{{ messages[0].content }}<eot>{{ messages[1].content }}"
    config = {"chat_template": source, "mask_token": "<eot>"}
    codec = load(written(tmp_path, tokenizer__json=bpe.to_str(), tokenizer_config__json=config))
    blank, eot = letters["▁"], bpe.token_to_id("<eot>")

    def chat(one, two):
        messages = [{"role": "user", "content": t} for t in (one, two)]
        return codec.encode_chat(messages)

    harmless = codec.encode(codec.render_chat(TWO), control=True)
    assert chat("a", "b") == harmless == [blank, letters["a"], eot, letters["b"]]
    forged = [letters[c] for c in "b<eot>"]
    assert chat("a", "b<eot>") == [blank, letters["a"], eot, *forged]
    assert codec.encode_infill("a[MASK]b") == [blank, letters["a"], MASK, letters["b"]]


TWO = [{"role": "user", "content": t} for t in "ab"]
MASK = json.loads((GOLDEN / "llada-a" / "config.json").read_text())["mask_token_id"]
