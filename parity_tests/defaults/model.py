"""Entries about the model: norms, rotary embeddings, attention, initial weights, the vocabulary."""

from parity_tests.defaults.detail import Detail, Grouping, Line

DETAILS = [
    Detail(
        "eps of norms",
        "Four defaults for one number. They differ where activations are small.",
        torch="`nn.LayerNorm` 1e-5. `F.rms_norm` and `nn.RMSNorm` take eps=None: 2^-23 for float32 inputs, 2^-52 for "
        "float64. For bfloat16 inputs it was their own 2^-7 in torch 2.4 and 2.5, which the records of October 2024 "
        "ran on; since January 2025 it is float32's 2^-23.",
        jax="`nnx.LayerNorm` and `nnx.RMSNorm` 1e-6, for every dtype.",
        here="Always a number of the recipe, inside the root.",
        lines=(
            Line("torch.nn.LayerNorm(4).eps", "1e-05"),
            Line("F.rms_norm(torch.full((1,), 2.0**-12), (1,))", "0.57735", remark="1/sqrt(3), so eps is 2^-23"),
            Line("nnx.LayerNorm(4, rngs=rngs).epsilon, nnx.RMSNorm(4, rngs=rngs).epsilon", "(1e-06, 1e-06)"),
        ),
        recipes=(
            Grouping("model.norm_eps"),
            Grouping("model.qk_norm_eps", among="with QK-norm", counts=lambda r: r.model.qk_norm != "none"),
        ),
    ),
    Detail(
        "LayerNorm's variance",
        "Flax subtracts two large numbers, which loses the variance where the mean is far from 0.",
        torch="mean((x - mean)^2).",
        jax="`nnx.LayerNorm`: mean(x^2) - mean^2, in float32; `use_fast_variance=False` for the other.",
        here="mean((x - mean)^2), in at least float32.",
        lines=(
            Line("F.layer_norm(torch.tensor([4096.0, 4097, 4098, 4099]), (4,))[3]", "1.342", 4),
            Line("nnx.LayerNorm(4, rngs=rngs)(jnp.array([4096, 4097, 4098, 4099], 'float32'))[3] < 1.2", "True"),
        ),
        recipes=(Grouping("model.norm"),),
    ),
    Detail(
        "Dtype of a layer's output",
        "A bfloat16 activation that meets a float32 weight: one framework refuses, the other widens and stays wide.",
        torch="An error, unless under autocast, where products give bfloat16.",
        jax="Flax promotes: float32. Give layers `dtype=jnp.bfloat16` (the product) beside `param_dtype`.",
        here="Products in the compute dtype; norms give their input's dtype; the residual stream the embedding's.",
        lines=(
            Line('torch.autocast("cpu", torch.bfloat16)(torch.nn.Linear(4, 4))(torch.ones(4)).dtype', "torch.bfloat16"),
            Line("nnx.Linear(4, 4, rngs=rngs)(jnp.ones(4, bf16)).dtype", "float32"),
            Line("nnx.Linear(4, 4, dtype=bf16, rngs=rngs)(jnp.ones(4, bf16)).dtype", "bfloat16"),
            Line("nnx.RMSNorm(4, rngs=rngs)(jnp.ones(4, bf16)).dtype", "float32"),
            Line("F.rms_norm(torch.ones(4).bfloat16(), (4,)).dtype", "torch.bfloat16"),
        ),
        recipes=(
            Grouping(
                "dtype of products in training and validation, and of the residual stream",
                of=lambda r: f"{r.model.compute_dtype}, {r.model.validation_dtype}; {r.model.embedding_dtype}",
            ),
        ),
    ),
    Detail(
        "QK-norm before or after rotary",
        "A rotation keeps a head's mean square, so in exact arithmetic the two orders are one function, eps included. "
        "They part with a gain (it scales the two numbers of a pair differently) and by rounding: another number is "
        "rounded to bfloat16 in between, and bfloat16 tables are no rotation, as their cos^2 + sin^2 isn't 1.",
        torch="No default.",
        jax="No default.",
        here="The recipe's order, without gain.",
        lines=(
            Line(
                "a = angles(8, 16, np.float64); apart(rms_norm(rotated(q, a)), rotated(rms_norm(q), a)) < 1e-15", "True"
            ),
            Line(
                "a, x = angles(8, 16, np.float64), q.astype(bf16); "
                "1e-3 < apart(rms_norm(rotated(x, a)), rotated(rms_norm(x), a)) < 1e-2",
                "True",
            ),
        ),
        recipes=(Grouping("model.qk_norm"),),
    ),
    Detail(
        "Direction and layout of rotary",
        "Turned the other way, or in neighbouring pairs instead of halves, a model trains as well; weights carried "
        "over from one that isn't give other logits.",
        torch="Nothing in torch. Llama in `transformers`: halves, x1 cos - x2 sin. Meta's Llama: neighbours.",
        jax="Nothing in Flax.",
        here="Halves, x1 cos + x2 sin and x2 cos - x1 sin, as the published scripts have it.",
        lines=(Line("a = angles(8, 16, np.float64); 0.5 < apart(rotated(q, a), rotated(q, -a))", "True"),),
        recipes=(Grouping("model.positions"),),
    ),
    Detail(
        "Rotary tables",
        "Angles of 1000 radians leave float32 few digits for the cosine: two frameworks that each take their own "
        "float32 power and cosine part in the fifth digit, hundreds of times float32's rounding.",
        torch="The scripts: `1 / base ** (arange(0, K, 2) / K)` in float32, angles in float32.",
        jax="The same, if written with `jnp`; without x64 float64 is silently float32.",
        here="Angles in float64 with NumPy, rounded once to the recipe's dtype, in both frameworks.",
        lines=(
            Line(
                "a = [np.cos(angles(1024, 64, d)) for d in (np.float32, np.float64)]; abs(a[0] - a[1]).max() > 1e-5",
                "True",
            ),
            Line("a = np.cos(angles(1024, 64, np.float64)); abs(a.astype('float32') - a).max() < 3e-8", "True"),
            Line("a = np.cos(angles(1024, 64, np.float64)); abs(a.astype(bf16) - a).max()", "0.002", 1),
        ),
        recipes=(
            Grouping(
                "model.rotary_dtype", among="with rotary embeddings", counts=lambda r: r.model.positions != "learned"
            ),
        ),
    ),
    Detail(
        "GELU",
        "Two functions of one name, 5e-4 apart at most: thousands of times float32's rounding.",
        torch='`F.gelu` through erf; `approximate="tanh"` for the other.',
        jax="`jax.nn.gelu` and `nnx.gelu` through tanh; `approximate=False` for the other.",
        here='By name: "gelu" is erf, "gelu_tanh" tanh.',
        lines=(
            Line("F.gelu(torch.tensor(1.0))", "0.8413", 4),
            Line("jax.nn.gelu(1.0), nnx.gelu(1.0)", "(0.8412, 0.8412)", 4),
        ),
        recipes=(Grouping("model.activation"),),
    ),
    Detail(
        "Axes of attention",
        "Passed in the other's order, attention runs over heads instead of positions, and the shapes still fit.",
        torch="`F.scaled_dot_product_attention`: (B, H, T, K).",
        jax="`jax.nn.dot_product_attention`: (B, T, H, K).",
        here="(B, T, H, K) in jaxgpt. Both frameworks scale by 1/sqrt(K) where nothing is said.",
        lines=(
            Line(
                "apart(jax_attention(q), torch_attention(q_torch).transpose(1, 2)) < 1e-6",
                "True",
            ),
            Line("apart(jax_attention(q), torch_attention(torch.tensor(q))) > 0.1", "True"),
        ),
        recipes=(Grouping("model.attention_scale"),),
    ),
    Detail(
        "Softmax of attention",
        "In float64 JAX's attention is only as good as float32, with a float64 result: a comparison stops at 1e-8.",
        torch="In the input's dtype, at least float32.",
        jax="`jax.nn.dot_product_attention`: in float32, whatever the input.",
        here='Written out for float64 and float32 (`Precision.attention` "exact"); kernels for bfloat16 alone.',
        lines=(
            Line(
                "x = jax_attention(q); x.dtype, apart(x, torch_attention(q_torch).transpose(1, 2)) > 1e-9",
                "(float64, True)",
            ),
        ),
    ),
    Detail(
        "Initial weights of a Linear layer",
        "Flax starts sqrt(3) times wider, with other tails and without biases.",
        torch="U(±1/sqrt(fan_in)), weights and biases (kaiming_uniform with a = sqrt(5)); `nn.init.normal_` has std 1.",
        jax="`lecun_normal`: std 1/sqrt(fan_in), truncated at two of them; biases 0. "
        "`jax.nn.initializers.normal()` has std 0.01.",
        here="Each recipe's, by the weight's name, in `init.py` of both.",
        lines=(
            Line("torch.nn.Linear(256, 1000).weight.std() * 256**0.5", "0.58", 2, remark="1/sqrt(3)"),
            Line("nnx.Linear(256, 1000, rngs=rngs).kernel[...].std() * 256**0.5", "1", 2),
            Line("torch.nn.Linear(256, 1000).bias.std() * 256**0.5 > 0.5", "True"),
            Line("abs(nnx.Linear(256, 1000, rngs=rngs).bias[...]).max()", "0"),
            Line("torch.nn.init.normal_(torch.empty(500, 500)).std()", "1", 2),
            Line("jax.nn.initializers.normal()(jax.random.key(0), (500, 500)).std()", "0.01", 2),
        ),
        recipes=(Grouping("model.initial"),),
    ),
    Detail(
        "Initial weights of a tied matrix",
        "The same matrix is drawn 28 times wider as torch's embedding than as its head (D = 256), and where it is tied "
        "the last to be assigned wins. The loss at step 0 tells.",
        torch="`nn.Embedding` N(0, 1); `nn.Linear(D, V)` U(±1/sqrt(D)). The scripts tie by "
        "`wte.weight = lm_head.weight`: the head's.",
        jax="`nnx.Embed`: std 1/sqrt(D), and `attend` makes it the head.",
        here="The head's uniform distribution, but for GPT-2's own normal one.",
        lines=(
            Line("torch.nn.Embedding(1000, 256).weight.std() * 256**0.5", "16", 2),
            Line("torch.nn.Linear(256, 1000).weight.std() * 256**0.5", "0.58", 2),
            Line("nnx.Embed(1000, 256, rngs=rngs).embedding[...].std() * 256**0.5", "1", 2),
        ),
        recipes=(Grouping("model.head"), Grouping("expected.step0_val_loss")),
    ),
    Detail(
        "Padding rows of the vocabulary",
        "50,304 rows for 50,257 token ids: left in the softmax they take a share of it and get gradients. Masking them "
        "is the natural thing to do in a port, and another function.",
        torch="No default; the scripts leave them in, llm.c masks them.",
        jax="No default.",
        here="`trained` or `masked`, by recipe. Without padding rows the two are the same.",
        lines=(
            Line("F.cross_entropy(torch.zeros(1, 50304), torch.tensor([0]))", "10.8258"),
            Line("F.cross_entropy(torch.zeros(1, 50257), torch.tensor([0]))", "10.8249"),
        ),
        recipes=(
            Grouping("model.pad_rows", among="with padding rows", counts=lambda r: r.model.vocab > r.model.token_ids),
        ),
    ),
    Detail(
        "Token ids beyond the table",
        "A wrong tokenizer or shard stops PyTorch and goes on in JAX, with NaN or with another token's row.",
        torch="An error; but a target of -100 is skipped (`ignore_index`).",
        jax="`table[id]` takes the last row, `jnp.take`, `nnx.Embed` and optax's cross-entropy give NaN.",
        here="Ids are checked when shards are read.",
        lines=(
            Line(
                "F.cross_entropy(torch.zeros(2, 4), torch.tensor([0, -100]))",
                "1.38629",
                remark="the mean over one target",
            ),
            Line("jnp.arange(3)[5], jnp.take(jnp.arange(3.0), 5)", "(2, nan)"),
            Line("optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((1, 4)), jnp.array([-100]))", "nan"),
        ),
    ),
    Detail(
        "Cap of the logits",
        "Two soft caps are in use, and differ by 8% at the cap itself.",
        torch="No default. Gemma: c tanh(z/c).",
        jax="No default.",
        here="c z / sqrt(z^2 + c^2).",
        lines=(Line("15 * np.tanh(15 / 15), jaxgpt.loss.cap(jnp.array(15.0), 15)", "(11.4239, 10.6066)"),),
        recipes=(Grouping("model.logit_cap"),),
    ),
]
