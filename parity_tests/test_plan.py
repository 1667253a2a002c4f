"""`python -m launch.plan`: its reading of compiled programs and its arithmetic, by hand; `tiny` really compiled."""

import dataclasses
import json
import statistics

import pytest

from jaxgpt.errors import BadInput
from jaxgpt.rates import RATES, WITHOUT_KERNELS, scaled, step_seconds, why_unknown
from jaxgpt.recipes import RECIPES
from launch import plan
from launch.chips import CHIPS, rates_of
from launch.collectives import Collective, collectives, gradient_overlap
from launch.estimate import collective_seconds, estimate, expected_collectives
from launch.program import compiled, divisors, largest, refused
from launch.topology import topology
from parity_tests.programs import ROOT

MUON = RECIPES["muon-2024-10-12"]
H100 = CHIPS["h100"]
RATE = RATES["NVIDIA H100 80GB HBM3"]


def exchange(kind: str = "all-reduce", size: int = 10**9, devices: int = 8, waits: bool = True, during: int = 0):
    return Collective(kind, size, devices, 1, "", waits, during, during, 0)


def test_a_ring_sums_a_gigabyte_over_eight_h100_in_2_x_seven_eighths_over_450_gb_a_second():
    assert collective_seconds(exchange(), H100, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)


def test_a_gather_takes_half_of_a_sum():
    assert collective_seconds(exchange("all-gather"), H100, 8) == pytest.approx(7 / 8 * 1e9 / 450e9)


def test_between_hosts_a_device_sums_the_eighth_that_is_its_own():
    # 8 hosts of 8: 2 (7/8 / 450e9 + 1/8 * 7/8 / 50e9) a byte
    assert collective_seconds(exchange(devices=64), H100, 64) == pytest.approx(2e9 * (7 / 8 / 450e9 + 7 / 64 / 50e9))


def test_a_permutation_sends_all_its_bytes_once():
    assert collective_seconds(exchange("collective-permute"), H100, 2) == pytest.approx(1e9 / 450e9)


def test_an_all_to_all_keeps_an_eighth_at_home():
    assert collective_seconds(exchange("all-to-all"), H100, 8) == pytest.approx(7 / 8 * 1e9 / 450e9)


def test_on_one_h100_the_prediction_is_what_was_measured():
    file = ROOT / "benchmarks/results/kernels-h100/muon-torch.json"
    (ours,) = [run for run in json.loads(file.read_text())["runs"] if run["trainer"] == "jaxgpt"]
    measured = statistics.median(ours["step_ms"][10:]) / 1e3
    assert sum(step_seconds(MUON, 1, RATE).values()) == pytest.approx(measured, rel=3e-3)


def test_without_kernels_it_is_what_was_measured_before():
    assert sum(step_seconds(MUON, 1, WITHOUT_KERNELS).values()) == pytest.approx(1019.4e-3, rel=3e-3)


def test_four_h100_take_what_is_predicted():
    (four,) = json.loads((ROOT / "benchmarks/results/kernels-h100/four.json").read_text())["runs"]
    predicted = estimate(MUON, 4, H100, RATE, expected_collectives(MUON, 4)).step * 1e3
    assert statistics.median(four["step_ms"][10:]) == pytest.approx(predicted, rel=0.03)


def test_eight_h100_are_predicted_by_hand():
    # A micro-batch without Newton-Schulz 116.3 ms, of which the update's passes are 1.3 more; six matrices of 13.59 and
    # three of 54.36 GFLOP at 466 TFLOP/s and 0.1 ms for each of the two batches.
    newton_schulz = 0.2 + (6 * 13.59 + 3 * 54.36) / 466
    assert sum(step_seconds(MUON, 8, RATE).values()) * 1e3 == pytest.approx(116.3 + 1.3 + newton_schulz, rel=2e-3)


def test_products_are_shared_and_passes_over_the_weights_are_not():
    one, eight = step_seconds(MUON, 1, RATE), step_seconds(MUON, 8, RATE)
    assert (one["products"] / eight["products"], one["update"] / eight["update"]) == (8, 1)


def test_one_matrix_takes_the_time_that_was_measured_for_one():
    model = dataclasses.replace(MUON.model, width=768, layers=1)
    lone = dataclasses.replace(MUON, model=model)
    # 4 square ones and 2 long ones over 64 devices: one of each on a device
    assert step_seconds(lone, 64, RATE)["newton-schulz"] == pytest.approx(0.13e-3 + 0.217e-3, rel=0.02)


def test_a_chip_that_was_not_measured_is_scaled_by_datasheets():
    v5e = rates_of(CHIPS["v5e"])
    assert v5e.products / WITHOUT_KERNELS.products == pytest.approx(197 / 989.5)
    assert v5e.logit / WITHOUT_KERNELS.logit == pytest.approx(3.35 / 0.819)
    assert v5e.source.startswith("not measured on TPU v5 lite")


