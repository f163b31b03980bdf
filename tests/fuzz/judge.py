"""Runs a case against leapjax and its oracles, and says how it ended."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import traceback
import warnings

import jax
import numpy as np

import leapjax
from leapjax import UserError, converters
from leapjax.cli import convert as convert_command
from leapjax.cli import decode as decode_command
from tests.fuzz import families, text_oracle
from tests.fuzz.case import GOLDEN

EQUAL, REFUSED, UNCHECKED = "equal", "refused", "accepted, no oracle"
BAD = DIFFERENT, TRACEBACK, HALF, LONG, HANGS = (
    "silently different", "traceback", "half-written", "no short line", "hangs",
)  # fmt: skip
LONGEST = 600  # characters of a message
SECONDS = 30  # of CPU that a case may take

IDS = np.random.default_rng(0).integers(0, 320, (2, 9)).astype(np.int32)


class Bad(Exception):
    """A case that failed: (how, what exactly)."""


class _Slow(BaseException):
    pass


def judge(case, tmp, oracle=True):
    """How a case ended.

    Args:
      case: the case.
      tmp: an empty folder; emptied again.
      oracle: compare with transformers where a text or Dream's logits are wanted.

    Returns:
      (one of the words above, a detail).
    """
    before = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _RUN.get(case.kind, _folder)(case, tmp, oracle)
    except Bad as e:
        return e.args
    except _Slow:
        return HANGS, f"more than {SECONDS} s of CPU"
    except UserError as e:
        return _short(e)
    except BaseException as e:  # noqa: BLE001 - a panic of a library is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        return TRACEBACK, "".join(traceback.format_exception(e)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        for path in tmp.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _late(number, frame):
    raise _Slow


def _short(error):
    text = str(error)
    if not text or "\n" in text.strip() or len(text) > LONGEST:
        return LONG, text[:1000]
    return REFUSED, text


def _folder(case, tmp, oracle):
    """A mutated checkpoint: load, convert, logits, text."""
    folder = case.write(tmp / "hub")
    model = case.kind in ("config", "weights")
    converted = _convert(folder, tmp, by_command=case.seed % 8 == 0) if model else None
    try:
        lm = leapjax.load(folder)
    except UserError as e:
        return _short(e)
    checked = []
    module = families.family(_raw(GOLDEN / case.checkpoint))
    if model and (oracle or not module.NEEDS_TRANSFORMERS):
        values = _logits(lm)
        if converted is not None:
            try:
                again = _logits(leapjax.load(converted))
            except UserError as e:
                raise Bad(DIFFERENT, f"loads as it is, but not once converted: {e}") from e
            if not np.array_equal(values, again, equal_nan=True):
                raise Bad(DIFFERENT, "other logits once converted")
        checked.append(_same_model(case, folder, lm, values))
    elif model:
        return UNCHECKED, ""
    else:
        golden = _golden(case.checkpoint).config
        if lm.config != golden and case.kind != "generation":
            raise Bad(DIFFERENT, f"{lm.config}, the golden one is {golden}")
    if not model and oracle:
        checked.append(_same_text(case, folder, lm))
    return (UNCHECKED, "") if UNCHECKED in checked else (EQUAL, "")


def _convert(folder, tmp, by_command):
    """The converted checkpoint, or None where it was refused; then nothing may be left."""
    out = tmp / "out"
    before = set(os.listdir(tmp))
    if by_command:
        looked, _ = _command(convert_command.main, ["--check", str(folder), str(out)])
        status, _ = _command(convert_command.main, [str(folder), str(out)])
        refused = status == 2
        if looked == 2 and not refused:
            raise Bad(DIFFERENT, "--check refuses what converts")
    else:
        try:
            converters.convert(folder, out)
            refused = False
        except UserError as e:
            refused = True
            if _short(e)[0] == LONG:
                raise Bad(LONG, str(e)) from e
    left = set(os.listdir(tmp)) - before - ({"out"} if not refused else set())
    if left:
        raise Bad(HALF, f"a refused conversion left {sorted(left)}" if refused else str(left))
    return None if refused else out


def _command(main, argv):
    """(status, stderr) of a command run in this process; its complaint must be one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    lines = [line for line in err.getvalue().splitlines() if ": error: " in line]
    if status not in (0, 2) or (status == 2) != (len(lines) == 1) or "Traceback" in err.getvalue():
        raise Bad(TRACEBACK, f"status {status}: {err.getvalue()[-1500:]}")
    if lines and len(lines[0]) > LONGEST:
        raise Bad(LONG, lines[0])
    return status, err.getvalue()


@functools.cache
def _golden(checkpoint):
    return leapjax.load(GOLDEN / checkpoint)


def _logits(lm):
    # Operation by operation: nothing is compiled for a shape that comes once.
    with jax.disable_jit():
        return np.asarray(lm.logits(np.minimum(IDS, lm.config.vocab_size - 1)))


@functools.cache
def _golden_tensors(checkpoint):
    return families.read_tensors(GOLDEN / checkpoint)


