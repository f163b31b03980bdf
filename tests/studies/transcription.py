"""The measurements in plain Python: decode one row, keep every pass, then look back.

Nothing is replayed here: each pass is stored as the decode saw it, and the definitions of
docs/observations.md are applied afterwards, one (position, step) pair at a time.
"""

import collections

import numpy as np

from tests.policies.transcription import RULES


def decode(lm, prompt, config):
    """Decode a prompt pass by pass.

    Returns:
      The canvas, its commit steps, and a list of what each pass saw: (block's positions, which
      positions were open, tokens, confidences), each over the whole canvas.
    """
    c, w, model = config.gen_length, config.block_length, lm.config
    canvas, commit = [model.mask_token_id] * c, [-1] * c
    passes = []
    for start in range(0, c, w):
        block = range(start, start + w)
        while any(canvas[i] == model.mask_token_id for i in block):
            logits = np.asarray(lm.logits([*prompt, *canvas]))[0].astype(np.float64)
            token, confidence = [], []
            for i in range(c):
                row = logits[len(prompt) + i - bool(model.shift_logits)]
                p = np.exp(row - row.max())
                p /= p.sum()
                best = max(
                    (v for v in range(len(p)) if v != model.mask_token_id), key=p.__getitem__
                )
                token.append(best)
                confidence.append(float(p[best]))
            is_open = [t == model.mask_token_id for t in canvas]
            passes.append((block, is_open, token, confidence))
            rule = RULES[config.policy]
            row = {
                "masked": [is_open[i] for i in block],
                "confidence": [confidence[i] for i in block],
                "threshold": config.value("threshold"),
                "relaxed_threshold": config.value("relaxed_threshold"),
                "quota": 1,
                "own": {
                    "radius_left": config.value("radius"),
                    "radius_right": config.value("radius"),
                    "decay": 0.0,
                },
            }
            for i in rule(row):
                canvas[start + i] = token[start + i]
                commit[start + i] = len(passes) - 1
        if config.early_stop != "off" and model.eos_token_id in [canvas[i] for i in block]:
            canvas = [model.eos_token_id if t == model.mask_token_id else t for t in canvas]
            break
    return canvas, commit, passes


def measure(canvas, commit, passes, threshold, eos):
    """What `leapjax.studies.replay` shall find of a decode.

    Returns:
      since by position; a Counter of pairs and one of agreements, by (in the active block,
      answer, confidence, distance or None); the least distance of a confidence from an end of
      a bin or from the threshold.
    """
    c = len(canvas)
    end = canvas.index(eos) if eos in canvas else c
    since = []
    for i in range(c):
        first = -1
        for s in range(commit[i] + 1):
            if all(passes[r][2][i] == canvas[i] for r in range(s, commit[i] + 1)):
                first = s
                break
        since.append(first)
    pairs, agree = collections.Counter(), collections.Counter()
    close = 1.0
    for s, (block, is_open, token, confidence) in enumerate(passes):
        anchors = [j for j in block if is_open[j] and confidence[j] >= threshold]
        for i in range(c):
            if not is_open[i]:
                continue
            close = min(close, abs(confidence[i] - threshold))
            close = min(close, *(abs(confidence[i] - k / 20) for k in range(1, 20)))
            if commit[i] <= s:  # committed here, or filled in without a decision
                continue
            distance = min((abs(i - j) for j in anchors), default=None)
            key = (i in block, i <= end, int(confidence[i] * 20), distance)
            pairs[key] += 1
            agree[key] += token[i] == canvas[i]
    return since, pairs, agree, close
