"""What rung 14 compares: a loaded published script with both trainers, a row a comparison."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxgpt.mesh
import jaxgpt.model
import jaxgpt.muon
import jaxgpt.optimizer
import jaxgpt.tokens
import jaxgpt.train
import torch_ref.mesh
import torch_ref.model
import torch_ref.muon
import torch_ref.optimizer
import torch_ref.tokens
import torch_ref.train
from jaxgpt import bridge
from jaxgpt.recipes import DType, precision, reduced
from parity_tests.pair import (
    TORCH_CPU,
    Pair,
    Weights,
    jax_batch,
    jax_moments,
    jax_state,
    jax_tree,
    relative,
    tokens,
    torch_batch,
    torch_moments,
    torch_state,
    torch_tree,
    weights,
    with_bases,
)
from parity_tests.published_report import Row
from parity_tests.published_script import (
    Script,
    Trained,
    build,
    by_our_names,
    our_epsilons,
    published_steps,
    widened,
    without,
)
from parity_tests.published_start import initial_weights, settings, stream
from parity_tests.tolerances import PUBLISHED, PUBLISHED_GRADIENTS, PUBLISHED_NEWTON_SCHULZ, SECOND_ORDER_CHANGE

DTYPES: tuple[DType, ...] = ("float64", "float32")
TABLES = "the script's rotary angles are float32 numbers, ours float64"
EPSILONS = "its RMSNorm takes eps from the inputs' dtype, here float32; ours are those of its bfloat16 run on torch 2.4"
OURS = ("torch_ref", "jaxgpt")

SUMMED = "XLA sums a bfloat16 product in another order than torch"


def make_pair(script: Script, dtype: DType, newton_schulz: DType | None = None) -> Pair:
    """Both trainers' steps: `parity_tests.pair.pair` with the whole schedule and a dtype for Newton-Schulz alone."""
    recipe = dataclasses.replace(reduced(script.recipe.name), schedule=script.recipe.schedule)
    exactly = precision(recipe, dtype, attention="exact")
    if newton_schulz:
        norm = recipe.optimizer.newton_schulz_norm_dtype
        exactly = dataclasses.replace(exactly, newton_schulz=newton_schulz, newton_schulz_norm=norm, rounding="pinned")
    mesh, micro = jaxgpt.mesh.make_mesh_of(jax.devices("cpu")[:1]), recipe.data.micro_batch
    in_torch = torch_ref.train.make_step(recipe, exactly, TORCH_CPU, micro)
    return Pair(recipe, exactly, jaxgpt.train.make_step(recipe, exactly, mesh, micro), in_torch, mesh)


def worst(got: Weights, want: Weights) -> float:
    """The largest relative difference of a tensor; infinite where names differ."""
    if got.keys() != want.keys():
        return np.inf
    return max((relative(got[n], want[n]) for n in want), key=lambda x: np.inf if np.isnan(x) else x)


def newton_schulz(script: Script) -> Iterator[Row]:
    """The iteration alone: bit for bit in bfloat16, and in wider dtypes with its casts taken out."""
    if "zeropower_via_newtonschulz5" not in script.names:
        return
    iterate, config = script.names["zeropower_via_newtonschulz5"], script.recipe.optimizer
    norm, rng = config.newton_schulz_norm_dtype, np.random.default_rng(0)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (256, 64), (64, 256), (128, 128))]
    steps = config.newton_schulz_steps
    published = [iterate(torch.tensor(G), steps=steps).to(torch.bfloat16) for G in given]
    ours = [torch_ref.muon.newton_schulz(torch.tensor(G), norm_dtype=getattr(torch, norm)) for G in given]
    other = sum(int((p != o).sum()) for p, o in zip(published, ours, strict=True))
    yield Row("1", "Newton-Schulz in bfloat16, elements that aren't the same bits: torch_ref", other, 0)
    pinned = [
        jax.jit(lambda G: jaxgpt.muon.newton_schulz(G, norm_dtype=jnp.dtype(norm), rounding="pinned"))(G) for G in given
    ]
    apart = max(relative(np.asarray(o, np.float64), p.double()) for o, p in zip(pinned, published, strict=True))
    yield Row("1", "Newton-Schulz in bfloat16, pinned: jaxgpt", apart, 0, SUMMED, 3e-2)
    for dtype in DTYPES:
        d, torch_d = jnp.dtype(dtype), getattr(torch, dtype)
        wide = [torch.tensor(G, dtype=torch_d) for G in given]
        with without("bfloat16"):
            want = [iterate(G, steps=steps) for G in wide]
        in_torch = [torch_ref.muon.newton_schulz(G, dtype=torch_d, norm_dtype=torch_d) for G in wide]
        in_jax = [jaxgpt.muon.newton_schulz(jnp.asarray(G.numpy()), dtype=d, norm_dtype=d) for G in wide]
        for what, got in (("torch_ref", in_torch), ("jaxgpt", in_jax)):
            apart = max(relative(g, w) for g, w in zip(got, want, strict=True))
            yield Row("1", f"Newton-Schulz without its cast, {dtype}: {what}", apart, PUBLISHED_NEWTON_SCHULZ[dtype])


