"""Entries about the other optimisers: eps, weight decay, SOAP, clipping, the schedule."""

from parity_tests.defaults.detail import Detail, Grouping, Line

DETAILS = [
    Detail(
        "eps inside or outside the root",
        "g/(|g| + eps) against g/sqrt(g^2 + eps): inside the root the same number reaches gradients 10,000 times "
        "larger.",
        torch="Outside in Adam, AdamW, Adagrad and RMSprop: sqrt(v) + eps.",
        jax="`optax.adam` has both: `eps` outside, `eps_root` (0) inside. `optax.rmsprop` puts its `eps` inside.",
        here="Outside; Shampoo's is added to eigenvalues.",
        lines=(
            Line("torch_update(partial(torch.optim.Adam, lr=1.0), np.full(1, 1e-8))", "-0.5"),
            Line("optax_update(optax.adam(1.0), np.full(1, 1e-8))", "-0.5"),
            Line("optax_update(optax.adam(1.0, eps=0.0, eps_root=1e-8), np.full(1, 1e-8))", "-0.0001", 1),
            Line("torch_update(partial(torch.optim.RMSprop, lr=1.0), np.full(1, 1e-8))", "-0.909", 3),
            Line("optax_update(optax.rmsprop(1.0), np.full(1, 1e-8))", "-0.0001", 1),
        ),
    ),
    Detail(
        "eps of optimisers",
        "It matters where gradients are near it. Gradients that are sums over 524,288 tokens make the same eps weigh "
        "that much less than means do.",
        torch="1e-8 in Adam and AdamW, 1e-7 in Muon.",
        jax="1e-8 in `optax.adam` and `adamw`, and in `optax.contrib.muon` for Newton-Schulz and NAdam alike.",
        here="The recipe's.",
        lines=(
            Line(
                '[signature(f).parameters["eps"].default for f in (torch.optim.AdamW, torch.optim.Muon)]',
                "[1e-08, 1e-07]",
            ),
            Line(
                '[signature(f).parameters["eps"].default for f in (optax.adamw, optax.contrib.muon)]', "[1e-08, 1e-08]"
            ),
        ),
        recipes=(
            Grouping("optimizer.eps"),
            Grouping(
                "optimizer.hidden_eps", among="without Muon", counts=lambda recipe: recipe.optimizer.kind != "muon"
            ),
            Grouping("model.loss_reduction"),
        ),
    ),
    Detail(
        "Weight decay by default",
        "Left out, it is four different numbers.",
        torch="AdamW 0.01, Adam 0, Muon 0.1.",
        jax="`optax.adamw` 0.0001, `optax.contrib.muon` 0.",
        here="The recipe's, for hidden matrices and for all other weights.",
        lines=(
            Line("torch_update(partial(torch.optim.AdamW, lr=1.0), np.zeros((1, 1)), w=1.0)", "-0.01"),
            Line("torch_update(partial(torch.optim.Muon, lr=1.0), np.zeros((1, 1)), w=1.0)", "-0.1"),
            Line("optax_update(optax.adamw(1.0), np.zeros((1, 1)), w=1.0)", "-0.0001"),
            Line("optax_update(optax.contrib.muon(1.0), np.zeros((1, 1)), w=1.0)", "0"),
        ),
        recipes=(Grouping("optimizer.hidden_weight_decay"), Grouping("optimizer.weight_decay")),
    ),
    Detail(
        "Weight decay: what it is multiplied by, and when",
        "In both frameworks it is lr * decay * w with the w before the update: first or last in the code is the same "
        "number, but for rounding. A decay of the updated w is another one.",
        torch="`w *= 1 - lr * decay`, then the update. `Adam(weight_decay=...)` adds decay * w to the gradient "
        "instead.",
        jax="`add_decayed_weights`: the update plus decay * w, times -lr. It reaches every leaf, gains and biases too, "
        "unless a mask is given; torch's AdamW does as well.",
        here="The same for AdamW and Muon; SOAP decays the updated weight, as the published package does.",
        lines=(
            Line(
                "torch_update(partial(torch.optim.AdamW, lr=0.5, weight_decay=0.5), np.ones((1, 1)), w=1.0)", "-0.75", 4
            ),
            Line("optax_update(optax.adamw(0.5, weight_decay=0.5), np.ones((1, 1)), w=1.0)", "-0.75", 4),
            Line(
                "optax_update(jaxgpt.soap.soap(0.5, weight_decay=0.5), np.ones((1, 1)), np.ones((1, 1)), w=1.0)",
                "-0.625",
                4,
            ),
        ),
        recipes=(
            Grouping(
                "optimizer.decays_vectors", among="with weight decay", counts=lambda r: r.optimizer.weight_decay > 0
            ),
        ),
    ),
    Detail(
        "Weight decay where code and text disagree",
        "The comparison of 2024-10-29 says SOAP ran without decay; its call leaves the package's default.",
        torch="The SOAP package of the time: 0.01.",
        jax="optax 0.2.8 has no SOAP.",
        here="What ran: 0.01. The record of 2024-10-09 passed 0.",
        lines=(Line('RECIPES["opt-soap-2024-10-29"].optimizer.hidden_weight_decay', "0.01"),),
        recipes=(
            Grouping("optimizer.hidden_weight_decay", among="with SOAP", counts=lambda r: r.optimizer.kind == "soap"),
        ),
    ),
    Detail(
        "SOAP's first call",
        "It only gathers statistics: the weights stay, the step count stays 0. A port that updates at once is one step "
        "ahead for ever.",
        torch="Not in torch; the published package.",
        jax="Not in optax 0.2.8.",
        here="As published, in both frameworks; so a run of N steps makes N - 1 updates of its hidden matrices.",
        lines=(
            Line("optax_update(jaxgpt.soap.soap(1.0), np.ones((1, 1)))", "0"),
            Line("optax_update(jaxgpt.soap.soap(1.0), np.ones((1, 1)), np.ones((1, 1)))", "-1", 4),
            Line("torch_update(partial(torch_ref.soap.SOAP, lr=1.0), np.ones((1, 1)))", "0"),
            Line("torch_update(partial(torch_ref.soap.SOAP, lr=1.0), np.ones((1, 1)), np.ones((1, 1)))", "-1", 4),
        ),
        recipes=(Grouping("optimizer.kind"),),
    ),
    Detail(
        "Clipping by the global norm",
        "torch's norm comes out smaller by 1e-6 / norm: nothing to training, and far above float64's rounding.",
        torch="`clip_grad_norm_`: g * min(1, c / (norm + 1e-6)).",
        jax="`optax.clip_by_global_norm`: g where norm < c, else g / norm * c. llm.c does the same.",
        here="Without the 1e-6, in both frameworks.",
        lines=(
            Line(
                "w = torch.zeros(2).double().requires_grad_(); w.grad = torch.tensor([3.0, 4.0]).double(); "
                "torch.nn.utils.clip_grad_norm_([w], 1.0); 1 - w.grad.norm()",
                "2e-07",
                1,
            ),
            Line(
                "w = np.array([3.0, 4.0]); u, _ = optax.clip_by_global_norm(1.0).update(w, optax.EmptyState()); "
                "abs(1 - jnp.linalg.norm(u)) < 1e-15",
                "True",
            ),
        ),
        recipes=(Grouping("optimizer.clip_norm"),),
    ),
    Detail(
        "First step of a schedule",
        "Both frameworks ask the schedule for step 0 first, so a warm-up that starts at 0 wastes an update, and a fall "
        "to 0 never gets there. Adam's own t counts from 1.",
        torch="`LambdaLR`: step 0 at construction, before any update.",
        jax="optax: the count before it is increased, so 0. `warmup_cosine_decay_schedule(0.0, ...)` starts at 0.",
        here="(s + 1)/warmup from s = 0; a linear fall ends with 1/warmdown.",
        lines=(
            Line(
                "torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)], 1.0), lambda s: s / "
                "10).get_last_lr()",
                "[0]",
            ),
            Line("optax_update(optax.sgd(lambda s: s / 10), np.ones(1))", "0"),
            Line("optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)(0)", "0"),
        ),
        recipes=(
            Grouping(
                "the first and the last multiplier",
                of=lambda r: (
                    f"{f'1/{r.schedule.warmup}' if r.schedule.warmup else '1'}, then "
                    + ("close to 0 (cosine)" if r.schedule.fall == "cosine" else f"1/{r.schedule.warmdown}")
                ),
            ),
        ),
    ),
]
