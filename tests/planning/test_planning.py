"""Slices, the roofline by hand, and what is read from a compiled program."""

import pytest

from leapjax.cli import plan as command
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.errors import UserError
from leapjax.planning import chips, compiled, models, roofline
from leapjax.sharding import MeshShape


def program(name="llada-8b", cache="dual", length=768):
    return program_for(
        DecodeConfig(gen_length=256, cache=cache),
        models.find(name),
        length=length,
        dtype="bfloat16",
        eot_token_id=None,
        refresh_group=0 if cache == "none" else 4,
    )


def test_slices():
    where = chips.parse("v5e:2x4")
    assert (where.chips, where.devices, str(where)) == (8, 8, "v5e:2x4")
    assert chips.parse("7x:2x2x1").devices == 8  # four chips of two devices
    assert [s.chips for s in chips.slices("v6e", 16)] == [1, 4, 8, 16]
    for kind in chips.CHIPS:
        assert max(s.chips for s in chips.slices(kind)) == 256


@pytest.mark.parametrize("text", ["v4:2x2", "v5e", "v5e:2x2x2", "v5p:2x2", "v5e:0x4", "v5e:axb"])
def test_bad_slices(text):
    with pytest.raises(UserError, match="--topology"):
        chips.parse(text)


def test_presets_have_the_released_sizes():
    def count(name):
        model = models.find(name)
        return roofline.layer_weights(model) + 2 * model.vocab_size * model.d_model

    assert round(count("llada-8b") / 1e9, 2) == 8.02
    assert round(count("dream-7b") / 1e9, 2) == 7.62
    assert 95 < count("100b") / 1e9 < 120
    with pytest.raises(UserError, match="llada-8b"):
        models.find("nobody/knows")


def test_roofline_by_hand():
    chip, mesh, made = chips.CHIPS["v5e"], MeshShape(tensor=8), program()
    t = roofline.pass_time(chip, mesh, made, rows=64, positions=32, window=32)
    d, layers, mlp, v = 4096, 32, 12_288, 126_464
    weights = layers * (4 * d * d + 3 * d * mlp)
    flops = 2 * 64 * 32 * weights + layers * 4 * 64 * 32 * 768 * d + 2 * 64 * 32 * d * v
    assert t.compute == pytest.approx(flops / 8 / 197e12)
    cache = 2 * layers * d * 2 * 64 * (768 + 32) / 8
    assert t.memory == pytest.approx(((weights + d * v) * 2 / 8 + cache) / 819e9)
    exchanged = 2 * layers * 64 * 32 * d * 2
    assert t.exchange == pytest.approx(exchanged * 2 * 7 / 8 / 200e9)
    assert t.seconds == max(t.compute, t.memory, t.exchange)
    alone = roofline.pass_time(chip, MeshShape(), made, rows=1, positions=32, window=32)
    assert alone.exchange == 0 and alone.bound == "memory"


def test_prediction_counts_refreshes():
    chip, mesh, made = chips.CHIPS["v6e"], MeshShape(data=2, tensor=4), program()
    guess = roofline.predict(chip, mesh, made, slots=8, tokens_per_step=4)
    # 8 rows in groups of 4, once every 32 / 4 steps.
    assert guess.step == pytest.approx(guess.window.seconds + 8 / 4 / 8 * guess.full.seconds)
    assert guess.tokens_per_s_chip == pytest.approx(8 * 4 * 2 / guess.step / 8)
    plain = roofline.predict(chip, mesh, program(cache="none"), slots=8, tokens_per_step=4)
    assert plain.step == plain.full.seconds > guess.step


def test_collectives_are_read():
    text = """
  %a = bf16[4,768,4096]{2,1,0:T(8,128)} all-reduce(%x), metadata={op_name="run/while/body/mlp"}
  %b = (f32[64,32]{1,0}, s32[8]{0}) all-gather-start(%y), metadata={op_name="jit(run)/gather"}
  %c = f32[2]{0} add(%all-reduce.1, %z), metadata={op_name="jit(run)/while/body/add"}
"""
    one, two = compiled.read_collectives(text)
    assert (one.kind, one.bytes, one.in_loop) == ("all-reduce", 4 * 768 * 4096 * 2, True)
    assert (two.kind, two.bytes, two.in_loop) == ("all-gather", 64 * 32 * 4 + 8 * 4, False)


def test_recommendation_is_the_cheapest_that_fits():
    plans = [
        {"topology": "v5e:2x4", "chips": 8, "fits": True, "tokens_per_s_chip": 100.0},
        {"topology": "v6e:2x2", "chips": 4, "fits": True, "tokens_per_s_chip": 300.0},
        {"topology": "v6e:1x1", "chips": 1, "fits": False, "tokens_per_s_chip": 900.0},
    ]
    assert command.recommend(plans, {})["topology"] == "v6e:2x2"
    assert command.recommend(plans, {"v5e": 1.0, "v6e": 4.0})["topology"] == "v5e:2x4"
    assert command.recommend(plans[2:], {}) is None


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--topology", "v5e:2x4", "--sweep"],
        ["--topology", "v9:1x1"],
        ["--sweep", "v9"],
        ["--topology", "v5e:2x4", "--tokens-per-step", "0"],
        ["--topology", "v5e:2x4", "--model", "nothing/here"],
        ["--topology", "v5e:2x4", "--price", "v5e"],
    ],
)
def test_bad_input_is_one_line(argv, capsys):
    assert command.main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1