def jax_logits(both: Pair, start: Weights, inputs: np.ndarray) -> np.ndarray:
    config, compute = both.recipe.model, both.precision.compute
    settings: dict[str, Any] = {"parameters": both.precision.parameters, "attention": "exact"}
    shapes = nnx.eval_shape(lambda: jaxgpt.model.GPT(config, rngs=nnx.Rngs(0), compute=compute, **settings))
    state = nnx.State(jax.tree.map(jnp.asarray, bridge.from_torch(start, config)))
    with jax.default_matmul_precision("highest"):
        return np.asarray(nnx.merge(nnx.split(shapes)[0], state)(jnp.asarray(inputs)))


def published_gradients(model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray):
    """Logits, loss and raw gradients of its model on one whole batch."""
    logits, loss = model(*torch_batch(inputs, targets))
    loss.backward()
    grads = {n: p.grad for n, p in by_our_names(model).items()}
    return logits.detach().numpy(), float(loss.detach()), torch_tree(grads)


def model_and_gradients(script: Script) -> Iterator[Row]:
    """Rotary tables, logits as they stand, then everything with our tables and epsilons in the script's place."""
    recipe = script.recipe
    modern = recipe.model.qk_norm != "none"
    long = reduced(recipe.name, context=recipe.model.context).model
    start = weights(recipe.name, "float32")
    model = build(script, "float32", start, long.context, our_tables=False)
    rotary = next(m for m in model.modules() if type(m).__name__ == "Rotary")
    theirs = rotary(torch.zeros(1, long.context, long.heads, long.head_width))
    ours = torch_ref.model.rotary_tables(long, "float32")
    apart = max(
        float((t.squeeze().float() - o.squeeze(1).float()).abs().max()) for t, o in zip(theirs, ours, strict=True)
    )
    at_most = 4e-3 if long.rotary_dtype == "bfloat16" else 1e-4
    yield Row("3", f"rotary tables of {long.context} positions, absolute", apart, 0, TABLES, at_most)
    inputs = np.random.default_rng(3).integers(0, long.token_ids, (1, long.context + 1))
    reference = torch_ref.model.GPT(long)
    reference.load_state_dict({n: torch.tensor(w) for n, w in start.items()})
    with torch.no_grad(), our_epsilons(script):
        got, want = (
            f.numpy()
            for f in (reference(torch.tensor(inputs[:, :-1])), model(*torch_batch(inputs[:, :-1], inputs[:, 1:]))[0])
        )
    yield Row(
        "3",
        f"logits at {long.context} positions, its own tables: torch_ref",
        relative(got, want),
        1e-6,
        TABLES,
        at_most,
    )

    for dtype in DTYPES:
        both, start = make_pair(script, dtype), weights(recipe.name, dtype)
        batch = tokens(both.recipe)
        state = torch_state(both, start)
        loss, grads = both.torch.gradients(state, *torch_batch(*batch))
        jax_loss, jax_grads = both.jax.gradients(jax_state(both, start).params, *jax_batch(both, *batch))
        with torch.no_grad():
            in_torch = state.model(torch_batch(*batch)[0]).numpy()
        mine = {
            "torch_ref": (in_torch, float(loss), torch_tree(grads)),
            "jaxgpt": (jax_logits(both, start, batch[0]), float(jax_loss), jax_tree(both, jax_grads)),
        }
        stand = "as they stand", False, TABLES + (f"; {EPSILONS}" if modern else "")
        for how, put_in, because in [stand, ("ours put in", True, "")]:
            with contextlib.ExitStack() as meanwhile:
                meanwhile.enter_context(without(*["float"] * (dtype == "float64")))
                if put_in:
                    meanwhile.enter_context(our_epsilons(script))
                want = published_gradients(build(script, dtype, start, both.recipe.model.context, put_in), *batch)
            for what, (logits, mean, raw) in mine.items():
                allowed, at_most = PUBLISHED[dtype], 0.5 if modern else 1e-4
                where = f"{dtype}, {how}: {what}"
                yield Row("3", f"logits, {where}", relative(logits, want[0]), allowed, because, at_most)
                yield Row("4", f"loss, {where}", relative(mean, want[1]), allowed, because, at_most)
                yield Row(
                    "5", f"raw gradients, {where}", worst(raw, want[2]), PUBLISHED_GRADIENTS[dtype], because, at_most
                )


