"""Qwen2 and Qwen3 under another mask: transformers computes, whatever the files call the family."""


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
    state = {k: torch.tensor(v) for k, v in tensors.items() if not k.endswith("inv_freq")}
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
