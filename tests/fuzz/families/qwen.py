"""Qwen2 and Qwen3 under another mask: transformers computes, whatever the files call the family."""

import collections
import re

import numpy as np

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stacked(tensors):
    """The tensors with each layer's experts in one, as version 5 of the library has them."""
    out, experts = {}, collections.defaultdict(dict)
    for name, value in tensors.items():
        if found := _EXPERT.fullmatch(name):
            experts[found[1]][int(found[2]), found[3]] = value
        else:
            out[name] = value
    for name, parts in experts.items():
        count = len(parts) // 3
        both = [np.concatenate([parts[i, "gate"], parts[i, "up"]]) for i in range(count)]
        out[f"{name}.gate_up_proj"] = np.stack(both)
        out[f"{name}.down_proj"] = np.stack([parts[i, "down"] for i in range(count)])
    return out


def apart(tensors):
    """The inverse of `stacked`: a tensor for each expert, as the hub has them."""
    out = {}
    for name, value in tensors.items():
        folder, _, last = name.rpartition(".")
        if not folder.endswith(".mlp.experts"):
            out[name] = value
            continue
        for i, one in enumerate(value):
            parts = {"gate": one[: len(one) // 2], "up": one[len(one) // 2 :]}
            for part, matrix in (parts if last == "gate_up_proj" else {"down": one}).items():
                out[f"{folder}.{i}.{part}_proj.weight"] = matrix
    return out


def logits(kind, config, tensors, ids, block=None):
    """(B, T, V) in float64, attending both ways or block by block.

    Args:
      kind: `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.
      config: of the library, eager attention.
      tensors: {name: float array}.
      ids: (B, T).
      block: tokens per block, or None.
    """
    import torch

    with torch.device("meta"):
        model = kind(config)
    model = model.to_empty(device="cpu").double()
    kept = {k: v for k, v in tensors.items() if not k.endswith("inv_freq")}
    state = {k: torch.tensor(v) for k, v in stacked(kept).items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    # Made on "meta", the frequencies are still to be computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    size = ids.shape[1]
    with torch.no_grad():
        place = torch.arange(size) // (block or size)
        hidden = torch.zeros(size, size, dtype=torch.float64)
        hidden[place[:, None] < place[None, :]] = torch.finfo(torch.float64).min
        mask = hidden.expand(len(ids), 1, size, size)
        return model.eval()(torch.tensor(ids), attention_mask=mask).logits.numpy()
