"""What a folder job may not be resumed with: each difference is refused, or noted, in one line."""

import json

import pytest

import leapjax
from leapjax.errors import UserError
from leapjax.jobs import header, job, source
from leapjax.testing import tiny_config, tiny_params
from tests.jobs.fakes import OPTIONS, FakeLM, interrupted

CHANGES = {
    "threshold was 0.9, now 0.8": {"options": OPTIONS.replace(threshold=0.8)},
    'cache was "none", now "dual"': {"options": OPTIONS.replace(cache="dual")},
    "seed was 0, now 1": {"options": OPTIONS.replace(seed=1)},
    'early_stop was "block", now "off"': {"options": OPTIONS.replace(early_stop=False)},
    r"stop_ids was \[38\], now \[7\]": {"options": OPTIONS.replace(stop_ids=[7])},
    "num_samples was 2, now 3": {"num_samples": 3},
    "num_samples was 2, now off": {"num_samples": None},
    "details was true, now false": {"details": False},
    r'fields was off, now \["id", "text"\]': {"fields": ("id", "text")},
    "raw was false, now true": {"raw": True},
    r'stop was \[\], now \["x"\]': {"stop": ("x",)},
    "limit was off, now 22": {"limit": 22},
}


@pytest.mark.parametrize("message", CHANGES)
def test_resume_refuses_changed_options(spec, message):
    interrupted(spec)
    with pytest.raises(UserError, match=f"can't be resumed, because {message}; use what"):
        job.run(FakeLM(), spec(resume=True, **CHANGES[message]))
    job.run(FakeLM(), spec(resume=True))


def test_other_parameters_are_other_weights(spec):
    """Also where they were given directly and have no files."""
    config = tiny_config()
    one, same, other = (leapjax.LM(tiny_params(config, n), config, None) for n in (0, 0, 1))
    info = source.InputInfo("in.jsonl")
    first, again, changed = (header.describe(lm, spec(), info) for lm in (one, same, other))
    assert header.differences(first, again) == []
    assert header.differences(first, changed) == ["the model's weights changed"]


def begun_with(folder, **changes):
    """Make a job look as if another version of leapjax had begun it."""
    first, rest = (folder / "journal").read_text().split("\n", 1)
    (folder / "journal").write_text(f"{json.dumps(json.loads(first) | changes)}\n{rest}")


def test_another_version_is_a_note(spec, tmp_path):
    notes = []
    interrupted(spec, limit=20)
    begun_with(tmp_path / "out", versions={"leapjax": "0.1.9"})
    job.run(FakeLM(), spec(resume=True, limit=20), note=notes.append)
    assert len(notes) == 1 and notes[0].startswith("the job was begun with leapjax 0.1.9, and ")
    job.run(FakeLM(), spec(resume=True, limit=20), note=notes.append)
    assert len(notes) == 1  # it had ended
    job.run(FakeLM(), spec(overwrite=True), note=notes.append)
    assert len(notes) == 1


def test_a_switch_that_became_a_word_is_the_same(spec, tmp_path):
    interrupted(spec)
    options = json.loads((tmp_path / "out" / "journal").read_text().split("\n", 1)[0])["options"]
    begun_with(tmp_path / "out", options=options | {"early_stop": True})
    with pytest.raises(UserError, match='early_stop was "block", now "off"'):
        job.run(FakeLM(), spec(resume=True, options=OPTIONS.replace(early_stop="off")))
    job.run(FakeLM(), spec(resume=True))


def test_other_noise_is_refused(spec, tmp_path):
    """Whether a record that is still to come samples, nobody knows before it is read."""
    interrupted(spec)
    begun_with(tmp_path / "out", noise=1)
    before = (tmp_path / "out" / "journal").read_bytes()
    with pytest.raises(UserError, match="because the noise of sampled answers changed; use what"):
        job.run(FakeLM(), spec(resume=True))
    assert (tmp_path / "out" / "journal").read_bytes() == before


def test_a_job_of_leapjax_0_1_is_refused_or_overwritten(spec, tmp_path):
    interrupted(spec)
    out = tmp_path / "out"
    next(out.glob("*.open")).rename(out / "shard.open")
    for version in (1, 2):
        begun_with(out, format=version)
        before = sorted(out.iterdir()), (out / "journal").read_bytes()
        with pytest.raises(UserError, match=f"has format {version}, of leapjax 0.1; .*overwrite$"):
            job.check(spec(resume=True))
        with pytest.raises(UserError, match=f"has format {version}, of leapjax 0.1; .*overwrite$"):
            job.run(FakeLM(), spec(resume=True))
        assert (sorted(out.iterdir()), (out / "journal").read_bytes()) == before
    job.run(FakeLM(), spec(overwrite=True))
    assert not [p for p in out.iterdir() if p.suffix == ".open"]


def test_a_process_whose_job_is_overwritten_writes_nothing_more(spec):
    """Another job takes the folder over while this one decodes, as if it had been suspended."""
    import fsspec

    memory = fsspec.filesystem("memory")

    class Slow(FakeLM):
        def answer(self, request):
            if len(self.answered) == 12:
                for name in memory.glob("/lost/out/*"):
                    memory.rm(name)
                memory.pipe("/lost/out/journal", b'{"format": 4, "job": "another"}\n')
            return super().answer(request)

    with pytest.raises(UserError, match="memory://lost/out: another job has taken the folder over"):
        job.run(Slow(), spec(output="memory://lost/out", save_seconds=0))
    names = {name.rsplit("/", 1)[1] for name in memory.glob("/lost/out/*")}
    assert not [name for name in names if name.startswith("part-")], names
    assert memory.cat("/lost/out/journal") == b'{"format": 4, "job": "another"}\n'
    memory.rm("/lost", recursive=True)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("model_hash", "1" * 64, "the model's weights changed"),
        ("dtype", "bfloat16", 'dtype was "float32", now "bfloat16"'),
        ("quantization", "int8", 'quantization was off, now "int8"'),
    ],
)
def test_resume_refuses_another_model(spec, name, value, message):
    interrupted(spec)
    other = FakeLM()
    setattr(other, name, value)
    with pytest.raises(UserError, match=message):
        job.run(other, spec(resume=True))


def test_resume_refuses_another_tokenizer(spec, tmp_path):
    lm = FakeLM()
    lm.path = tmp_path / "model"
    lm.path.mkdir()
    (lm.path / "chat_template.jinja").write_text("a")
    interrupted(spec, lm)
    (lm.path / "chat_template.jinja").write_text("b")
    with pytest.raises(UserError, match="the model's tokenizer or chat template changed"):
        job.run(lm, spec(resume=True))


@pytest.mark.parametrize("where", ["start", "end"])
def test_resume_refuses_a_changed_input(spec, prompts, where):
    interrupted(spec)
    with open(prompts) as file:
        lines = file.readlines()
    if where == "start":
        lines[0] = lines[0].replace("r0022", "r0099")
    else:
        lines.append('{"id": "new", "prompt_ids": [1]}\n')
    with open(prompts, "w") as file:
        file.writelines(lines)
    with pytest.raises(UserError, match="the input changed"):
        job.run(FakeLM(), spec(resume=True))


def test_an_input_that_changes_while_it_is_read(spec, prompts):
    class Meddler(FakeLM):
        def answer(self, request):
            with open(prompts, "a") as file:
                file.write('{"id": "new", "prompt_ids": [1]}\n')
            self.answer = super().answer
            return super().answer(request)

    with pytest.raises(UserError, match="changed while it was read"):
        job.run(Meddler(), spec())
