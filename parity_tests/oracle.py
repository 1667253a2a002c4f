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


def muon(w, grads, lrs, momentum, steps, coefficients, parts=1):
    """The weight after Muon's updates with each of `grads`; w is (fan_out, fan_in), `parts` matrices stacked in it."""
    w, buffer = np.asarray(w, np.float64), np.zeros(w.shape)
    for g, lr in zip(grads, lrs, strict=True):
        buffer = momentum * buffer + g
        o = [newton_schulz(u, steps, coefficients) for u in np.split(g + momentum * buffer, parts)]
        w = w - lr * np.sqrt(max(o[0].shape)) * np.concatenate(o)
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


def cross_entropy(logits, targets):
    """Mean of logsumexp - target's logit over rows."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=1)
    return np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(targets)), targets])