def own_precision(script: Script) -> Iterator[Row]:
    """The script under its own autocast to bfloat16, with our tables and epsilons, against torch_ref's fast path."""
    recipe = reduced(script.recipe.name)
    start, batch = weights(recipe.name, "float32"), tokens(recipe)
    exactly = precision(recipe, "bfloat16", attention="fast")
    program = torch_ref.train.make_step(recipe, exactly, TORCH_CPU, recipe.data.sequences)
    state = program.start({n: torch.tensor(w) for n, w in start.items()})
    loss, grads = program.gradients(state, *torch_batch(*batch))
    with torch.autocast("cpu", torch.bfloat16), our_epsilons(script):
        model = build(script, "float32", start, recipe.model.context, our_tables=True)
        want = published_gradients(model, *batch)
        with torch.no_grad():
            logits = state.model(torch_batch(*batch)[0]).numpy()
    where = "its own bfloat16, ours put in: torch_ref"
    yield Row("3", f"logits, {where}", relative(logits, want[0]), 0)
    yield Row("4", f"loss, {where}", relative(float(loss), want[1]), 0)
    yield Row("5", f"raw gradients, {where}", worst(torch_tree(grads), want[2]), 0)


def updates(script: Script) -> Iterator[Row]:
    """The script's gradients into both optimisers: weights and moments after each of three updates; of SOAP in float64
    twelve, which include a new basis."""
    soap = script.recipe.optimizer.kind == "soap"
    runs: list[tuple[DType, DType | None]] = [("float64", None), ("float32", None), ("float32", "bfloat16")]
    for dtype, iteration in runs[: 2 if soap else 3]:
        count = 12 if soap and dtype == "float64" else 3
        start = weights(script.recipe.name, dtype)
        with contextlib.ExitStack() as meanwhile:
            meanwhile.enter_context(without(*["float"] * (dtype == "float64")))
            meanwhile.enter_context(our_epsilons(script))
            if iteration is None:
                meanwhile.enter_context(widened(script))
            published = published_steps(script, dtype, start, count)
        apart = dict.fromkeys(((of, what) for of in ("weights", "change", "moments") for what in OURS), 0.0)
        for want, ours in zip(published, our_steps(make_pair(script, dtype, iteration), start, published), strict=True):
            for what, (got, moments) in ours.items():
                changes = [{n: each[n].astype(np.float64) - start[n] for n in start} for each in (got, want.weights)]
                for of, difference in (
                    ("weights", worst(got, want.weights)),
                    ("change", worst(*changes)),
                    ("moments", worst(moments, want.moments)),
                ):
                    apart[of, what] = max(apart[of, what], difference)
        for (of, what), difference in apart.items():
            if of == "change" and dtype == "float32" and (what == "jaxgpt" or iteration is None):
                continue  # a small change of a large weight keeps few digits; the weights themselves are compared
            allowed = SECOND_ORDER_CHANGE if soap and of == "change" else PUBLISHED[dtype]
            how = ", its own bfloat16 iteration" if iteration else ""
            because = SUMMED if iteration and what == "jaxgpt" and of == "weights" else ""
            yield Row("6", f"{of}, {count} updates, {dtype}{how}: {what}", difference, allowed, because, 1e-3)


def our_steps(both: Pair, start: Weights, published: list[Trained]) -> Iterator[dict[str, tuple[Weights, Weights]]]:
    """Weights and moments of either trainer after each of the script's gradients."""
    in_torch, in_jax = torch_state(both, start), jax_state(both, start)
    replicated = jaxgpt.mesh.replicated(both.devices)
    for step, want in enumerate(published):
        in_torch = both.torch.update(in_torch, {n: torch.tensor(g) for n, g in want.gradients.items()})
        placed = jax.device_put(bridge.from_torch(want.gradients, both.recipe.model), replicated)
        in_jax = both.jax.update(in_jax, placed)
        if step == 0:
            in_jax = with_bases(both, in_jax, torch_moments(in_torch))
        yield {
            "torch_ref": (torch_tree(dict(in_torch.model.named_parameters())), torch_moments(in_torch)),
            "jaxgpt": (jax_tree(both, in_jax.params), jax_moments(both, in_jax)),
        }


def rows(script: Script) -> Iterator[Row]:
    """Every comparison, from the tokens up."""
    for part in (stream, settings, newton_schulz, initial_weights, model_and_gradients, own_precision, updates):
        yield from part(script)
