"""A Ray Data job in a process of its own; one of its actors never comes back from a batch.

python ray_driver.py READER INPUT OUTPUT LOG MODEL
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray
import ray.data

from leapjax.integrations.ray import Decoder


class Watched(Decoder):
    """Says which process took which batch; one sleeps over its second until it is killed."""

    def __init__(self, log, **options):
        super().__init__(**options)
        self.log, self.count = Path(log), 0

    def __call__(self, batch):
        self.count += 1
        out = super().__call__(batch)
        (self.log / f"{os.getpid()}-{self.count}").write_text(json.dumps(out["id"].to_pylist()))
        if self.count == 2:
            with contextlib.suppress(FileExistsError), open(self.log / "victim", "x") as f:
                f.write(str(os.getpid()))
                f.flush()
                time.sleep(600)  # decoded, not yet handed over
        return out


def main(reader, source, output, log, model):
    home = tempfile.mkdtemp(prefix="leapjax-ray-", dir="/tmp")  # sockets want a short path
    try:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 << 20,
            _temp_dir=home,
        )
        data = getattr(ray.data, reader)(source, override_num_blocks=10).map_batches(
            Watched,
            fn_constructor_kwargs={
                "log": log,
                "model": model,
                "rows": 4,
                "gen_length": 16,
                "block_length": 8,
            },
            compute=ray.data.ActorPoolStrategy(size=2),
            batch_size=4,
            num_cpus=1,
        )
        with open(output, "w") as f:
            for row in data.iter_rows():
                f.write(json.dumps(row, default=lambda value: value.tolist()) + "\n")
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
