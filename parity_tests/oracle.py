"""What both frameworks are held against: float64 NumPy, written as the formulas are, sharing no code with either."""

import numpy as np


def newton_schulz(G, steps, coefficients, eps=1e-7):
    """X <- aX + (bA + cAA)X, A = X X^T, of one matrix or a batch; the wide side is never squared."""
    a, b, c = coefficients
    G = np.asarray(G, np.float64)
    X = G / (np.sqrt((G**2).sum((-2, -1), keepdims=True)) + eps)
    tall = G.shape[-2] > G.shape[-1]
    X = np.swapaxes(X, -1, -2) if tall else X
    for _ in range(steps):
        A = X @ np.swapaxes(X, -1, -2)
        X = a * X + (b * A + c * A @ A) @ X
    return np.swapaxes(X, -1, -2) if tall else X


def muon(
    w, grads, lrs, momentum, steps, coefficients, parts=1, average=False, ratio_scale=False, weight_decay=0.0, svd=False
):
    """The weight after Muon's updates with each of `grads`; w is (fan_out, fan_in), `parts` matrices stacked in it."""
    w, buffer = np.asarray(w, np.float64), np.zeros(w.shape)
    rows, cols = w.shape[0] // parts, w.shape[1]
    scale = np.sqrt(max(1, rows / cols)) if ratio_scale else np.sqrt(max(rows, cols))
    for g, lr in zip(grads, lrs, strict=True):
        g = (1 - momentum) * g if average else g
        buffer = momentum * buffer + g
        o = []
        for u in np.split(g + momentum * buffer, parts):
            U, _, Vt = np.linalg.svd(u, full_matrices=False)
            o.append(U @ Vt if svd else newton_schulz(u, steps, coefficients))
        w = w - lr * (weight_decay * w + scale * np.concatenate(o))
    return w


def adamw(w, grads, lrs, betas, eps, weight_decay):
    """The weight after AdamW's updates (arXiv 1711.05101) with each of `grads`."""
    w = np.asarray(w, np.float64)
    m, v = np.zeros(w.shape), np.zeros(w.shape)
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        w = w - lr * weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


def soap(w, grads, lrs, betas=(0.95, 0.95), eps=1e-8, weight_decay=0.0, every=10, statistics_beta=0.95, Q=None):
    """Weight and state after each call with one of `grads`; the first call only finds the bases (arXiv 2409.11321).

    `Q`, a pair, are bases to be taken in place of those which the first call finds.
    """
    w = np.asarray(w, np.float64)
    rows, cols = w.shape
    m, v, L, R = np.zeros(w.shape), np.zeros(w.shape), np.zeros((rows, rows)), np.zeros((cols, cols))
    states = []
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True)):
        g = np.asarray(g, np.float64)
        if t > 0:
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * (Q[0].T @ g @ Q[1]) ** 2
            adam = np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * (Q[0].T @ m @ Q[1]) / (np.sqrt(v) + eps)
            w = w - lr * Q[0] @ adam @ Q[1].T
            w = w - lr * weight_decay * w
        L = statistics_beta * L + (1 - statistics_beta) * np.einsum("ik,jk->ij", g, g)
        R = statistics_beta * R + (1 - statistics_beta) * np.einsum("ki,kj->ij", g, g)
        if t == 0 and Q is None:
            Q = tuple(np.linalg.eigh(A + 1e-30 * np.eye(len(A)))[1][:, ::-1] for A in (L, R))
        if t > 0 and t % every == 0:
            order = [np.argsort(-np.diag(q.T @ A @ q), kind="stable") for q, A in zip(Q, (L, R), strict=True)]
            v = v[np.ix_(*order)]
            Q = tuple(np.linalg.qr(A @ q[:, o])[0] for q, A, o in zip(Q, (L, R), order, strict=True))
        states.append({"step": t, "w": w, "exp_avg": m, "exp_avg_sq": v, "GG": (L, R), "Q": Q})
    return states


def shampoo(w, grads, lrs, betas=(0.95, 0.95), eps=1e-12, weight_decay=0.0, graft_beta=0.95, graft_eps=1e-8, every=10):
    """Weight and state after each update with one of `grads` (arXiv 1802.09568, 2002.09018)."""
    w = np.asarray(w, np.float64)
    rows, cols = w.shape
    m, v, L, R = np.zeros(w.shape), np.zeros(w.shape), np.zeros((rows, rows)), np.zeros((cols, cols))
    roots = np.zeros((rows, rows)), np.zeros((cols, cols))
    states = []
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        g = np.asarray(g, np.float64)
        w = w - lr * weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = graft_beta * v + (1 - graft_beta) * g**2
        L = betas[1] * L + (1 - betas[1]) * np.einsum("ik,jk->ij", g, g)
        R = betas[1] * R + (1 - betas[1]) * np.einsum("ki,kj->ij", g, g)
        mean = m / (1 - betas[0] ** t)
        u = mean / (np.sqrt(v / (1 - graft_beta**t)) + graft_eps)
        if t % every == 0:
            roots = []
            for A in (L, R):
                size, U = np.linalg.eigh(A / (1 - betas[1] ** t))
                roots.append(U @ np.diag((size - min(size.min(), 0) + eps) ** -0.25) @ U.T)
        if t >= every:
            S = roots[0] @ mean @ roots[1]
            u = S * np.sqrt(np.sum(u**2)) / (np.sqrt(np.sum(S**2)) + 1e-16)
        w = w - lr * u
        states.append({"step": t, "w": w, "exp_avg": m, "exp_avg_sq": v, "GG": (L, R), "roots": tuple(roots)})
    return states


def cross_entropy(logits, targets):
    """Mean of logsumexp - target's logit over rows."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=1)
    return np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(targets)), targets])