def test_scaling_by_one_changes_no_rate():
    assert dataclasses.replace(scaled(RATE, 1.0, 1.0, "itself"), source=RATE.source) == RATE


@pytest.mark.parametrize("name", ["tiny", "opt-soap-2024-10-29", "opt-shampoo-2024-10-29"])
def test_no_time_is_said_of_what_was_not_measured(name):
    assert why_unknown(RECIPES[name])


def test_exchanges_with_products_meanwhile_are_hidden_and_others_exposed():
    found = [exchange(), exchange("all-gather", waits=False, during=3), exchange("all-gather", waits=False)]
    predicted = estimate(MUON, 8, H100, RATE, found)
    once = 7 / 8 * 1e9 / 450e9
    assert (predicted.exposed, predicted.hidden) == (pytest.approx(3 * once), pytest.approx(once))
    assert predicted.most - predicted.least == pytest.approx(4 * once)


def test_what_a_step_has_to_exchange_is_all_gradients_and_the_hidden_updates():
    said = {each.kind: each.bytes for each in expected_collectives(MUON, 8)}
    assert said == {"all-reduce": 4 * 123_568_128, "all-gather": 2 * 12 * 12 * 768**2}


SCHEDULED = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%sum
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %first = f32[4,4]{1,0} dot(%x, %x), metadata={op_name="jit(step)/transpose(jvp())/dot_general"}
  %start = f32[4,4]{1,0} all-reduce-start(%first), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%sum
  %second = f32[4,4]{1,0} dot(%x, %x), metadata={op_name="jit(step)/transpose(jvp())/dot_general"}
  %done = f32[4,4]{1,0} all-reduce-done(%start)
  %gather = f32[16,4]{1,0} all-gather(%done), channel_id=2, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
  %scatter = bf16[2,4]{1,0} reduce-scatter(%second), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%sum
  %v = f32[8]{0} bitcast(%x)
  ROOT %loop = f32[8]{0} while(%v), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


@pytest.fixture(scope="module")
def read() -> dict[str, Collective]:
    return {f"{each.kind} {each.bytes}": each for each in collectives(SCHEDULED)}


def test_all_exchanges_of_a_program_are_found_with_their_bytes(read):
    assert list(read) == ["all-reduce 32", "all-reduce 64", "all-gather 256", "reduce-scatter 64"]


def test_what_is_scheduled_between_start_and_done_runs_meanwhile(read):
    assert (read["all-reduce 64"].waits, read["all-reduce 64"].during_backward) == (False, 1)


def test_an_exchange_without_a_start_is_waited_for(read):
    assert (read["all-gather 256"].waits, read["all-gather 256"].during) == (True, 0)


def test_a_product_that_neither_feeds_nor_needs_an_exchange_could_run_meanwhile(read):
    assert read["all-gather 256"].free_backward == 1  # the second; the first feeds it


def test_groups_are_read_in_all_three_spellings(read):
    assert [each.devices for each in read.values()] == [8, 4, 4, 4]


def test_an_exchange_in_a_loop_counts_as_often_as_the_loop_runs(read):
    assert read["all-reduce 32"].times == 5


TPU = """
%start_fused (p: f32[2,4]) -> (f32[2,4], f32[16,4]) {
  %p = f32[2,4]{1,0} parameter(0)
  %g = f32[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %c = (f32[2,4]{1,0}, f32[16,4]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%between (q: f32[2,4], r: f32[4,4]) -> f32[2,4] {
  %q = f32[2,4]{1,0} parameter(0)
  %r = f32[4,4]{1,0} parameter(1)
  %g2 = f32[16,4]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %conv = f32[2,4]{1,0} convolution(%q, %r), dim_labels=bf_io->bf
}

%done_fused (s: f32[2,4]) -> f32[16,4] {
  %s = f32[2,4]{1,0} parameter(0)
  %g3 = f32[16,4]{1,0} all-gather(%s), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %d = f32[16,4]{1,0} custom-call(%s, %g3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[2,4], w: f32[4,4]) -> f32[16,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %begin = (f32[2,4]{1,0}, f32[16,4]{1,0}) fusion(%x), kind=kCustom, calls=%start_fused
  %work = f32[2,4]{1,0} fusion(%x, %w), kind=kOutput, calls=%between
  ROOT %end = f32[16,4]{1,0} fusion(%x), kind=kCustom, calls=%done_fused
}
"""


def test_a_tpu_s_fused_exchange_counts_once_with_the_product_that_runs_meanwhile():
    (found,) = collectives(TPU)
    assert (found.kind, found.bytes, found.waits, found.during) == ("all-gather", 256, False, 1)


def test_gradients_that_travel_during_the_backward_pass_are_said_to():
    said = gradient_overlap([exchange(waits=False, during=2), exchange(size=3 * 10**9)])
    assert said.startswith("25% of 4,000 MB travel while products of the backward pass run")