def _raw(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def _same_model(case, folder, lm, values):
    raw = _raw(folder)
    module = families.family(raw)
    if why := module.must_refuse(raw):
        raise Bad(DIFFERENT, f"accepted although its config has {why}")
    try:
        if case.changes("model", "pytorch"):
            tensors = families.read_tensors(folder)
        else:
            tensors = _golden_tensors(case.checkpoint)
        with np.errstate(all="ignore"):
            want = module.logits(raw, tensors, np.minimum(IDS, lm.config.vocab_size - 1))
            facts = module.facts(raw)
    except _Slow:
        raise
    except Exception:  # noqa: BLE001 - refused by the original, however it does that
        return UNCHECKED
    if not np.isfinite(want).all():
        return UNCHECKED
    for row, ref in zip(values, want, strict=True):
        off = np.abs(row - ref).max() / np.abs(ref).max()
        if not off <= 2e-5:
            raise Bad(DIFFERENT, f"logits differ by {off:.3g} of the largest")
    for name, value in facts.items():
        if getattr(lm.config, name) != value:
            raise Bad(DIFFERENT, f"{name} is {getattr(lm.config, name)}, config.json has {value}")
    return EQUAL


def _same_text(case, folder, lm):
    try:
        theirs = text_oracle.tokenizer(folder)
        theirs.encode("a")
    except _Slow:
        raise
    except BaseException as e:  # noqa: BLE001 - the library's ways to refuse
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        return UNCHECKED
    if lm.codec is None:
        raise Bad(DIFFERENT, "no tokenizer, though transformers finds one")
    try:
        text_oracle.compare(case, lm.codec, lm.config, theirs)
    except UserError as e:
        return _short(e)[0]
    except text_oracle.Differs as e:
        raise Bad(DIFFERENT, str(e)) from e
    return EQUAL


def _decode(case, tmp, argv):
    """`leapjax decode` on the golden checkpoint, loaded once."""
    lm = _golden(case.checkpoint)
    before, decode_command.loaded = decode_command.loaded, lambda *a, **k: lm
    try:
        return _command(decode_command.main, ["--model", str(GOLDEN / case.checkpoint), *argv])
    finally:
        decode_command.loaded = before


def _records(case, tmp, oracle):
    source, out = tmp / "in.jsonl", tmp / "out.jsonl"
    source.write_bytes(case.extra["records"].encode("latin-1"))
    argv = [
        "--input",
        str(source),
        "--output",
        str(out),
        "--gen-length",
        "8",
        "--block-length",
        "8",
    ]
    status, text = _decode(case, tmp, [*argv, "--batch-size", "2", *case.extra["flags"]])
    left = {p.name for p in tmp.iterdir()} - {"in.jsonl", "out.jsonl", "out.errors.jsonl"}
    if left:
        raise Bad(HALF, f"left {sorted(left)}")
    if status == 2:
        if out.exists():
            raise Bad(HALF, "a refused job left its output")
        return REFUSED, text
    lm = _golden(case.checkpoint)
    for line in out.read_text("utf-8").splitlines():
        record = json.loads(line)
        ids = record["output_ids"]
        if not all(0 <= i < lm.config.vocab_size for i in ids) or lm.config.mask_token_id in ids:
            raise Bad(DIFFERENT, line)
        if len(record["commit_step"]) != len(ids):
            raise Bad(DIFFERENT, line)
    return EQUAL, ""


def _options(case, tmp, oracle):
    import yaml

    way, given = case.extra["way"], dict(case.extra["options"])
    argv = ["--prompt", "Tom has 2 apples.", "--batch-size", "2"]
    if way == "python":
        config = leapjax.DecodeConfig(**given)
        if _allowed(case, config):
            _golden(case.checkpoint).generate("Tom has 2 apples.", config, batch_size=2)
        return EQUAL, ""
    if way == "record":
        record = {"prompt": "Tom has 2 apples.", "options": given}
        base = leapjax.DecodeConfig(gen_length=8, block_length=8)
        request = _golden(case.checkpoint).request(record, base)
        if _allowed(case, request.config):
            _golden(case.checkpoint).generate([record], base, batch_size=2)
        return EQUAL, ""
    if way == "yaml":
        (tmp / "c.yaml").write_text(yaml.safe_dump(given, allow_unicode=True), "utf-8")
        from leapjax.config.resolve import resolve
        from leapjax.options import read_config

        config = resolve({}, read_config(tmp / "c.yaml"))
        argv += ["--config", str(tmp / "c.yaml")]
    else:
        for name, value in given.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                argv.append(flag if value else f"--no-{flag[2:]}")
            else:
                argv.append(f"{flag}={value}")
        config = None
    if config is not None and not _allowed(case, config):
        return EQUAL, ""
    if config is None and not _flags_allowed(case, argv):
        return EQUAL, ""
    status, text = _decode(case, tmp, argv)
    return (REFUSED if status == 2 else EQUAL), text


_PROGRAMS = set()
MOST_PROGRAMS = 24  # each costs a compilation


def _allowed(case, config):
    """Whether to decode with these options: there are only so many programs to compile."""
    filtering = config.top_p < 1 or config.top_k is not None
    key = (
        *(case.checkpoint, config.policy, config.value("schedule"), config.cache),
        *(config.gen_length, config.block_length),
        *(config.cfg_scale > 0, config.temperature > 0, filtering),
    )
    if config.gen_length > 16 or (key not in _PROGRAMS and len(_PROGRAMS) >= MOST_PROGRAMS):
        return False
    _PROGRAMS.add(key)
    return True


def _flags_allowed(case, argv):
    """The same, for flags; what they don't parse to is refused before anything is compiled."""
    from leapjax.cli.common import Parser
    from leapjax.config.resolve import resolve
    from leapjax.options import set_flags

    parser = Parser(prog="leapjax decode")
    decode_command.add_arguments(parser)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return _allowed(case, resolve(set_flags(parser.parse_args(argv))))
    except (SystemExit, UserError):
        return True


_RUN = {"records": _records, "options": _options}


def scratch(tmp):
    """An empty folder inside `tmp`."""
    path = tmp / "case"
    path.mkdir(exist_ok=True)
    return path
