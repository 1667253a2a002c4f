"""`python -m benchmarks.breakdown`: traces as a GPU writes them, made up, and a real one of the CPU."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import breakdown
from benchmarks.breakdown import Breakdown, of_run, table
from benchmarks.hlo import Instruction, instructions
from benchmarks.kinds import kind_of_jax, kind_of_torch
from benchmarks.traces import jax_kernels, torch_kernels
from parity_tests.test_throughput import SMALL

# A compiled step as XLA writes it, and functions of this project in it.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "train.py"

FunctionNames
1 "make_step.<locals>.loss"
2 "Block.__call__"
3 "rms_norm"
4 "scale_by_muon.<locals>.update"
5 "newton_schulz.<locals>.matmul"
6 "rotate"
7 "somebody's.own"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=2 end_line=2 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=3 end_line=3 column=1 end_column=2}
4 {file_name_id=1 function_name_id=4 line=4 end_line=4 column=1 end_column=2}
5 {file_name_id=1 function_name_id=5 line=5 end_line=5 column=1 end_column=2}
6 {file_name_id=1 function_name_id=6 line=6 end_line=6 column=1 end_column=2}
7 {file_name_id=1 function_name_id=7 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=2}
5 {file_location_id=5 parent_frame_id=5}
6 {file_location_id=6 parent_frame_id=3}
7 {file_location_id=7 parent_frame_id=2}

%fused_computation.1 (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %mul.1 = f32[4,8]{1,0} multiply(%p, %p), metadata={op_name="jit(step)/mul" stack_frame_id=3}
  %mul.2 = f32[4,8]{1,0} multiply(%mul.1, %p), metadata={op_name="jit(step)/mul" stack_frame_id=3}
  ROOT %add.1 = f32[4,8]{1,0} add(%mul.2, %p), metadata={op_name="jit(step)/add" stack_frame_id=2}
}

ENTRY %main.9 (w: f32[8,8], x: f32[4,8]) -> (f32[4,8], f32[]) {
  %w = f32[8,8]{1,0} parameter(0)
  %x = f32[4,8]{1,0} parameter(1)
  %loop_add_fusion.1 = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={stack_frame_id=2}
  %gemm.1 = (bf16[4,8]{1,0}, s8[4]{0}) custom-call(%x), custom_call_target="__cublas$gemm", metadata={stack_frame_id=2}
  %gemm.2 = (bf16[4,8]{1,0}, s8[4]{0}) custom-call(%x), custom_call_target="__cublas$gemm", metadata={stack_frame_id=5}
  %fmha.1 = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
  %loop_rotate.3 = f32[4,8]{1,0} negate(%x), metadata={op_name="jit(step)/neg" stack_frame_id=6}
  %all-reduce.1 = f32[4,8]{1,0} all-reduce(%x), replica_groups={}, metadata={stack_frame_id=2}
  ROOT %own.1 = f32[4,8]{1,0} negate(%x), metadata={op_name="jit(step)/neg" stack_frame_id=7}
}
"""


def on_stream(name: str, start: float, duration: float, operation: str | None = None, pid: int = 2, tid: int = 13):
    """A kernel's event in a trace of JAX."""
    args = {} if operation is None else {"hlo_op": operation, "hlo_module": "jit_step"}
    return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": duration, "name": name, "args": args}


