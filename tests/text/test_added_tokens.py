"""Special and added tokens in whatever files say them: as transformers reads them, or refused."""

import copy
import json
import random
from pathlib import Path

import pytest

from leapjax.errors import UserError
from leapjax.models import parse_config
from leapjax.text import load_codec

GOLDEN = Path(__file__).parents[1] / "golden"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "mask_token", "own_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def files_of(name):
    """A golden's tokenizer files, parsed where they are JSON."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    names += ("added_tokens.json", "vocab.json", "merges.txt", "config.json")
    found = {n: (GOLDEN / name / n) for n in names}
    texts = {n: p.read_text(encoding="utf-8") for n, p in found.items() if p.is_file()}
    return {n: json.loads(t) if n.endswith("json") else t for n, t in texts.items()}


def codec_of(folder, files):
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return load_codec(folder, parse_config(files["config.json"]))


def test_a_token_that_no_file_names_is_text(tmp_path):
    files = files_of("dream-a")
    del files["tokenizer_config.json"]["added_tokens_decoder"]
    files["added_tokens.json"]["<tool_call>"] = 325
    codec = codec_of(tmp_path / "legacy", files)
    assert codec.decode([40, 325, 41]) == "I<tool_call>J"
    assert codec.decode([40, 322, 41]) == "IJ"
    assert 325 not in codec.special_ids


@pytest.mark.parametrize("from_settings, from_file", [(True, False), (False, True), (False, False)])
def test_flags_of_the_settings_and_of_the_tokenizer(tmp_path, from_settings, from_file):
    files = files_of("llada-a")
    files["tokenizer_config.json"]["added_tokens_decoder"]["324"]["special"] = from_settings
    next(t for t in files["tokenizer.json"]["added_tokens"] if t["id"] == 324)["special"] = (
        from_file
    )
    codec = codec_of(tmp_path / "flags", files)
    # A flag that was once set stays set in the library, as transformers' decode shows.
    special = from_settings or from_file
    assert codec.decode([40, 324, 41]) == ("IJ" if special else "I<|eot_id|>J")


@pytest.mark.parametrize("name", ["llada-a", "dream-a"])
def test_two_tokens_with_one_id_are_refused(tmp_path, name):
    files = files_of(name)
    vocab = (
        files["vocab.json"] if "vocab.json" in files else files["tokenizer.json"]["model"]["vocab"]
    )
    vocab["!"] = vocab['"']  # which of the two an id means would be chance
    with pytest.raises(UserError, match="two tokens have the same id"):
        codec_of(tmp_path / "twins", files)


def test_a_vocabulary_of_another_class_is_refused(tmp_path):
    files = files_of("dream-a")
    files["tokenizer_config.json"]["tokenizer_class"] = "GPT2Tokenizer"
    with pytest.raises(UserError, match="GPT2Tokenizer, .* the folder needs its tokenizer.json"):
        codec_of(tmp_path / "gpt2", files)


def test_a_lone_surrogate_is_refused(tmp_path):
    files = files_of("llada-a")
    files["tokenizer_config.json"]["added_tokens_decoder"]["324"]["content"] = "\ud800"
    with pytest.raises(UserError, match="surrogates not allowed"):
        codec_of(tmp_path / "surrogate", files)


def mutated(files, rng):
    """Another folder's files that say something else of a few tokens."""
    files = copy.deepcopy(files)
    config = files["tokenizer_config.json"]
    added = {int(i): t for i, t in config["added_tokens_decoder"].items()}
    contents = [t["content"] for t in added.values()] + ["<new>", "x", "the"]

    def flags():
        return {f: rng.random() < 0.5 for f in FLAGS}

    def spelling():
        content = rng.choice(contents)
        return content if rng.random() < 0.7 else {"content": content, **flags()}

    for _ in range(rng.randint(1, 4)):
        change = rng.randrange(8)
        if change == 0:
            config.pop("added_tokens_decoder", None)
        elif change == 1 and "added_tokens_decoder" in config:
            token = config["added_tokens_decoder"][str(rng.choice(list(added)))]
            token[rng.choice(FLAGS)] = rng.random() < 0.5
        elif change == 2 and "tokenizer.json" in files:
            rng.choice(files["tokenizer.json"]["added_tokens"])[rng.choice(FLAGS)] = True
        elif change == 3:
            kind = rng.choice([config, files["special_tokens_map.json"]])
            kind[rng.choice(NAMES)] = rng.choice([spelling(), None])
        elif change == 4:
            kind = rng.choice([config, files["special_tokens_map.json"]])
            kind[rng.choice(LISTS)] = [spelling() for _ in range(rng.randint(0, 2))]
        elif change == 5:
            config["extra_special_tokens"] = {"image_token": rng.choice(contents)}
        elif change == 6:
            new = max(added) + 1
            files.setdefault("added_tokens.json", {t["content"]: i for i, t in added.items()})
            files["added_tokens.json"][rng.choice(["<new>", "<think>"])] = new
        else:
            config[rng.choice(["add_bos_token", "split_special_tokens"])] = True
    return files


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llada-a", "dream-a"])
def test_as_transformers_reads_them(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = transformers.PreTrainedTokenizerFast
    if name == "dream-a":
        kind = transformers.Qwen2Tokenizer
    rng, compared = random.Random(0), 0
    original = files_of(name)
    for seed in range(150):
        folder = tmp_path / str(seed)
        try:
            codec = codec_of(folder, mutated(original, rng))
        except UserError as e:
            assert "\n" not in str(e)
            continue
        try:
            oracle = kind.from_pretrained(folder)
        except Exception:
            continue  # it refuses more than we do
        ours = {codec.bos_id, codec._template and codec.eot_id} - {None}
        assert all(isinstance(i, int) for i in ours)
        model = {*codec.special_ids} - {*oracle.all_special_ids}
        spelled = list(oracle.added_tokens_encoder)
        for _ in range(4):
            parts = rng.choices([*spelled, "the", " ", "x", "\n", "<new>"], k=8)
            text = "".join(parts)
            assert codec.encode(text, control=True) == oracle.encode(
                text, add_special_tokens=False
            ), seed
            assert codec.encode_prompt(text, raw=True) == oracle.encode(text), seed
            ids = [i for i in rng.choices(range(len(oracle)), k=20) if i not in model]
            ids += [i for i in oracle.added_tokens_decoder if i not in model]
            assert codec.decode(ids) == oracle.decode(ids, skip_special_tokens=True), seed
        messages = [{"role": "user", "content": "the x"}]
        if not isinstance(oracle.chat_template, dict):
            text = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert codec.render_chat(messages) == text
        compared += 1
    assert compared > 75
