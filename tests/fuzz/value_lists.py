"""Edits of tokenizer files, weights and their indexes, and odd sets of options."""

from tests.fuzz.values import ODD, json_damage, near

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "vocab.json", "merges.txt")  # fmt: skip

NAMES = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
_NORMALIZERS = [
    None, {"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "_"}, {"type": "StripAccents"},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]},
    {"type": "Prepend", "prepend": "x"}, {"type": "Nope"}, {"type": "Strip", "strip_left": True,
    "strip_right": False},
]  # fmt: skip
_PRE = [
    None, {"type": "Whitespace"}, {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
    {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Removed", "invert": False},
    {"type": "Sequence", "pretokenizers": []}, {"type": "BertPreTokenizer"},
]  # fmt: skip
_DECODERS = [
    None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Fuse"},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}, {"type": "ByteFallback"},
    {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Strip", "content": " ",
     "start": 1, "stop": 0}]}, {"type": "CTC"},
]  # fmt: skip


def _template(token, i, after=False):
    one = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [one, special] if after else [special, one]
    two = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, two],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


def _added(rng, content, i):
    token = {"id": i, "content": content}
    for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"):
        token[flag] = rng.random() < 0.3
    return token


def tokenizer_edit(rng, file, raw, folder):
    """An edit that means something in that file."""
    flags = ["special", "lstrip", "rstrip", "normalized", "single_word", "content", "id"]
    if file == "tokenizer.json":
        part = rng.choice(["normalizer", "pre_tokenizer", "decoder", "post_processor", "added",
                           "flag", "flag", "truncation", "padding", "model", "vocab", "merges"])  # fmt: skip
        last = raw["added_tokens"][-1]
        match part:
            case "normalizer":
                return ["set", file, [part], rng.choice(_NORMALIZERS)]
            case "pre_tokenizer":
                return ["set", file, [part], rng.choice(_PRE)]
            case "decoder":
                return ["set", file, [part], rng.choice(_DECODERS)]
            case "post_processor":
                token = rng.choice(raw["added_tokens"])
                value = _template(token["content"], token["id"], rng.random() < 0.3)
                return ["set", file, [part], rng.choice([value, None, {"type": "ByteLevel",
                        "add_prefix_space": True, "trim_offsets": False, "use_regex": True}])]  # fmt: skip
            case "added":
                new = rng.choice(
                    ["<think>", "<tool_call>", "ab", " x ", "é", "the", last["content"]]
                )
                at = last["id"] + rng.choice([1, 1, 1, 2, 0, 10**6])
                return [
                    "set",
                    file,
                    ["added_tokens", len(raw["added_tokens"])],
                    _added(rng, new, at),
                ]
            case "flag":
                place = rng.randrange(len(raw["added_tokens"]))
                flag = rng.choice(flags)
                old = raw["added_tokens"][place][flag]
                return ["set", file, ["added_tokens", place, flag], near(rng, old)]
            case "truncation":
                value = {
                    "direction": "Right",
                    "max_length": 3,
                    "strategy": "LongestFirst",
                    "stride": 0,
                }
                return ["set", file, [part], value]
            case "padding":
                value = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
                return ["set", file, [part], value]
            case "model":
                key = rng.choice(["unk_token", "byte_fallback", "ignore_merges", "dropout", "type",
                                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"])  # fmt: skip
                return [
                    "set",
                    file,
                    ["model", key],
                    rng.choice([True, False, None, "!", 0.0, 1.0, "##"]),
                ]
            case "vocab":
                word = rng.choice(sorted(raw["model"]["vocab"]))
                return rng.choice([["drop", file, ["model", "vocab", word]],
                                   ["set", file, ["model", "vocab", word], rng.choice([0, 5, -1, 10**7, "1"])],
                                   ["set", file, ["model", "vocab", "<|mdm_mask|>"], 7]])  # fmt: skip
            case _:
                place = rng.randrange(max(len(raw["model"]["merges"]), 1))
                return rng.choice([["drop", file, ["model", "merges", place]],
                                   ["set", file, ["model", "merges", place], rng.choice(["q z", "a", ["a", "b"], "a  b", 3])]])  # fmt: skip
    if file == "tokenizer_config.json":
        decoder = raw["added_tokens_decoder"]
        i = rng.choice(sorted(decoder))
        content = decoder[i]["content"]
        new = str(1 + max(map(int, decoder)))
        flag = rng.choice(flags[:6])
        return rng.choice([
            ["set", file, ["added_tokens_decoder", i, flag], near(rng, decoder[i][flag])],
            ["set", file, ["added_tokens_decoder", i, "special"], False],
            ["drop", file, ["added_tokens_decoder", i]],
            ["drop", file, ["added_tokens_decoder"]],
            ["set", file, ["added_tokens_decoder", new], _added(rng, "<think>", 0)],
            ["set", file, ["added_tokens_decoder", rng.choice(["x", "-1", "1.5", "٣", "10", "999999"])],
             decoder[i]],
            ["set", file, [rng.choice(NAMES)], rng.choice([content, {"content": content,
             "__type": "AddedToken", "special": True}, "<nope>", "a", "", [content]])],
            ["set", file, [rng.choice(["add_bos_token", "add_eos_token", "add_prefix_space",
             "clean_up_tokenization_spaces", "split_special_tokens", "legacy"])],
             rng.choice([True, False, None, "true", 1])],
            ["set", file, [rng.choice(["additional_special_tokens", "extra_special_tokens"])],
             rng.choice([[content], ["<new>"], ["the"], [{"content": content}], {"image_token": "<img>"},
             "x", [3], None, []])],
            ["set", file, ["tokenizer_class"], rng.choice(["GPT2Tokenizer", "Qwen2TokenizerFast",
             "LlamaTokenizerFast", "PreTrainedTokenizerFast", "Nope", None, 3])],
            ["set", file, [rng.choice(["model_max_length", "padding_side", "truncation_side", "errors",
             "sp_model_kwargs", "do_lower_case", "tokenizer_file", "name_or_path", "model_input_names"])],
             rng.choice([3, "left", "strict", {}, True, None])],
        ])  # fmt: skip
    if file == "special_tokens_map.json":
        named = [v for v in raw.values() if not isinstance(v, list)]
        known = [v["content"] if isinstance(v, dict) else v for v in named]
        value = rng.choice(
            [*known, {"content": rng.choice(known), "lstrip": True}, "<nope>", "a", 3, None]
        )
        key = rng.choice([*NAMES, "additional_special_tokens"])
        return ["set", file, [key], [value] if key.startswith("add") else value]
    if file == "added_tokens.json":
        word = rng.choice(sorted(raw))
        return rng.choice([
            ["drop", file, [word]],
            ["set", file, [word], rng.choice([0, 7, raw[word] + 1, -1, "3", 10**7, None])],
            ["set", file, ["<tool_call>"], 1 + max(raw.values())],
            ["set", file, ["<tool_call>"], 5 + max(raw.values())],
            ["delete", file],
        ])  # fmt: skip
    word = rng.choice(sorted(raw))  # vocab.json
    return rng.choice([
        ["drop", file, [word]],
        ["set", file, [word], rng.choice([0, 5, -1, 10**7, "1", None, 1.0])],
        ["set", file, ["<|im_end|>"], 7],
        ["set", file, ["zq"], 1 + max(raw.values())],
        ["delete", file],
    ])  # fmt: skip


def merges_edit(rng, text):
    file, lines = "merges.txt", text.split("\n")
    place = rng.randrange(len(lines))
    changed = rng.choice([
        lines[:place] + lines[place + 1 :],
        lines[:place] + ["q zz"] + lines[place:],
        lines[:place] + ["alone"] + lines[place:],
        lines[:place] + ["a b c"] + lines[place:],
        lines[:place] + [""] + lines[place:],
        lines[:place] + ["# a comment"] + lines[place:],
        lines[:place] + ["#version: 0.3"] + lines[place:],
        lines[:place] + lines[place : place + 1] + lines[place:],
        lines[:1] + lines[1:][::-1],
        lines[1:],
    ])  # fmt: skip
    return rng.choice([
        ["text", file, "\n".join(changed)],
        ["text", file, "\n".join(changed)],
        ["text", file, "\r\n".join(lines)],
        ["text", file, text.rstrip("\n")],
        ["text", file, text + "\n\n"],
        ["cut", file, rng.randrange(len(text))],
        ["encode", file, rng.choice(["utf-8-sig", "utf-16", "latin-1"])],
        ["insert", file, rng.randrange(len(text)), rng.choice(["\xff", "\0", " ", "\t", "\r"])],
        ["delete", file],
    ])  # fmt: skip


def damage(rng, file, size, files):
    """An edit of a weight file as bytes."""
    other = rng.choice(files)
    return rng.choice([
        ["cut", file, rng.choice([0, 1, 7, 8, 9, size // 2, size - 1])],
        ["insert", file, rng.choice([0, 8, size]), rng.choice(["\0", "\0" * 8, "x"])],
        ["bytes", file, rng.randrange(min(size, 2000)), rng.choice(["\0", "\xff", "{", '"'])],
        ["delete", file],
        ["copy", file, rng.choice([other, "model.safetensors", "model-00001-of-00001.safetensors",
                                   "pytorch_model.bin"])],
        ["move", file, rng.choice(["weights.safetensors", "model.SAFETENSORS"])],
    ])  # fmt: skip


def header_edit(rng, file, header, size, files, number):
    names = sorted(k for k in header if k != "__metadata__")
    name = names[number % len(names)]
    entry, other = header[name], header[rng.choice(names)]
    first, last = entry["data_offsets"]
    how = rng.random()
    if how < 0.2:
        return damage(rng, file, size, files)
    if how < 0.3:
        return [
            "length",
            file,
            rng.choice([0, 1, 8, size, size - 8, 2**63, 2**64 - 1, 100_000_001]),
        ]
    return rng.choice([
        ["header", file, [name, "dtype"], rng.choice(["F32", "F16", "BF16", "I8", "F8_E4M3", "f32", 3,
                                                     None, "I64", "F64", "BOOL", "F4"])],
        ["header", file, [name, "shape"], rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [],
                                                     [0], [-1, 4], [2**62, 4], ["64"], None, other["shape"],
                                                     [float(n) for n in entry["shape"]], [True, 4]])],
        ["header", file, [name, "data_offsets"], rng.choice([[last, first], [first, last + 1],
                         [first + 4, last + 4], other["data_offsets"], [first], [-4, last], [0, 0],
                         [str(first), str(last)], [first, size * 2], [float(first), last], None])],
        ["header", file, [name], rng.choice([other, None, {}, [], {**entry, "extra": 1},
                                            {"dtype": "F32", "shape": entry["shape"]}])],
        ["header-drop", file, [name]],
        ["header-drop", file, [name, rng.choice(["dtype", "shape", "data_offsets"])]],
        ["header", file, [name.replace("weight", "bias")], {**entry}],
        ["header", file, [rng.choice(["extra.weight", name + ".lora_A.weight", name.upper(), "", "a\nb",
                                      name.replace(".", "/")])],
         {"dtype": "F32", "shape": [0], "data_offsets": [last, last]}],
        ["header", file, ["__metadata__"], rng.choice([{"format": "pt"}, {"format": 3}, None, [], "x",
                                                      {"a": {"b": "c"}}, {}])],
        ["header", file, [], rng.choice([[], None, 3, "x", {}, {"__metadata__": {}}])],
    ])  # fmt: skip


def index_edit(rng, file, raw, size, files):
    names = sorted(raw["weight_map"])
    name = rng.choice(names)
    shard = rng.choice([*files, "model-00003-of-00003.safetensors", "../model.safetensors", "/etc/passwd",
                        "", ".", "model.bin", "config.json", 3, None, "sub/model.safetensors",
                        files[0].upper(), files[0] + "\n", "a\\b.safetensors"])  # fmt: skip
    return rng.choice([
        json_damage(rng, file, raw, size),
        ["set", file, ["weight_map", name], shard],
        ["set", file, ["weight_map", name], shard],
        ["drop", file, ["weight_map", name]],
        ["set", file, ["weight_map", "extra.weight"], rng.choice(files)],
        ["set", file, ["metadata", "total_size"], rng.choice([0, -1, "12", 1e30, None, [], True])],
        ["set", file, ["metadata"], rng.choice(ODD)],
        ["set", file, ["weight_map"], rng.choice([{}, [], None, "x", {"a": "b"}, {name: shard}])],
        ["drop", file, ["weight_map"]],
    ])  # fmt: skip


# Few static shapes: each costs a compilation.
_PLAIN = {
    "policy": [
        "localleap",
        "confidence_threshold",
        "low_confidence",
        "margin",
        "random",
        "entropy",
    ],
    "threshold": [0.9, 0.0, 1.0, 0.5],
    "relaxed_threshold": [0.75, 0.0, 0.9, 1.0],
    "radius": [4, 0, 1, 1000, 2**31 - 1],
    "steps": [8, 4, 2, 1],
    "schedule": ["even", "dream"],
    "gen_length": [8],
    "block_length": [8, 4],
    "temperature": [0.0, 0.5, 1e-9, 100.0, 1e30],
    "top_p": [1.0, 0.5, 1e-9],
    "top_k": [0, 1, 5, 10**6, "off"],
    "seed": [0, 1, 2**32 - 1],
    "cfg_scale": [0.0, 1.0],
    "early_stop": [True, False, "block", "settled", "on_eos"],
    "stop_ids": [[322], [322, 320], [1, 2], 7],
    "steps_per_block": [8, 4, 3, 1],
    "sub_block_length": [4, 8, 2],
    "sub_block_cache": [False, True],
    "logits_eos_inf": [True, False],
    "confidence_eos_eot_inf": [True, False],
    "cache": ["none", "prefix", "dual", "block"],
}
_ODD_WORDS = ["", " ", "nan", "inf", "-inf", "1e400", "-1", "0x10", "1_000", "٣", "1.5", "8.0", "true",
              "None", "null", "off", "0", "-0", "--", "\0", "é" * 100, "1e3", "+4", " 4 ", "4,4", "[4]"]  # fmt: skip


def options(rng, number):
    """A set of options, and by which way it comes: flags, YAML, Python, or a record's own."""
    from leapjax.config import OPTIONS
    from leapjax.policies import PARAMETERS, POLICIES

    way = rng.choice(["flags", "yaml", "python", "record"])
    names = sorted(OPTIONS)
    first = names[number % len(names)]
    chosen = {"gen_length": 8, "block_length": 8}
    readers = [p for p in POLICIES if first in POLICIES[p].reads]
    policy = rng.choice(readers or ["localleap", *POLICIES])
    if policy != "localleap":
        chosen["policy"] = policy
    common = [n for n in names if n not in PARAMETERS]
    read = [*POLICIES[policy].reads, *common] if rng.random() < 0.9 else names
    for name in [first, *rng.sample(read, rng.randrange(3))]:
        kind = OPTIONS[name].kind
        usual = _PLAIN.get(name) or [0, 1, 0.5, 2.0]
        how = rng.random()
        if how < 0.65:
            chosen[name] = rng.choice(usual)
        elif how < 0.75:
            chosen[name] = near(rng, usual[0])
        elif way == "flags" or (kind is str and how < 0.85):
            chosen[name] = rng.choice(_ODD_WORDS)
        else:
            chosen[name] = rng.choice(ODD)
    if rng.random() < 0.08:
        chosen[
            rng.choice(["radus", "Threshold", "threshold ", "", "model", "steps-", "__class__"])
        ] = 1
    return {"way": way, "options": list(chosen.items())}
