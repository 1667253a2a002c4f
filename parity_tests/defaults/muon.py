"""Entries about Muon: Newton-Schulz, its rounding, the scale of a shape, momentum, which weights."""

from jaxgpt.config import Recipe
from parity_tests.defaults.detail import Detail, Grouping, Line


def with_muon(recipe: Recipe) -> bool:
    """Whether Newton-Schulz runs at all."""
    return recipe.optimizer.kind == "muon"


def by(field: str) -> Grouping:
    """The recipes with Muon, by one of its fields."""
    return Grouping(f"optimizer.{field}", among="with Muon", counts=with_muon)


DETAILS = [
    Detail(
        "Layout of kernels",
        "Flax stores the transpose. Newton-Schulz doesn't notice (the transpose of the result is the result of the "
        "transpose), a scale made of `shape[0] / shape[1]` does.",
        torch="`nn.Linear(3, 5).weight` is (out, in).",
        jax="`nnx.Linear(3, 5).kernel` is (in, out).",
        here="(in, out) in jaxgpt, (out, in) in torch_ref and in files; Muon is told the axes of fan-in and fan-out.",
        lines=(
            Line("tuple(torch.nn.Linear(3, 5).weight.shape)", "(5, 3)"),
            Line("nnx.Linear(3, 5, rngs=rngs).kernel.shape", "(3, 5)"),
        ),
    ),
    Detail(
        "Scale of Muon's update",
        "Four scales go by the name of Muon, and each has learning rates of its own: `sqrt_max` is 28 times "
        "`sqrt_ratio` for a 768 x 768 matrix, 55 times from fan-in 3072 to fan-out 768.",
        torch='`torch.optim.Muon`: max(1, rows/cols)^(1/2) ("original"); `adjust_lr_fn="match_rms_adamw"`: '
        "0.2 max(rows, cols)^(1/2). Rows are fan-out.",
        jax="`optax.contrib.muon`: max(1, fan_out/fan_in)^(1/2), axis 0 being fan-in; `consistent_rms=c`: "
        "c max(fan_in, fan_out)^(1/2).",
        here="`sqrt_max` is max(fan_out, fan_in)^(1/2), `sqrt_ratio` max(1, fan_out/fan_in)^(1/2).",
        lines=(
            Line(
                "a, b = (torch_muon(g, ns_steps=0).norm() for g in (G[:8, :2], G[:8, :2].T)); a / b",
                "2",
                2,
                "8 rows, 2 columns: twice",
            ),
            Line(
                "a, b = (optax_muon(g, ns_steps=0) for g in (G[:8, :2], G[:8, :2].T)); norm(a) / norm(b)",
                "0.5",
                2,
                "fan-in 8, fan-out 2: half",
            ),
            Line(
                'a, b = (torch_muon(G[:8, :8], ns_steps=0, adjust_lr_fn=f).norm() for f in ("match_rms_adamw", None)); '
                "a / b",
                "0.57",
                2,
                "0.2 sqrt(8)",
            ),
            Line(
                "a, b = (optax_muon(G[:8, :8], ns_steps=0, consistent_rms=c) for c in (1.0, None)); norm(a) / norm(b)",
                "2.8",
                2,
                "sqrt(8)",
            ),
        ),
        recipes=(by("muon_scale"), by("lr")),
    ),
    Detail(
        "Muon's momentum",
        "A sum and an average point the same way, so Newton-Schulz can't tell them apart (but for eps). optax's "
        "average is bias-corrected as NAdam's is, which points elsewhere: the last gradient counts for 2.7 of the one "
        "before at step 2, where the published rule has 2.2.",
        torch="`torch.optim.Muon`: m = 0.95 m + 0.05 g, u = 0.05 g + 0.95 m; its documentation gives the sum.",
        jax="`optax.contrib.muon`: m = 0.95 m + 0.05 g, u = 0.95 m/(1 - 0.95^(t+1)) + 0.05 g/(1 - 0.95^t).",
        here="`sum` is m = 0.95 m + g, u = g + 0.95 m; `average` has 0.05 g for g. No bias correction.",
        lines=(
            Line("u = torch_muon(np.diag([1.0, 0]), np.diag([0, 1.0]), ns_steps=0); u[1, 1] / u[0, 0]", "2.2", 2),
            Line("u = optax_muon(np.diag([1.0, 0]), np.diag([0, 1.0]), ns_steps=0); u[1, 1] / u[0, 0]", "2.7", 2),
            Line("u = our_muon(np.diag([1.0, 0]), np.diag([0, 1.0]), steps=0); u[1, 1] / u[0, 0]", "2.2", 2),
            Line("apart(optax_muon(G, G.T), torch_muon(G, G.T)) > 0.1", "True", remark="at step 2"),
        ),
        recipes=(by("momentum_form"),),
    ),
    Detail(
        "Which weights are Muon's",
        "Orthogonalising an embedding trains, worse; leaving a stack of layers out of Muon trains too, as Adam.",
        torch="`torch.optim.Muon` takes what it is given, and refuses all but 2-D.",
        jax="`optax.contrib.muon`: every 2-D leaf, embeddings and heads too, and not a 3-D stack of kernels; all "
        "others get NAdam at Muon's learning rate (`adam_learning_rate`), betas 0.9 and 0.999.",
        here="The blocks' kernels, stacked or not; AdamW on all else.",
        lines=(
            Line(
                'state = optax.contrib.muon(1.0).init({"wte": jnp.zeros((9, 4)), "stack": jnp.zeros((2, 4, 6))}); '
                '[x.shape for x in jax.tree.leaves(state.inner_states["muon"].inner_state[0].mu)]',
                "[(9, 4)]",
            ),
            Line(
                "apart(optax_muon(*q[0, :2, 0]), optax_update(optax.nadam(1.0), *q[0, :2, 0])) < 1e-12",
                "True",
                remark="a vector",
            ),
            Line('jaxgpt.muon.kernels_in_out("wte", jnp.zeros((9, 4)))', "None"),
        ),
        recipes=(Grouping("optimizer.kind"),),
    ),
    Detail(
        "Dtype of Newton-Schulz and of its norm",
        "The iteration is meant to run in bfloat16; and the norm of a bfloat16 matrix is itself a bfloat16 number, up "
        "to 0.4% off, which scales the start of every iteration.",
        torch="`torch.optim.Muon`: all in bfloat16, the norm too, `clamp(min=1e-7)` instead of `+ 1e-7`.",
        jax="`optax.contrib.muon`: all in the dtype of the gradient, `+ 1e-8`.",
        here="Two fields; `+ 1e-7`. The scripts took the norm of the float32 matrix until 2024-10-12, of the bfloat16 "
        "one from 2024-10-14.",
        lines=(
            Line("torch.tensor(G).bfloat16().norm(), torch.tensor(G).norm()", "(64, 64.1882)"),
            Line(
                "u = torch_muon(G); torch.equal(u, u.bfloat16().double())",
                "True",
            ),
            Line("u = optax_muon(G); (u == u.astype(bf16)).all()", "False"),
        ),
        recipes=(by("newton_schulz_dtype"), by("newton_schulz_norm_dtype")),
    ),
    Detail(
        "Order of products in Newton-Schulz",
        "`c * A @ A` is (cA)A in Python, and in bfloat16 not c(AA). The two ways to write the polynomial, B = AX first "
        "or bA + (cA)A first, are one function and 4% apart in bfloat16 after five steps.",
        torch="`torch.optim.Muon`: `addmm(A, A, A, beta=b, alpha=c)`, polynomial first, rounded once after the sum.",
        jax="`optax.contrib.muon`: `b * A + c * A @ A`, polynomial first, in the gradient's dtype.",
        here="(cA)A or (cA)B in both forms, one field says which; the same in both frameworks.",
        lines=(
            Line("A = torch.tensor(G); torch.equal(2.0315 * A @ A, (2.0315 * A) @ A)", "True"),
            Line("A = torch.tensor(G).bfloat16(); 1e-3 < apart(2.0315 * A @ A, 2.0315 * (A @ A)) < 1e-2", "True"),
            Line(
                'exact = partial(newton_schulz, G, dtype="float64", norm_dtype="float64"); '
                'apart(exact(form="product_first"), exact(form="polynomial_first")) < 1e-13',
                "True",
            ),
            Line(
                'pinned = partial(newton_schulz, G, rounding="pinned"); '
                '0.01 < apart(pinned(form="product_first"), pinned(form="polynomial_first")) < 0.1',
                "True",
            ),
        ),
        recipes=(by("newton_schulz_form"), by("newton_schulz_coefficients"), by("newton_schulz_steps")),
    ),
    Detail(
        "A number times a bfloat16 array",
        "The first difference between the two bfloat16 iterations, at the first product. It also meets an Adam whose "
        "moments are bfloat16: optax's beta 0.95 is 0.949.",
        torch="Multiplies in float32, rounds once.",
        jax="Rounds a Python number to bfloat16 first. A NumPy number is no Python number: it widens the array.",
        here='Such products are widened and rounded once in jaxgpt too; `rounding="pinned"` keeps XLA from undoing it.',
        lines=(
            Line("3.4445 * torch.tensor(1.75).bfloat16()", "6.03125"),
            Line("3.4445 * jnp.asarray(1.75, bf16)", "6"),
            Line("optax.tree.update_moment(jnp.zeros(1, bf16), jnp.ones(1, bf16), 0.95, 1)", "0.949219"),
            Line(
                "(np.sqrt(2.0) * jnp.ones(1, bf16)).dtype, (2.0**0.5 * jnp.ones(1, bf16)).dtype", "(float64, bfloat16)"
            ),
        ),
    ),
]
