"""A small trace, without a model, for the tests of what shows it."""

from leapjax.trace import Earlier, Item, Run, Token, Trace

HOSTILE = 'why </script><script>document.title="owned"</script><img src=x onerror="fetch(1)">'


def token(text, step, kind="schedule", confidence=0.5, shown=None, **more):
    sure = None if kind == "early_stop" else confidence
    return Token(text, step, kind, sure, step + 1 if shown is None else shown, **more)


def trace():
    """Two prompts; localleap takes 2 steps, greedy 3, on a canvas of 5."""
    runs = (
        Run(
            "localleap",
            "threshold 0.9",
            2,
            3,
            "<b>two</b> words",
            (
                token("<b>two</b>", 1, "propagated", 0.8, same=True),
                token(" words", 0, "anchor", 0.95, same=False),
                token(".", -3, "seed", 0.97, shown=2, same=False),
                token("<eos>", 0, "top1", 0.99, special=True, same=True),
                token("<eos>", -1, "early_stop", shown=2, special=True, same=True),
            ),
        ),
        Run(
            "greedy",
            "low_confidence, 1 token a step",
            3,
            3,
            "<b>two</b> other",
            (
                token("<b>two</b>", 2),
                token(" other", 1),
                token("!", -3, "seed", shown=3),
                token("<eos>", 0, special=True),
                token("<eos>", -1, "early_stop", shown=3, special=True),
            ),
        ),
    )
    return Trace("tiny", "canvas 5", (Item("1", HOSTILE, runs), Item("2", "plain", runs)))


def edited():
    """One prompt, one policy: 5 steps on a canvas of 3; one position is edited twice, one once."""
    tokens = (
        token("5", 0, "anchor", 0.95, earlier=(Earlier("seventeen", 1), Earlier("<eos>", 3, True))),
        token(".", 1, "top1", earlier=(Earlier("!", 3),)),
        token("<eos>", 2, "top1", special=True),
    )
    run = Run("joint_threshold", "threshold 0.9", 5, 3, "5.", tokens)
    return Trace("tiny", "canvas 3", (Item("1", "how many?", (run,)),))