def named(pid: int, process: str, **threads: str) -> list[dict]:
    made = [{"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}}]
    for tid, thread in threads.items():
        made.append({"ph": "M", "pid": pid, "tid": int(tid[1:]), "name": "thread_name", "args": {"name": thread}})
    return made


JAX_TRACE = [
    *named(1, "/host:CPU", t1="python"),
    *named(2, "/device:GPU:0", t13="Stream #13(Compute)", t14="Stream #14(MemcpyD2D)", t99="XLA Ops"),
    {"ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": 900, "name": "PjRtCApiLoadedExecutable::Execute"},
    on_stream("nvjet_tst_128x256", 100, 40, "gemm.1"),
    on_stream("nvjet_tst_128x128", 140, 10, "gemm.2"),
    on_stream("cudnn_generated_fort_native_sdpa", 160, 20, "fmha.1"),
    on_stream("loop_add_fusion_1", 180, 5),
    on_stream("loop_rotate_3", 185, 5),
    on_stream("MemcpyD2D", 186, 8, tid=14),
    on_stream("own_1", 194, 6),
    on_stream("ncclDevKernel_AllReduce", 210, 10, "all-reduce.1"),
    on_stream("gemm.1", 100, 40, "gemm.1", tid=99),
]
NO_EVENTS = gzip.compress(b'{"traceEvents": []}')
KINDS = ["GEMM", "Newton-Schulz GEMM", "attention", "norms", "rotary", "copies", "unknown", "collectives"]

TORCH_TRACE = [
    {"ph": "X", "cat": "user_annotation", "name": "Optimizer.step#Muon.step", "pid": 9, "tid": 7, "ts": 50, "dur": 20},
    {"ph": "X", "cat": "cuda_runtime", "name": "launch", "tid": 7, "ts": 10, "dur": 1, "args": {"correlation": 1}},
    {"ph": "X", "cat": "cuda_driver", "name": "launch", "tid": 7, "ts": 55, "dur": 1, "args": {"correlation": 2}},
    {"ph": "X", "cat": "cuda_driver", "name": "launch", "tid": 7, "ts": 60, "dur": 1, "args": {"correlation": 3}},
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 7, "ts": 9, "dur": 3},
    {
        **{"ph": "X", "cat": "kernel", "name": "nvjet_a", "ts": 100, "dur": 7},
        "args": {"correlation": 1, "device": 0},
    },
    {
        **{"ph": "X", "cat": "kernel", "name": "nvjet_b", "ts": 110, "dur": 5},
        "args": {"correlation": 2, "device": 0},
    },
    {
        **{"ph": "X", "cat": "kernel", "name": "triton_poi_fused_add_mul_3", "ts": 120, "dur": 5},
        "args": {"correlation": 3, "device": 0},
    },
]


def made_run(folder: Path, trainer: str, trace: list[dict], steps: int | None = 2) -> Path:
    """A run's folder with a made-up trace."""
    (folder / "trace" / "deep").mkdir(parents=True)
    config = {"trainer": trainer, "recipe": {"name": "tiny"}, "flags": {"profile": steps}, "devices": ["a card"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trace" / "step.hlo.txt").write_text(PROGRAM)
    with gzip.open(folder / "trace" / "deep" / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": trace}, file)
    return folder


def test_a_kernel_of_our_own_is_known_by_its_jitted_function_where_the_stack_is_its_forward_call_s():
    scope = "jit(step)/while/body/transpose(jvp(jit(_product)))/kernel/mpmd_map"
    backward = Instruction("custom-call", "mosaic_gpu_v2", (("MLP.__call__", "Block.open"),), (scope,), False)
    assert kind_of_jax("kernel", backward) == "GEMM with activation"


def test_each_kernel_of_a_stream_has_its_kind():
    assert [k.kind for k in jax_kernels(JAX_TRACE, instructions(PROGRAM))] == KINDS


def test_a_kernel_without_an_operation_is_known_by_its_name():
    kernel = jax_kernels([*JAX_TRACE[:6], on_stream("loop_rotate_3", 1, 2)], instructions(PROGRAM))[-1]
    assert kernel.kind == "rotary"


def test_operations_of_other_programs_are_not_taken_for_the_step_s():
    event = on_stream("loop_rotate_3", 1, 2)
    event["args"] = {"hlo_op": "loop_rotate.3", "hlo_module": "jit_other"}
    assert jax_kernels([*JAX_TRACE[:5], event], instructions(PROGRAM))[-1].kind == "unknown"


def test_a_fusion_is_of_the_kind_of_most_of_what_is_fused():
    fusion = instructions(PROGRAM)["loop_add_fusion.1"]
    assert [stack[0] for stack in fusion.stacks] == ["rms_norm", "rms_norm", "Block.__call__"]
    assert kind_of_jax("loop_add_fusion_1", fusion) == "norms"


def test_a_stack_goes_from_the_innermost_function_outwards():
    inner = ("rms_norm", "Block.__call__", "make_step.<locals>.loss")
    assert instructions(PROGRAM)["mul.1"].stacks == (inner,)


def test_parents_that_are_written_as_they_are_are_read_so():
    lower = PROGRAM
    for number in (1, 2, 3, 5):
        lower = lower.replace(f"parent_frame_id={number}}}", f"parent_frame_id={number - 1}}}")
    assert instructions(lower)["mul.1"].stacks == instructions(PROGRAM)["mul.1"].stacks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "norms"),
        ("triton_poi_fused__to_copy_cat_mul_neg_1", "rotary"),
        ("triton_poi_fused_pow_relu_4", "activation"),
        ("triton_red_fused__log_softmax_nll_loss_forward_5", "cross-entropy"),
        ("triton_poi_fused_add_view_9", "unknown"),
        ("void at::native::vectorized_elementwise_kernel<4>", "unknown"),
        ("void pytorch_flash::flash_bwd_kernel<x>", "attention"),
        ("sm90_xmma_gemm_bf16bf16", "GEMM"),
        ("void cutlass::device_kernel<flash::enable_sm90<x>>", "attention"),
        ("ncclDevKernel_AllReduce_Sum_bf16", "collectives"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
    ],
)
def test_pytorch_s_kernels_are_known_by_name(name, kind):
    assert kind_of_torch(name, []) == kind


def test_what_pytorch_launches_in_an_optimiser_is_the_optimiser_s():
    assert [k.kind for k in torch_kernels(TORCH_TRACE)] == ["GEMM", "Newton-Schulz GEMM", "optimiser"]


def test_kinds_idle_and_together_add_up_to_the_span(tmp_path):
    found = of_run(made_run(tmp_path / "run", "jaxgpt", JAX_TRACE), 3)
    assert found.span == pytest.approx(0.060)  # 100 to 220 us, two steps
    assert found.idle == pytest.approx(0.010)  # 150 to 160 and 200 to 210
    assert found.together == pytest.approx(0.002)  # 186 to 190
    assert sum(found.kinds.values()) + found.idle - found.together == pytest.approx(found.span)


def test_the_share_of_exchanges_that_other_kernels_cover_is_said(tmp_path):
    under = on_stream("loop_rotate_3", 215, 20)  # the exchange runs from 210 to 220
    found = of_run(made_run(tmp_path / "run", "jaxgpt", [*JAX_TRACE, under]), 3)
    assert found.overlapped == pytest.approx(0.0025)
    assert "other kernels ran during 0.00 ms of collectives, 50%" in table([found])
    assert of_run(made_run(tmp_path / "alone", "jaxgpt", JAX_TRACE), 3).overlapped == 0
    assert of_run(made_run(tmp_path / "none", "torch_ref", TORCH_TRACE), 3).overlapped == 0


def test_on_two_devices_the_mean_is_reported(tmp_path):
    second = [dict(e, pid=3) for e in JAX_TRACE if e["pid"] == 2]
    second[0] = named(3, "/device:GPU:1")[0]
    alone = of_run(made_run(tmp_path / "one", "jaxgpt", JAX_TRACE), 3)
    both = of_run(made_run(tmp_path / "two", "jaxgpt", JAX_TRACE + second), 3)
    assert both.kinds == pytest.approx(alone.kinds)
    assert (both.span, both.idle) == pytest.approx((alone.span, alone.idle))


def test_the_longest_kernels_come_first_with_runs_a_step(tmp_path):
    found = of_run(made_run(tmp_path / "run", "torch_ref", TORCH_TRACE, steps=1), 2)
    assert found.longest[0] == ("nvjet_a", "GEMM", 1, pytest.approx(0.007))
    assert len(found.longest) == 2


def test_unknown_kernels_have_a_line(tmp_path):
    assert "| unknown | 0.00 |" in table([of_run(made_run(tmp_path / "run", "jaxgpt", JAX_TRACE), 3)])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no run's folder"),
        (lambda folder: next(folder.glob("trace/deep/*")).unlink(), "holds no trace"),
        (lambda folder: next(folder.glob("trace/deep/*")).write_bytes(b"x"), "is no trace"),
        (
            lambda folder: next(folder.glob("trace/deep/*")).write_bytes(NO_EVENTS),
            "without",
        ),
    ],
    ids=["no config", "no trace", "broken trace", "no kernels"],
)
def test_a_folder_without_a_trace_is_refused(tmp_path, capsys, spoil, said):
    folder = made_run(tmp_path / "run", "jaxgpt", JAX_TRACE)
    spoil(folder)
    with pytest.raises(SystemExit) as end:
        breakdown.main([str(folder)])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_runs_or_a_recipe_are_given_and_not_both(capsys):
    with pytest.raises(SystemExit) as end:
        breakdown.main([])
    assert end.value.code == 2
    assert "--recipe" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("breakdown")


