"""What is drawn: one function a kind of input, `draw(rng, checkpoint, number) -> (edits, extra)`.

`number` counts the kind's cases on a checkpoint, so that every key has its turn.
"""

import json

from leapjax.checkpoint import read_config
from tests.fuzz import text_inputs, value_lists
from tests.fuzz.case import GOLDEN, split_header
from tests.fuzz.families import FOREIGN, family
from tests.fuzz.values import LITERALS, ODD, json_damage, json_edit, near

CONFIG, GENERATION = "config.json", "generation_config.json"


def _json(checkpoint, file):
    path = GOLDEN / checkpoint / file
    return (json.loads(path.read_text()), path.stat().st_size) if path.exists() else ({}, 1)


def config(rng, checkpoint, number):
    raw, size = _json(checkpoint, CONFIG)
    known = family(raw).KEYS
    keys = sorted({*raw, *known, *FOREIGN})
    edits = []
    for turn in range(1 + (rng.random() < 0.25)):
        key = keys[number % len(keys)] if turn == 0 else rng.choice(keys)
        plausible = [*known.get(key, ()), *FOREIGN.get(key, ())]
        how = rng.random()
        if how < 0.05:
            edits.append(json_damage(rng, CONFIG, raw, size))
        elif how < 0.2 and key in raw:
            edits.append(["drop", CONFIG, [key]])
        elif how < 0.55 and plausible:
            edits.append(["set", CONFIG, [key], rng.choice(plausible)])
        elif how < 0.75 and key in raw:
            edits.append(["set", CONFIG, [key], near(rng, raw[key])])
        elif how < 0.8:
            edits.append(["literal", CONFIG, [key], rng.choice(LITERALS)])
        elif how < 0.83 and key in raw:
            edits.append(["twice", CONFIG, key, near(rng, raw[key])])
        else:
            edits.append(["set", CONFIG, [key], rng.choice(ODD)])
    if rng.random() < 0.1:  # as transformers 5 writes rotary settings
        theta = rng.choice([raw.get("rope_theta", 1e4), 1e4, 1e6])
        value = {"rope_type": rng.choice(["default", "default", "linear"]), "rope_theta": theta}
        edits.append(["set", CONFIG, ["rope_parameters"], value])
        if rng.random() < 0.7:
            edits.append(["drop", CONFIG, ["rope_theta"]])
    return edits, {}


def generation(rng, checkpoint, number):
    raw, size = _json(checkpoint, GENERATION)
    keys = (
        "eos_token_id pad_token_id bos_token_id mask_token_id use_cache steps temperature top_p alg"
    )
    keys = [*keys.split(), "transformers_version", "_from_model_config"]
    if rng.random() < 0.3:
        return [json_edit(rng, GENERATION, raw, size)], {}
    key = keys[number % len(keys)]
    value = rng.choice([near(rng, raw.get(key)), rng.choice(ODD), [320, 321], 320, 10**6, "eos"])
    return [["set", GENERATION, [key], value]], {}


def tokenizer(rng, checkpoint, number):
    folder = GOLDEN / checkpoint
    files = [p.name for p in sorted(folder.iterdir()) if p.name in value_lists.TOKENIZER_FILES]
    file = files[number % len(files)]
    edits = []
    for _ in range(1 + (rng.random() < 0.2)):
        if file == "merges.txt":
            edits.append(value_lists.merges_edit(rng, (folder / file).read_text("utf-8")))
            continue
        raw, size = _json(checkpoint, file)
        if rng.random() < 0.55:
            edits.append(value_lists.tokenizer_edit(rng, file, raw, folder))
        else:
            edits.append(json_edit(rng, file, raw, size))
    return edits, {"text_seed": rng.randrange(10**6)}


def template(rng, checkpoint, number):
    raw, _ = _json(checkpoint, "tokenizer_config.json")
    own = GOLDEN / checkpoint / "chat_template.jinja"
    source = raw["chat_template"] if "chat_template" in raw else own.read_text("utf-8")
    source = text_inputs.template(rng, source, raw)
    file = "tokenizer_config.json"
    how = rng.random()
    if how < 0.6:
        edits = [["set", file, ["chat_template"], source]]
    elif how < 0.75:
        edits = [["text", "chat_template.jinja", source]]
    elif how < 0.85:
        edits = [["set", "chat_template.json", ["chat_template"], source],
                 ["drop", file, ["chat_template"]]]  # fmt: skip
    else:
        named = [{"name": rng.choice(["default", "tool_use", "rag", ""]), "template": source}
                 for _ in range(rng.choice([1, 1, 2]))]  # fmt: skip
        value = rng.choice([named, {t["name"]: source for t in named}, [source], [named], 3, True])
        edits = [["set", file, ["chat_template"], value]]
    return edits, {"text_seed": rng.randrange(10**6)}


def weights(rng, checkpoint, number):
    folder = GOLDEN / checkpoint
    files = sorted(p.name for p in folder.iterdir() if p.name.endswith((".safetensors", ".bin")))
    index = next((p.name for p in folder.glob("*.index.json")), None)
    if index and rng.random() < 0.25:
        raw, size = _json(checkpoint, index)
        return [value_lists.index_edit(rng, index, raw, size, files)], {}
    file = rng.choice(files)
    size = (folder / file).stat().st_size
    if file.endswith(".bin"):
        return [value_lists.damage(rng, file, size, files)], {}
    header, _ = split_header(folder / file)
    return [value_lists.header_edit(rng, file, header, size, files, number)], {}


def records(rng, checkpoint, number):
    return [], text_inputs.records(rng, read_config(GOLDEN / checkpoint))


def options(rng, checkpoint, number):
    return [], value_lists.options(rng, number)


KINDS = {
    "config": config,
    "generation": generation,
    "tokenizer": tokenizer,
    "template": template,
    "weights": weights,
    "records": records,
    "options": options,
}
SHARES = {  # of all cases
    "config": 0.35,
    "generation": 0.05,
    "tokenizer": 0.2,
    "template": 0.12,
    "weights": 0.12,
    "records": 0.08,
    "options": 0.08,
}
