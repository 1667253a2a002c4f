"""What kind of work a kernel does, from its name and, in a JAX program, from the functions that its operations are in.

A kernel that fits nothing is of the kind `UNKNOWN`, never left out.
"""

import re
from collections import Counter

from benchmarks.hlo import Instruction

GEMM, NEWTON_SCHULZ, ATTENTION = "GEMM", "Newton-Schulz GEMM", "attention"
GEMM_ACTIVATION = "GEMM with activation"
CROSS_ENTROPY, NORMS, ROTARY, ACTIVATION = "cross-entropy", "norms", "rotary", "activation"
RESIDUAL, EMBEDDING, GRADIENT_SUM, CASTS = "residual", "embedding", "gradient sum", "weight casts"
OPTIMIZER, COPIES, COLLECTIVES, UNKNOWN = "optimiser", "copies", "collectives", "unknown"
_MODEL = (
    GEMM,
    GEMM_ACTIVATION,
    ATTENTION,
    CROSS_ENTROPY,
    NORMS,
    ROTARY,
    ACTIVATION,
    RESIDUAL,
    EMBEDDING,
    GRADIENT_SUM,
    CASTS,
)
KINDS = (*_MODEL, NEWTON_SCHULZ, OPTIMIZER, COPIES, COLLECTIVES, UNKNOWN)

_FUNCTIONS = {
    ATTENTION: "attend _written_out Attention",
    GEMM_ACTIVATION: "activated_product gradient_product _product",
    CROSS_ENTROPY: "cross_entropy _cross_entropy _scan_chunks _forward _backward plain_cross_entropy logits cap "
    "softmax_gradient",
    NORMS: "rms_norm Norm add_norm _add_norm_forward _add_norm_backward _norm_forward _norm_backward",
    ROTARY: "rotate rotary_tables",
    ACTIVATION: "relu_squared gelu gelu_tanh",
    RESIDUAL: "Block",
    EMBEDDING: "embed",
    GRADIENT_SUM: "accumulate device_gradients",
    CASTS: "unstack residuals",
    OPTIMIZER: "newton_schulz orthogonal_factor scale_by_muon update apply_updates multiplier norms tree_norm clip "
    "scale_by_adam scale_by_schedule soap shampoo by_shape",
}
_KIND_OF_FUNCTION = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}
_IN_NEWTON_SCHULZ = {"newton_schulz"}
_JITTED = re.compile(r"jit\((\w+)\)")

# Library kernels have names of their own: cuBLAS, CUTLASS, cuDNN, NCCL, and what PyTorch runs outside its compiler.
_GEMM_NAME = re.compile(r"nvjet|cutlass|gemm|xmma|splitKreduce|cublas", re.IGNORECASE)
_ATTENTION_NAME = re.compile(r"flash|fmha|sdpa|mha_|attention|cudnn_generated_fort_native", re.IGNORECASE)
_COLLECTIVE_NAME = re.compile(r"nccl|all-?reduce|all-?gather|reduce-?scatter|collective", re.IGNORECASE)
_COPY_NAME = re.compile(r"mem(cpy|set)|transpose|copy_kernel|^(wrapped_)?(copy|transpose)([._]\d+)*$", re.IGNORECASE)
_COPY_OPCODES = {"copy", "transpose", "copy-start", "bitcast-convert", "slice", "concatenate", "pad"}

# Words in the names that Inductor gives its kernels, which list the operations fused; the first that fits decides.
_INDUCTOR = (
    (CROSS_ENTROPY, ("log_softmax", "nll_loss", "logsumexp", "cross_entropy")),
    (ROTARY, ("cat", "slice_backward")),
    (ACTIVATION, ("relu", "threshold_backward", "gelu")),
    (NORMS, ("rsqrt", "mean", "pow")),
    (EMBEDDING, ("embedding",)),
)


def kind_of_jax(name: str, instruction: Instruction | None) -> str:
    """The kind of a kernel of a JAX program.

    Args:
      name: the kernel's.
      instruction: of the compiled step, that it computes; None where the trace doesn't say.
    """
    if instruction is None:
        return _by_name(name)
    target = instruction.target.lower()
    if _COLLECTIVE_NAME.search(name) or _COLLECTIVE_NAME.search(instruction.opcode):
        return COLLECTIVES
    if "cudnn" in target or _ATTENTION_NAME.search(target) or _ATTENTION_NAME.search(name):
        return ATTENTION
    if instruction.has_product or "cublas" in target or (not target and _GEMM_NAME.search(name)):
        if _in_any(instruction, _IN_NEWTON_SCHULZ):
            return NEWTON_SCHULZ
        return ATTENTION if _in_any(instruction, {"_written_out"}) else GEMM
    if instruction.opcode in _COPY_OPCODES:
        return COPIES
    if instruction.target and (own := _kind_of_jitted(instruction.scopes)):
        return own
    kinds = Counter(kind for stack in instruction.stacks if (kind := _kind_of_stack(stack)))
    return kinds.most_common(1)[0][0] if kinds else _by_name(name)


def kind_of_torch(name: str, annotations: list[str]) -> str:
    """The kind of a kernel of a PyTorch program.

    Args:
      name: the kernel's.
      annotations: names of the profiler's ranges around its launch; optimisers have such.
    """
    known = _by_name(name)
    if any(each.startswith("Optimizer.step") for each in annotations):
        return NEWTON_SCHULZ if known == GEMM else OPTIMIZER
    if known == UNKNOWN and name.startswith("triton_"):
        words = f"_{name}_"
        return next((kind for kind, fused in _INDUCTOR if any(f"_{word}_" in words for word in fused)), UNKNOWN)
    return known


def _by_name(name: str) -> str:
    if name.startswith("triton_"):
        return UNKNOWN
    for kind, pattern in (
        (COLLECTIVES, _COLLECTIVE_NAME),
        (ATTENTION, _ATTENTION_NAME),
        (GEMM, _GEMM_NAME),
        (COPIES, _COPY_NAME),
    ):
        if pattern.search(name):
            return kind
    return OPTIMIZER if "multi_tensor_apply" in name or "FusedAdam" in name else UNKNOWN


def _in_any(instruction: Instruction, functions: set[str]) -> bool:
    return any(functions & set(_parts(function)) for stack in instruction.stacks for function in stack)


def _kind_of_stack(stack: tuple[str, ...]) -> str | None:
    """That of the innermost function that says one."""
    for function in stack:
        for part in reversed(_parts(function)):
            if part in _KIND_OF_FUNCTION:
                return _KIND_OF_FUNCTION[part]
    return None


def _kind_of_jitted(scopes: tuple[str, ...]) -> str | None:
    """That of the innermost jitted function that says one: a backward pass has the stack of its forward call."""
    jitted = [name for scope in scopes for name in _JITTED.findall(scope)]
    return next((_KIND_OF_FUNCTION[name] for name in reversed(jitted) if name in _KIND_OF_FUNCTION), None)


def _parts(function: str) -> list[str]:
    """Of "scale_by_muon.<locals>.update.<locals>.<lambda>": scale_by_muon, update."""
    return [part for part in function.split(".") if not part.startswith("<")]