@pytest.fixture(scope="module")
def real(folder) -> Breakdown:
    """Two profiled steps of the real JAX trainer on the CPU."""
    words = ["--recipe", "tiny", "--trainers", "jaxgpt", "--profile", "2", f"--flags={SMALL}"]
    breakdown.main([*words, "--out", str(folder / "out.json"), "--keep", str(folder / "kept")])
    (found,) = json.loads((folder / "out.json").read_text())["runs"]
    assert (folder / "kept" / "jaxgpt-0" / "trace" / "step.hlo.txt").exists()
    return Breakdown(**found)


def test_a_real_step_has_time_in_each_part_of_the_model(real):
    parts = ("GEMM", "attention", "cross-entropy", "norms", "rotary", "activation", "Newton-Schulz GEMM", "optimiser")
    assert [kind for kind in parts if not real.kinds[kind]] == []


def test_a_tenth_at_most_of_a_real_step_is_unknown(real):
    assert real.kinds["unknown"] < 0.1 * sum(real.kinds.values())


def test_the_profiler_s_own_file_says_the_same(real, folder):
    for trace in (folder / "kept").glob("**/*.trace.json.gz"):
        trace.unlink()
    again = of_run(folder / "kept" / "jaxgpt-0", 12)
    assert again.kinds == pytest.approx(real.kinds, rel=0.01, abs=1e-4)


def test_command_buffers_are_turned_off_beside_the_user_s_own_flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    off = breakdown.NO_COMMAND_BUFFERS
    assert breakdown.without_command_buffers((("XLA_FLAGS", "--a=b"), ("X", "1"))) == (
        ("XLA_FLAGS", f"--a=b {off}"),
        ("X", "1"),
    )
    assert breakdown.without_command_buffers(()) == (("XLA_FLAGS", off),)
