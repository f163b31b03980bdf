"""What `leapjax plan` prints: a row a mesh, and of a figure whether it is counted or estimated."""

from typing import Any

from leapjax.planning import need
from leapjax.planning.search import tokens_per_s

LEGEND = """\
GB: counted in the program that the TPU compiler made. ms, tokens/s a chip: estimated, by the
compiler's cycles or by the bytes counted, the slower. turn: of a refresh; of a block cache a piece
of a prefill. bound: no program is faster. Measured on a chip: nothing."""

HEADING = (
    f"{'slice':<11} {'mesh':<22} {'weights':<8} {'rows':>5} {'GB a device':>12} {'of':>6} "
    f"{'window ms':>10} {'turn ms':>11} {'tokens/s/chip':>14} {'bound':>6}"
)

MARKDOWN = (
    "| slice | mesh | weights | rows a replica | weights + cache + rest, GB a device | of "
    "| window pass, GB / need | turn, GB / need | window pass, ms | turn, ms "
    "| tokens/s a chip, by cycles | by bytes | bound | compiled in, CPU s |\n"
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def line(plan: dict[str, Any], dtype: str) -> str:
    """A plan's row for a terminal. `dtype`: of weights that are not quantised."""
    start = _start(plan, dtype)
    start = f"{start[0]:<11} {start[1]:<22} {start[2]:<8} "
    if not plan["fits"]:
        return start + plan["error"]
    window, refresh = _passes(plan)
    seconds = plan["estimated"]["seconds"]
    took = [f"{1000 * slowest(seconds, p):.1f}" if p else "" for p in (window, refresh)]
    return start + (
        f"{plan['rows_a_replica']:>5} {plan['counted']['total'] / 1e9:>12.1f} "
        f"{plan['hbm_device'] / 1e9:>6.1f} {took[0]:>10} {took[1]:>11} "
        f"{tokens_per_s(plan):>14.0f} {plan['estimated']['tokens_per_s_chip']['bound']:>6.0f}"
    )


def row(plan: dict[str, Any], dtype: str) -> str:
    """A plan's row of a Markdown table; arguments as for `line`."""
    start = "| " + " | ".join(_start(plan, dtype)) + " |"
    if not plan["fits"]:
        return f"{start} {plan['error']} |"
    counted, said = plan["counted"], plan["estimated"]
    rest = counted["total"] - counted["weights"] - counted["cache"]
    cells = [
        str(plan["rows_a_replica"]),
        " + ".join(f"{x / 1e9:.1f}" for x in (counted["weights"], counted["cache"], rest)),
        f"{plan['hbm_device'] / 1e9:.0f}",
    ]
    passes = _passes(plan)
    for part in passes:
        if part not in counted["moved"]:
            cells.append("")
            continue
        moved, least = counted["moved"][part], counted["need"][part]
        cells.append(f"{moved / 1e9:.1f} / {least / 1e9:.1f}")
    cells += [f"{1000 * slowest(said['seconds'], p):.1f}" if p else "" for p in passes]
    speeds = said["tokens_per_s_chip"]
    cells += [f"{speeds[k]:.0f}" if k in speeds else "" for k in ("cycles", "bytes", "bound")]
    cells.append(f"{plan['measured']['compile_cpu_s']:.0f}")
    return f"{start} " + " | ".join(cells) + " |"


def model(plan: dict[str, Any]) -> str:
    """How many parameters the planned model has; of experts, how many are active."""
    every, active = (plan["parameters"][kind] / 1e9 for kind in ("all", "active"))
    return f"{every:.2f} billion parameters, {active:.2f} billion active in a token's pass"


def details(plan: dict[str, Any]) -> list[str]:
    """What is known of a single plan that fits."""
    counted, said = plan["counted"], plan["estimated"]
    parts = ("weights", "cache", "state", "temporaries")
    lines = [
        f"counted: {model(plan)}",
        "counted: memory a device: "
        + ", ".join(f"{name} {counted[name] / 1e9:.2f} GB" for name in parts)
        + f"; {counted['donated'] / 1e9:.2f} GB of cache and state are donated",
    ]
    for one in counted["collectives"]:
        way = "asynchronous" if one["asynchronous"] else "synchronous"
        lines.append(
            f"counted: {one['part']}: {one['times']} {way} {one['kind']} over {one['over']} of "
            f"{one['bytes'] / 1e6:.3g} MB"
        )
    if not counted["collectives"]:
        lines.append("counted: no collectives")
    for part, moved in counted["moved"].items():
        least = counted["need"].get(part)
        beside = f", must move {least / 1e9:.2f} GB" if least else ""
        lines.append(f"counted: {part}: moves {moved / 1e9:.2f} GB{beside}")
    for part, one in said["experts"].items():
        lines.append(
            f"assumed: {part}: {one['tokens']} tokens touch {one['touched']:.0f} of {one['of']} "
            f"experts a layer, uniform routing: {one['bytes'] / 1e9:.2f} GB of what it must move"
        )
    for part, time in said["parts"].items():
        ms = {kind: 1000 * each[part] for kind, each in said["seconds"].items() if part in each}
        estimates = [f"{ms[kind]:.2f} ms by {kind}" for kind in ("cycles", "bytes") if kind in ms]
        lines.append(
            f"estimated: {part}: {', '.join(estimates)}; at least "
            + ", ".join(
                f"{name} {1000 * time[name]:.2f}" for name in ("compute", "memory", "exchange")
            )
            + " ms"
        )
    runs = said["schedule"]
    for part in (need.WINDOW, need.FULL, need.REFRESH, need.STORE, need.PREFILL):
        if part in runs:
            lines.append(f"estimated: {part}: {runs[part] / runs['passes']:.2f} a step")
    seconds = plan["measured"]["compile_s"]
    lines.append(f"measured: {seconds:.0f} s to compile on this machine")
    return lines


def slowest(seconds: dict[str, dict[str, float]], part: str) -> float:
    """The slowest estimate of a part, in seconds."""
    return max(each[part] for each in seconds.values() if part in each)


def command(plan: dict[str, Any]) -> str:
    """The options of `leapjax decode` that a plan stands for."""
    count = plan["chips"] / plan["chips_a_replica"] * plan["rows_a_replica"]
    words = f"--mesh {plan['mesh']} --batch-size {count:.0f}"
    return f"{words} --quantize {plan['quantize']}" if plan["quantize"] else words


def cost(found: dict[str, float], records: int | None, gen_length: int) -> str:
    """What tokens, and a job whose records count for `gen_length` each, are estimated to cost."""

    def said(what: str) -> str:
        hours = f"{found[f'chip_hours_{what}']:.3g} chip hours"
        price = found.get(f"price_{what}")
        return hours if price is None else f"{hours}, price {price:,.2f}"

    line = f"estimated: a million tokens: {said('million_tokens')}"
    if records:
        line += f"; {records:,} records of {gen_length} tokens: {said('job')}"
    return line


def _start(plan: dict[str, Any], dtype: str) -> tuple[str, str, str]:
    mesh = ",".join(p for p in plan["mesh"].split(",") if not p.endswith("=1") or p == "data=1")
    return plan["topology"], mesh, plan["quantize"] or dtype


def _passes(plan: dict[str, Any]) -> tuple[str, str]:
    """The pass of most steps, and a turn: of a refresh, or a piece of a prefill."""
    parts = plan["estimated"]["parts"]
    turn = next((name for name in (need.REFRESH, need.PREFILL) if name in parts), "")
    return (need.WINDOW if need.WINDOW in parts else need.FULL), turn
