"""A calibration as text, as a YAML file of decode options, and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from leapjax.config import OPTIONS, DecodeConfig
from leapjax.studies.tables import label, percent, text_table


def text(made: Mapping[str, Any]) -> str:
    """A table for people, of what `calibrate` returns."""
    budget, greedy_steps = percent(made["max_disagreement"]), made["greedy_steps"]
    cells = [["setting", "", "differ", "at most", "steps"]]
    for t in made["tested"]:
        given_up = t["prompts"] < made["n"]
        verdict = "passes" if t["passes"] else "fails"
        verdict += f" (given up after {t['prompts']} prompts)" * given_up
        numbers = [f"{'>=' * given_up}{t['disagreements']}", percent(t["bound"])]
        cells.append([label(t["config"]), verdict, *numbers, f"{t['steps']:.1f}"])
    out = (
        f"{made['n']} prompts, budget {budget} of answers, confidence "
        f"{percent(made['confidence'])}; greedy takes {greedy_steps:.1f} steps\n\n"
        f"{text_table(cells, 2)}"
    )
    if made["untested"]:
        out += f"not tested, behind the first failure: {made['untested']}\n"
    if made["chosen"] is None:
        return f"{out}\nNo setting qualifies: none is shown to differ on at most {budget}.\n"
    t = made["tested"][made["chosen"]]
    share = percent(t["steps"] / greedy_steps)
    return f"{out}\nChosen: {label(t['config'])}; {t['steps']:.1f} steps, {share} of greedy's.\n"


def config_file(made: Mapping[str, Any], facts: Mapping[str, Any], model: str | None) -> str:
    """The chosen setting as a file for `leapjax decode --config`.

    `facts` are what else it rests on, shown as comments.
    """
    t = made["tested"][made["chosen"]]
    options = {} if model is None else {"model": model}
    shown = {"policy", "gen_length", "block_length", *t["config"].changed()}
    options |= {n: getattr(t["config"], n) for n in OPTIONS if n in shown}
    bound, budget = percent(t["bound"]), percent(made["max_disagreement"])
    comments = {
        "chosen by": "leapjax calibrate (docs/calibration.md)",
        "prompts": made["n"],
        "answers that differ from greedy's": t["disagreements"],
        "bound": f"at most {bound} differ; budget {budget}, "
        f"confidence {percent(made['confidence'])}",
        "mean steps": f"{t['steps']:.2f}; greedy {made['greedy_steps']:.2f}",
        **facts,
    }
    # A line of its own for each, whatever the value holds.
    head = [f"# {name}: {' '.join(str(value).split())}" for name, value in comments.items()]
    return "\n".join(head) + "\n" + yaml.safe_dump(options, sort_keys=False)


def document(made: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, JSON-ready."""
    return {**facts, **made} | {
        "tested": [t | {"config": t["config"].to_dict()} for t in made["tested"]]
    }


def guarantee_text(
    outcome: Mapping[str, Any],
    settings: Sequence[DecodeConfig],
    rival: Mapping[str, float],
    budget: float,
) -> str:
    """The outcome of many calibrations, for people.

    `rival` has `steps` and `rate` of confidence threshold 0.9.
    """
    o = outcome
    cells = [["setting", "differ", "steps", "chosen"]]
    for config, rate, steps, n in zip(settings, o["rates"], o["steps"], o["picked"], strict=True):
        cells.append([label(config), percent(rate), f"{steps:.2f}", str(n)])
    cells.append(
        ["(confidence threshold 0.9)", percent(rival["rate"]), f"{rival['steps']:.2f}", ""]
    )
    out = (
        f"{o['repeats']} calibrations of {o['n']} prompts each out of {o['pool']}, "
        f"budget {percent(budget)} of answers\n\n{text_table(cells, 1)}\n"
        f"over the budget in the pool: {o['failures']} of {o['repeats']} "
        f"({percent(o['failures'] / o['repeats'])}); at most {o['allowed']} are within the promise "
        f"and its sampling error: {'kept' if o['holds'] else 'BROKEN'}\n"
        f"over the budget on the {o['pool'] - o['n']} prompts not seen: {o['rest_failures']}\n"
        f"no setting qualified: {o['none']}\n"
    )
    if o["chosen_steps"] is None:
        return out
    fewer = "fewer" if o["chosen_steps"] < rival["steps"] else "not fewer"
    steps = f"{o['chosen_steps']:.2f}, {fewer} than threshold 0.9's {rival['steps']:.2f}"
    return f"{out}mean steps of the chosen: {steps}\n"
