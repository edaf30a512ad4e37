"""The literal recipe of the published method: everything by gradient, from small random weights.

One linear layer and, for L > 1, L − 1 more with softplus between; one posterior variance for all
samples; z and the noise sampled by reparametrisation, each sample with draws of its own; Adam. The
noise has no posterior of its own: its draw comes from the prior.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from countvae.logs import centred_logs
from countvae.rows import Rows
from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found

EPOCHS = 300
"""Some tables see sigma2 still falling at their end, and the error with it."""


def fit(
    truth: Simulation,
    k: int,
    seed: int,
    *,
    encoder_depth: int = 1,
    pseudocount: float = 1.0,
    epochs: int = EPOCHS,
) -> Found:
    """Fit by Adam at 0.01, falling to zero along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    rows = Rows(truth.counts, 128)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    sizes = [rows.d] + [k] * encoder_depth
    layers = [normal(a, b, scale=a**-0.5).requires_grad_() for a, b in itertools.pairwise(sizes)]
    V = normal(rows.d, k, scale=0.1).requires_grad_()
    mu, log_D, log_sigma2 = (torch.zeros(size, requires_grad=True) for size in (rows.d, k, 1))
    optimizer = torch.optim.Adam([*layers, V, mu, log_D, log_sigma2], lr=0.01)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * (1 + math.cos(math.pi * epoch / epochs))
        for _, x, _, _ in rows.shuffled(generator):
            h = centred_logs(x, pseudocount, mu - mu.mean())
            for i, layer in enumerate(layers):
                h = (nn.functional.softplus(h) if i else h) @ layer
            z = h + (0.5 * log_D).exp() * normal(*h.shape)
            noise = normal(*x.shape)
            logits = mu + z @ V.T + (0.5 * log_sigma2).exp() * noise
            likelihood = (x * logits.log_softmax(1)).sum(1)
            kl = 0.5 * (h.square() + log_D.exp() - log_D - 1).sum(1)
            optimizer.zero_grad()
            (kl - likelihood).mean().backward()
            optimizer.step()
    loadings = (V - V.mean(0)).detach().double().numpy()
    centre = (mu - mu.mean()).detach().double().numpy()
    return Found(loadings, centre, float(np.exp(log_sigma2.item())))