def test_gradients_that_wait_are_said_to():
    assert "each sum waits for the last product" in gradient_overlap([exchange()])


def test_a_refusal_s_figures_are_read_in_both_spellings():
    used = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.5G of "
    assert refused(used + "15.75G hbm. Exceeded hbm capacity by 2.75G.") == (int(18.5 * 2**30), int(15.75 * 2**30))
    total = "the total memory required for HLO temporaries (298.00G) exceeds available HBM (512.00M)."
    assert refused(total) == (298 * 2**30, 512 * 2**20)


@pytest.mark.parametrize("most", [None, 1, 2, 8, 64])
def test_bisection_finds_the_largest_that_fits(most):
    asked = []

    def fits(n: int) -> bool:
        asked.append(n)
        return most is not None and n <= most

    assert largest(divisors(64), fits, first=64) == most
    assert len(asked) == len(set(asked)) <= 4


@pytest.mark.parametrize("name", ["", "h100", "h100:0", "h100:12", "h200:x", "v5e:7", "b300:8", "h100:99999999"])
def test_a_topology_that_is_not_made_is_refused(name):
    with pytest.raises(BadInput, match="--topology"):
        topology(name)


def test_a_plan_for_tpus_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        plan.main(["--topology", "v5e:8"])
    assert (end.value.code, "libtpu" in capsys.readouterr().err) == (2, True)


def test_a_plan_for_gpus_says_where_to_run_it(capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["--topology", "h100:8"])
    assert (end.value.code, "one NVIDIA H100" in capsys.readouterr().err) == (2, True)


def test_a_micro_batch_that_does_not_divide_is_refused_before_compiling(capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["--topology", "cpu:8", "--recipe", "tiny", "--micro-batch", "3"])
    assert (end.value.code, "--micro-batch 3" in capsys.readouterr().err) == (2, True)


SMALL = ["--recipe", "tiny", "--model.layers", "1", "--model.width", "32", "--model.context", "16"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.main(["--topology", "cpu:8", *SMALL, "--out", str(out)])
    return json.loads(out.read_text())


def test_a_step_on_eight_devices_exchanges_gradients_and_updates_and_nothing_else(planned):
    hidden, tied = 12 * 32**2, 256 * 32
    said = [(each["kind"], each["bytes"]) for each in planned["collectives"]]
    assert sum(size for kind, size in said if kind == "all-reduce") == 4 * (hidden + tied + 1)  # and the loss
    # Two batches, of 4 matrices and of 2, each filled up to 8
    assert sum(size for kind, size in said if kind == "all-gather") == 4 * (8 * 32**2 + 8 * 4 * 32**2)
    assert {kind for kind, _ in said} == {"all-reduce", "all-gather"}


def test_its_arguments_are_weights_moments_and_tokens(planned):
    hidden, tied = 12 * 32**2, 256 * 32
    state = 4 * (hidden * 2 + tied * 3)  # weights and momentum; weights and AdamW's two moments
    assert 0 <= planned["memory"]["arguments"] - state < 1024


def test_the_largest_micro_batch_of_an_unlimited_device_is_its_share(planned):
    assert planned["largest_micro_batch"] == 2


def test_a_plan_that_does_not_fit_shows_its_figures_and_exits_with_1(capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["--topology", "cpu:8", *SMALL, "--memory", "0.0001"])
    said = capsys.readouterr().out
    assert (end.value.code, "DOES NOT FIT" in said, "no micro-batch fits" in said) == (1, True, True)


def test_what_the_compiler_refuses_is_no_traceback(monkeypatch):
    import jax

    from jaxgpt import ahead
    from jaxgpt.recipes import precision, reduced

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 2.0G of 1.0G hbm. Exceeded hbm capacity by 1.0G.")

    monkeypatch.setattr(ahead, "compile_step", refuse)
    recipe = reduced("muon-2024-10-12")
    said = compiled(recipe, precision(recipe, None, "exact"), jax.devices("cpu")[:1], 1, None)
    assert (said.fits, said.needs, said.limit) == (False, 2 * 2**30, 2**30)


def test_without_compiling_the_time_of_eight_h100_is_predicted_anywhere(tmp_path, capsys):
    out = tmp_path / "plan.json"
    plan.main(["--topology", "h100:8", "--no-compile", "--out", str(out)])
    said = json.loads(out.read_text())["time"]
    # 118.3 ms of work; 494 MB summed and 170 MB gathered over NVLink
    exchanged = (2 * 7 / 8 * 494.27e6 + 7 / 8 * 169.87e6) / 450e9 * 1e3
    assert said["exposed_ms"] == pytest.approx(exchanged, rel=1e-3)
    assert said["step_ms"] == pytest.approx(118.3 + exchanged, rel=2e-3)
    assert said["minutes"] == pytest.approx(6000 * said["step_ms"] / 60_000)
    assert "not known without compiling" in capsys.readouterr().out
