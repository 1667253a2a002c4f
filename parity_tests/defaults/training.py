"""Entries about the loss, gradients and the devices."""

from parity_tests.defaults.detail import Detail, Grouping, Line

DETAILS = [
    Detail(
        "Cross-entropy",
        "From bfloat16 logits comes a bfloat16 loss, 0.1% off; and torch's mean is optax's list.",
        torch="`F.cross_entropy`: the mean, in the logits' dtype; under autocast in float32.",
        jax="`optax.softmax_cross_entropy_with_integer_labels`: a loss a row, in the logits' dtype.",
        here="Logits are products in the compute dtype, widened to float32 before the softmax.",
        lines=(
            Line("F.cross_entropy(torch.zeros(3, 50304).bfloat16(), torch.tensor([0, 1, 2]))", "10.8125"),
            Line(
                "optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((3, 50304), bf16), jnp.arange(3))",
                "[10.8125, 10.8125, 10.8125]",
            ),
            Line(
                'torch.autocast("cpu", torch.bfloat16)(F.cross_entropy)(torch.zeros(3, 50304).bfloat16(), '
                "torch.tensor([0, 1, 2]))",
                "10.8258",
            ),
            Line("jaxgpt.loss.plain_cross_entropy(jnp.zeros((3, 50304), 'float32'), jnp.arange(3))", "10.8258"),
        ),
    ),
    Detail(
        "Mean or sum over micro-batches",
        "Adam and Muon don't see a factor, so the loss curve doesn't either. Compare raw gradients.",
        torch="`backward()` adds: divide the loss by the number of micro-batches. DDP averages over ranks.",
        jax="`optax.MultiSteps` averages. A gradient of the mean over a sharded array is that of the whole mean.",
        here="The mean over all tokens of the step, or their sum where the recipe says so; for any devices and "
        "micro-batches.",
        lines=(
            Line("w = torch.ones(1, requires_grad=True); [(3 * w).mean().backward() for _ in range(2)]; w.grad", "6"),
            Line("optax_update(optax.MultiSteps(optax.sgd(1.0), 2), np.full(1, 1.0), np.full(1, 3.0))", "-2"),
            Line(
                "x = jax.device_put(jnp.ones(8), NamedSharding(mesh, P('data'))); jax.grad(loss)(1.0, x)",
                "1",
            ),
        ),
        recipes=(Grouping("model.loss_reduction"),),
    ),
    Detail(
        "Gradients inside shard_map",
        "The gradient of a weight that is the same everywhere arrives summed over the devices already; a `pmean` after "
        "it changes nothing, and gradients are P times too large. Adam, Muon and the loss don't show it.",
        torch="Nothing like it: DDP's all-reduce is the only one, and averages.",
        jax="`jax.shard_map` with its default `check_vma=True`: summed by autodiff. With `check_vma=False`, or in "
        "`pmap`: each device's own.",
        here="`check_vma=False`, and one `psum` after accumulation.",
        lines=(
            Line("on_each_device(jax.grad(loss))(1.0, jnp.ones(8))", "8"),
            Line('on_each_device(lambda w, x: pmean(jax.grad(loss)(w, x), "data"))(1.0, jnp.ones(8))', "8"),
            Line(
                'on_each_device(lambda w, x: pmean(jax.grad(loss)(w, x), "data"), check_vma=False)(1.0, jnp.ones(8))',
                "1",
            ),
            Line('on_each_device(jax.grad(lambda w, x: pmean(loss(w, x), "data")))(1.0, jnp.ones(8))', "1"),
        ),
    ),
    Detail(
        "Dtype of gradients between devices",
        "Where weights are cast to bfloat16 inside the loss, autodiff sums over devices before it casts back.",
        torch="DDP reduces `.grad`, which has the weight's dtype: float32 under autocast.",
        jax="bfloat16, if the cast is inside what is differentiated and the devices are inside too.",
        here="The weights' dtype, once a step. Where Muon is distributed, its updates cross in bfloat16.",
        lines=(
            Line(
                "w = torch.ones(2, 2, requires_grad=True); "
                'torch.autocast("cpu", torch.bfloat16)(lambda: (w @ w).sum())().backward(); w.grad.dtype',
                "torch.float32",
            ),
            Line(
                "grad = on_each_device(jax.grad(lambda w, x: (w.astype(bf16) * x).sum().astype('float32'))); "
                "'bf16[] = psum' in str(jax.make_jaxpr(grad)(jnp.float32(1), jnp.ones(8, bf16)))",
                "True",
            ),
        ),
        recipes=(Grouping("optimizer.distributed"), Grouping("model.embedding_dtype")),
    ),
    Detail(
        "Gradient of a bfloat16 embedding",
        "A frequent token's row is a sum of thousands; in bfloat16 256 + 1 is 256.",
        torch="Summed in bfloat16 on a CPU, in float32 on a GPU (1000 on an H100, torch 2.11).",
        jax="Summed in bfloat16, on a GPU too (256 on an H100, JAX 0.11). Widen before indexing.",
        here="jaxgpt indexes in float32, so it sums in float32; torch_ref leaves it to torch.",
        lines=(
            Line(
                "torch.func.grad(lambda e: F.embedding(torch.zeros(1000).long(), e).sum())(torch.zeros(1, "
                "1).bfloat16())",
                "256",
            ),
            Line("jax.grad(lambda e: e[jnp.zeros(1000, int)].sum())(jnp.zeros((1, 1), bf16))", "256"),
            Line(
                "jax.grad(lambda e: e.astype('float32')[jnp.zeros(1000, int)].astype(bf16).sum())(jnp.zeros((1, 1), "
                "bf16))",
                "1000",
            ),
        ),
        recipes=(Grouping("model.embedding_dtype"),),
    ),
    Detail(
        "Float32 products on a GPU",
        "JAX multiplies float32 matrices in TF32, which keeps 10 of 23 bits. On an H100 the product of two 1024 x 1024 "
        'Gaussian matrices is 3e-4 off in JAX, 3e-7 with "highest", 6e-7 in torch (JAX 0.11.2, torch 2.11.0).',
        torch='`torch.get_float32_matmul_precision()` is "highest": float32. Convolutions use TF32.',
        jax="`jax_default_matmul_precision` is None: TF32 on a GPU, bfloat16 passes on a TPU; float32 on a CPU.",
        here='`Precision.matmul` "highest" wherever the compute dtype isn\'t bfloat16; set in both.',
        lines=(
            Line("torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32", "(highest, False)"),
            Line("jax.config.jax_default_matmul_precision", "None"),
        ),
        recipes=(
            Grouping(
                "dtype of products in training and validation",
                of=lambda r: f"{r.model.compute_dtype}, {r.model.validation_dtype}",
            ),
        ),
    ),
    Detail(
        "Gradient of a norm at zero",
        "Zero-initialised projections make zero activations: a norm written without eps inside its root is NaN in JAX "
        "alone.",
        torch="0.",
        jax="NaN; `optax.safe_norm`, or eps under the root.",
        here="eps under the root.",
        lines=(
            Line("torch.func.grad(torch.linalg.vector_norm)(torch.zeros(2))", "[0, 0]"),
            Line("jax.grad(jnp.linalg.norm)(jnp.zeros(2))", "[nan, nan]"),
            Line("jax.grad(lambda x: rms_norm(x).sum())(jnp.zeros(2)) < jnp.inf", "[True, True]"),
        ),
    ),
    Detail(
        "Standard deviation",
        "Moments of initial weights, and hand-written LayerNorms, differ by n/(n - 1).",
        torch="`std`, `var`: divided by n - 1.",
        jax="`jnp.std`, `jnp.var`, NumPy: divided by n.",
        here="n, as LayerNorm is defined.",
        lines=(
            Line("torch.tensor([0.0, 2.0]).std()", "1.41421"),
            Line("jnp.std(jnp.array([0.0, 2.0]))", "1"),
        ),
    ),
]
