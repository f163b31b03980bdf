"""From output ids to the answer: where it ends, and why."""

from collections.abc import Collection, Sequence

from leapjax.models.config import ModelConfig
from leapjax.text.codec import TextCodec


def finish(
    ids: Sequence[int],
    codec: TextCodec | None,
    model: ModelConfig,
    stop: Sequence[str] = (),
    whole: bool = False,
    stop_ids: Collection[int] | None = None,
) -> tuple[str, str]:
    """The answer's text and its finish reason.

    `codec`: the model's codec; without one the text is empty; `model`: the model's config, for its
    stop ids and its eos id; `stop`: strings that end the answer; it is cut before the earliest;
    `whole`: the text goes on behind eos and end-of-turn tokens, as for a text that was filled in;
    `stop_ids`: ids that end an answer; None is the model's own. Returns the text before the first
    stop id, eos, end-of-turn token or stop string, and `stop` if there is one of these, else
    `length`.
    """
    own = model.stop_ids if stop_ids is None else stop_ids
    ends = {*own, model.eos_token_id, codec.eot_id if codec else None}
    end = next((n for n, i in enumerate(ids) if int(i) in ends), None)
    text = "" if codec is None else codec.decode(ids if whole else ids[:end])
    cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
    if cuts:
        text = text[: min(cuts)]
    return text, "length" if end is None and not cuts else "stop"
