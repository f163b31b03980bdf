"""A job of 23 records for quick tests, and what the processes that others start run under."""

import os
from pathlib import Path

import pytest

from leapjax.jobs import job, members
from tests.jobs.fakes import BAD, OPTIONS, write_input

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory, kernels):
    """One CPU device, and a cache of compiled programs that a module's processes share."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def prompts(tmp_path):
    return write_input(tmp_path / "in.jsonl", 23, BAD, note="ü")


@pytest.fixture
def spec(prompts, tmp_path):
    def make(**changes):
        fields = {
            "input": prompts,
            "output": str(tmp_path / "out"),
            "options": OPTIONS,
            "max_errors": 5,
            "shard_size": 5,
            "num_samples": 2,
            "details": True,
        }
        return job.JobSpec(**(fields | changes))

    return make


@pytest.fixture
def on_disk(monkeypatch):
    """Puts a `Disk` in the place of the output folder."""

    def put(disk):
        monkeypatch.setattr(job.storage, "folder", lambda path: disk)
        monkeypatch.setattr(members.Members, "_keep_beating", lambda self: lambda: None)
        return disk

    return put
