"""Write a hub folder laid out exactly like a released model, filled with noise.

Config keys, tensor names, shard count and index are the model's; there are no tokenizer files,
so config.json has the mask id. For trying conversion and decoding at real size without the real
weights:

    python scripts/make_fake_checkpoint.py llada-8b-instruct fake/llada-8b   # 16 GB
    python scripts/make_fake_checkpoint.py dream-7b-instruct fake/dream --layers 4
    python scripts/make_fake_checkpoint.py llada2-flash fake/flash --sparse  # no weights
"""

import argparse
import sys
import time

from _command import installed

with installed():
    from leapjax.cli.common import Parser, human_bytes, run_main


def command(argv):
    """Parse the arguments and write the folder."""
    from leapjax.converters import fake

    parser = Parser(prog="make_fake_checkpoint", description=__doc__)
    parser.add_argument("model", help=", ".join(fake.MODELS))
    parser.add_argument("dst", help="folder to create")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--scale", type=int, default=1, help="divide widths and vocabulary by this")
    parser.add_argument("--shards", type=int, help="number of files (default: as on the hub)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="write true headers over holes: weights are zeros that take no room on disk",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder at DST")
    return write(parser.parse_args(argv))


def write(args: argparse.Namespace) -> int:
    """Write the folder and say how long it took."""
    from leapjax.converters import fake

    start = time.perf_counter()
    raw = fake.scaled(args.model, layers=args.layers, scale=args.scale)
    files = args.shards or fake.MODELS[args.model][1]
    kind = {"seed": args.seed, "sparse": args.sparse}
    size = sum(fake.write_fake(args.dst, raw, files, overwrite=args.overwrite, **kind))
    print(f"{args.dst}: {human_bytes(size)} in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(command, None, "make_fake_checkpoint"))
