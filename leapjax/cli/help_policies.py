"""`leapjax decode --help-policies`: what each policy does, its source and its options."""

import argparse
import inspect
import sys
import textwrap


class HelpPolicies(argparse.Action):
    """Prints the policies and ends, as `--help` does."""

    def __init__(self, option_strings, dest=argparse.SUPPRESS, **kwargs):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        """Print the text of `--help-policies`."""
        print(text(), end="")
        parser.exit()


def text(width: int = 80) -> str:
    """Every policy with its source, and every option it reads with its default."""
    from leapjax.config import DecodeConfig
    from leapjax.policies import POLICIES, ROWS
    from leapjax.policies.registry import plain

    parts = [
        "A policy decides which positions commit in a pass. Choose one with --policy\n"
        "NAME; set its options as flags, YAML keys or in a record's `options`.\n"
    ]
    for name, policy in POLICIES.items():
        module = sys.modules.get(f"leapjax.policies.{name}") or inspect.getmodule(policy.commit)
        does = (inspect.getdoc(module) or "").split("\n\n")[0]
        lines = textwrap.wrap(does, width - 2, initial_indent="  ", subsequent_indent="  ")
        lines.append(f"  source: {policy.source}")
        also = [row for row, r in ROWS.items() if r.policy == name and plain(row) != name]
        if also:
            lines.append(f"  also called: {', '.join(also)}")
        for p in policy.parameters:
            start = f"  --{p.name.replace('_', '-')}"
            lines += textwrap.wrap(
                f"{start:<23} {p.help} (default: {p.follows or p.default})",
                width,
                subsequent_indent=" " * 24,
                break_on_hyphens=False,
            )
        usual = " (default)" if name == DecodeConfig().policy else ""
        parts.append("\n".join([f"{name}{usual}", *lines, ""]))
    return "\n".join(parts)
