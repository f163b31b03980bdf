"""leapjax as a model of EleutherAI's lm-evaluation-harness (extra `eval`; docs/harness.md).

    python -m leapjax.integrations.lm_eval --model leapjax --tasks gsm8k \
        --model_args pretrained=checkpoints/llada-8b,gen_length=256,threshold=0.9

`loglikelihood` is an estimate of a lower bound of the log-likelihood (leapjax/likelihood.py),
not the log-likelihood itself, which a masked diffusion model can't give. Compare its
perplexities only with those of other masked diffusion models.
"""

# pyright: reportMissingImports=false

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.config import OPTIONS, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.integrations import generation
from leapjax.progress import counted

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as e:
    raise UserError("lm-eval is not installed; pip install leapjax[eval]") from e

_LOG = logging.getLogger(__name__)


@register_model("leapjax")
class LeapjaxLM(TemplateLM):
    """A leapjax model for the lm-evaluation-harness.

    `dtype` and `quantize` as in `leapjax.load`.

    Args:
      pretrained: checkpoint; None is the embedded model.
      lm: a loaded model to use instead (from Python).
      mesh: as in `leapjax.load`; on the command line, with `;` in place of `,`.
      config: YAML of decode options, as `leapjax decode --config` takes it.
      batch_size: sequences computed at once; `auto` lets leapjax choose.
      mc_num: masked sequences per likelihood (LLaDA's authors: 128).
      seed: seed of the masks.
      check_greedy: whether to check if each continuation is the greedy one (one more decode each);
        if False, the answer is always no, as LLaDA's authors recommend.
      user_turn: put each context into a user turn of the chat template, as Fast-dLLM's evaluation
        does, instead of using the harness's `--apply_chat_template`.
      device: not used, as JAX chooses the devices; the harness always passes one (`cuda:0`).
      max_batch_size: not used; the harness passes it.
      **options: decode options, such as `gen_length`, `threshold`, `cache`.

    Raises:
      UserError: an unknown argument, or a value that is out of range.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        lm: Any = None,
        dtype: str | None = None,
        quantize: str | None = None,
        mesh: str | None = None,
        config: str | None = None,
        batch_size: int | str | None = None,
        mc_num: int = 128,
        seed: int = 0,
        check_greedy: bool = False,
        user_turn: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ):
        super().__init__()
        from leapjax.config.resolve import checkpoint_options, resolve
        from leapjax.loader import load, model_config
        from leapjax.options import read_config

        check_keys(options, "model_args", (*OPTIONS, *_ARGUMENTS), "argument")
        file = read_config(config) if config else None
        pretrained = pretrained or (file.model if file else None)
        own = checkpoint_options(pretrained) if lm is None else lm.defaults

        def shape():
            return lm.config if lm is not None else model_config(pretrained)

        self.options = resolve(options, file, own, warn=_LOG.warning, model=shape)
        self._canvas_said = any(
            "gen_length" in level
            for level in (options, file and file.options, own and own.options)
            if level
        )
        mesh = mesh and mesh.replace(";", ",")
        self.lm = lm or load(pretrained, dtype=dtype, quantize=quantize, mesh=mesh)
        if self.lm.codec is None:
            raise UserError(f"{pretrained}: has no tokenizer, so the harness can't use it")
        user_turn = generation.switch(user_turn, "user_turn")
        if user_turn and not self.lm.codec.is_instruct:
            raise UserError("user_turn needs a chat template and the checkpoint has none")
        self.codec = self.lm.codec
        self.rows = None if batch_size in (None, "auto") else _rows(batch_size)
        self.mc_num = generation.whole(mc_num, "mc_num", 1)
        self.seed = generation.whole(seed, "seed", 0)
        self.check_greedy = generation.switch(check_greedy, "check_greedy")
        self.user_turn = user_turn
        self._templated = False
        self._said: set[str] = set()

    # What the harness asks of a tokenizer.

    @property
    def eot_token_id(self) -> int:
        """The token put before a text that has no context."""
        return self.lm.config.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the harness's cache keys."""
        return f"leapjax-{self.lm.model_hash}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """Token ids of a text.

        Args:
          string: any text; control tokens in it are parsed, as templates require.
          add_special_tokens: add the tokenizer's special tokens around the text; None: only if
            the harness has not applied the chat template, which includes them.
          **kwargs: ignored.
        """
        if add_special_tokens is None:
            add_special_tokens = not self._templated
        if add_special_tokens:
            return self.codec.encode_prompt(string, raw=True)
        return self.codec.encode(string, control=True)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation with the model's chat template.

        Args:
          add_generation_prompt: end where the assistant's turn begins; must be True.

        Raises:
          UserError: the model has no template, or it refuses the conversation.
        """
        if not add_generation_prompt:
            raise UserError("an assistant's turn can't be begun for it (gen_prefix); leave it out")
        self._templated = True
        return self.codec.render_chat(chat_history, self.codec.template_options)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for the harness's records; always the checkpoint's own."""
        return "the checkpoint's" if chat_template else None

    # Generation.

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first eos, end-of-turn token or stop string.

        Args:
          requests: Instances of (context, generation options).

        Returns:
          One text per request, in order.

        Raises:
          UserError: an option that leapjax does not read, or a context that does not fit.
        """
        self._warn_of_no_template()
        made = [self._request(i, *request.args) for i, request in enumerate(requests)]
        texts: list[str] = [""] * len(made)
        found = self.lm.engine_for(len(made), self.rows).as_completed(made)
        with counted("answers", 0 if disable_tqdm else len(made), "request") as show:
            for done, (index, completion) in enumerate(found, 1):
                asked = generation.read(requests[index].args[1], self.options, self._note)
                texts[index] = self._cut(completion, asked.length, made[index].stop)
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                show(done)
        return texts

    def _request(self, index: int, context: str, asked: Mapping[str, Any]):
        wanted = generation.read(asked, self.options, self._note)
        config = self.options.replace(**wanted.options)
        if self.user_turn:
            ids = self.codec.encode_prompt(context)
        else:
            ids = self.tok_encode(context)
        if wanted.length is not None and not self._canvas_said:
            # The prompt's rest takes up room of a canvas of whole blocks.
            rest = len(ids) if self.lm.config.canvas == "whole_blocks" else 0
            blocks = -(-(wanted.length + rest % config.block_length) // config.block_length)
            config = config.replace(gen_length=blocks * config.block_length)
        record = {"id": index, "prompt_ids": ids, "stop": list(wanted.stop)}
        try:
            return self.lm.request(record, config)
        except UserError as e:
            raise UserError(f"request {index + 1} of the harness: {e}") from e

    def _cut(self, completion, asked: int | None, stop: Sequence[str]) -> str:
        """The text, of no more tokens than the task allows."""
        if asked is None or len(completion.output_ids) <= asked:
            return completion.text
        from leapjax.text import finish

        ids, stop_ids = completion.output_ids[:asked], self.options.stop_ids
        return finish(ids, self.codec, self.lm.config, stop, stop_ids=stop_ids)[0]

    def _note(self, line: str) -> None:
        """Warn of something once."""
        if line not in self._said:
            self._said.add(line)
            _LOG.warning(line)

    def _warn_of_no_template(self) -> None:
        if self.codec.is_instruct and not (self._templated or self.user_turn):
            self._note(
                "this is an instruct model and its chat template was not applied, which can bring "
                "scores close to 0; add --apply_chat_template, or user_turn=True to --model_args"
            )

    # Likelihoods.

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """Estimated lower bounds of log-likelihoods, and whether greedy says the same.

        Args:
          requests: ((context, continuation), context ids, continuation ids).
          **kwargs: nothing more is read.
        """
        self._warn_of_no_template()
        pairs = [(context, answer) for _, context, answer in requests]
        out = self._bounds(pairs, disable_tqdm)
        greedy = self._greedy(pairs) if self.check_greedy else [False] * len(pairs)
        pairs_out = list(zip(out, greedy, strict=True))
        for (strings, _, _), result in zip(requests, pairs_out, strict=True):
            self.cache_hook.add_partial("loglikelihood", strings, result)
        return pairs_out

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Estimate lower bounds for whole texts, in windows of the model's length.

        Each window is predicted from the one token before it, so every token counts once.

        Args:
          requests: Instances of (text,).
        """
        pairs, owner = [], []
        room = self.lm.config.max_length - 1
        for number, request in enumerate(requests):
            ids = [self.eot_token_id, *self.tok_encode(request.args[0], add_special_tokens=False)]
            for start in range(1, len(ids), room):
                pairs.append((ids[start - 1 : start], ids[start : start + room]))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, bound in zip(owner, self._bounds(pairs, disable_tqdm), strict=True):
            totals[number] += bound
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _bounds(self, pairs, disable_tqdm: bool) -> list[float]:
        from leapjax.likelihood import likelihoods

        total = len(pairs) * self.mc_num
        with counted("likelihoods", 0 if disable_tqdm else total, "sequence") as show:
            found = likelihoods(
                self.lm,
                pairs,
                samples=self.mc_num,
                seed=self.seed,
                batch_size=self.rows or 32,
                show=show,
            )
        if found and self.mc_num > 1:
            worst = max(x.error for x in found)
            _LOG.info("likelihood bounds: largest standard error %.3g nats", worst)
        return [x.bound for x in found]

    def _greedy(self, pairs) -> list[bool]:
        """Whether greedy decoding of just so many tokens gives the continuation.

        It is one block, but for a block-causal model, whose canvas may end behind the continuation.
        """
        made, model = [], self.lm.config
        w = model.block_length or 1
        for index, (context, answer) in enumerate(pairs):
            gen, block = len(answer), None if model.block_causal else len(answer)
            if model.canvas == "whole_blocks":
                gen = -(-(gen + len(context) % w) // w) * w
            config = DecodeConfig(
                policy="low_confidence", gen_length=gen, block_length=block, early_stop=False
            )
            made.append(self.lm.request({"id": index, "prompt_ids": list(context)}, config))
        stream = self.lm.stream(made, batch_size=self.rows)
        answers = zip(stream, pairs, strict=True)
        return [c.output_ids[: len(answer)] == list(answer) for c, (_, answer) in answers]


_ARGUMENTS = (
    "pretrained",
    "dtype",
    "quantize",
    "mesh",
    "config",
    "batch_size",
    "mc_num",
    "seed",
    "check_greedy",
    "user_turn",
)


def _rows(given: int | str) -> int:
    text = str(given)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"batch_size is {given!r}; expected a whole number of at least 1, or auto")
    return int(text)


def main() -> int:
    """The harness's own command line, with the model `leapjax` registered."""
    from leapjax.cli.common import run_main

    def command(argv) -> int:
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
        return 0

    return run_main(command, None, "leapjax.integrations.lm_eval")


if __name__ == "__main__":
    sys.exit(main())
