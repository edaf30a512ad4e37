"""NUTS (numpyro) on the same model; runs in the peers' environment.

It compiles at every run; what that takes is counted as jax reports it, and told apart.

With `V`, `mu` and `sigma2` given, the posterior of the factors at that decoder; else that of
everything: loadings normal, each factor with a scale of its own, and wide priors above.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
from common import run
from jax import monitoring, random
from jax import numpy as jnp
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS

numpyro.set_host_device_count(2)
numpyro.enable_x64()
CHAINS = 2
COMPILES = "/jax/core/compile/"


def model(counts: np.ndarray, rank: int, V=None, mu=None, sigma2=None) -> None:
    """Counts of a composition whose log-ratios are linear in z, with noise."""
    n, d = counts.shape
    if V is None:
        scale = numpyro.sample("scale", dist.HalfNormal(2).expand([rank]).to_event(1))
        V = scale * numpyro.sample("V", dist.Normal(0, 1).expand([d, rank]).to_event(2))
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([d]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    else:
        sigma = jnp.sqrt(sigma2)
    z = numpyro.sample("z", dist.Normal(0, 1).expand([n, rank]).to_event(2))
    noise = numpyro.sample("noise", dist.Normal(0, 1).expand([n, d]).to_event(2))
    logits = mu + z @ V.T + sigma * noise
    total = counts.sum(axis=1)
    numpyro.sample("x", dist.Multinomial(total, logits=logits), obs=counts)


def fit(counts: np.ndarray, rank: int, seed: int, draws: np.ndarray, **decoder: np.ndarray) -> dict:
    """Two chains side by side, as many draws to warm up as to keep."""
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiled.append(seconds * event.startswith(COMPILES))
    )
    sampler = MCMC(
        NUTS(model),
        num_warmup=int(draws),
        num_samples=int(draws),
        num_chains=CHAINS,
        progress_bar=False,
    )
    sampler.run(random.key(seed), counts, rank, **decoder)
    if decoder:
        z = sampler.get_samples(group_by_chain=True)["z"]
        told = summary({"z": z})["z"]
        mcse = told["std"] / np.sqrt(told["n_eff"])
        flat = z.reshape(-1, *z.shape[2:])
        means = {"z": flat.mean(0), "z_sd": flat.std(0), "z_mcse": mcse}
        return means | {"r_hat": told["r_hat"].max()}
    drawn = sampler.get_samples(group_by_chain=True)
    V = drawn["V"] * drawn["scale"][:, :, None, :]
    V -= V.mean(axis=2, keepdims=True)
    covariance = jnp.einsum("csik,csjk->csij", V, V)
    values, vectors = jnp.linalg.eigh(covariance.mean((0, 1)))
    mu = drawn["mu"].mean((0, 1))
    # V is known up to rotations; what it makes of the log-ratios is what has to have mixed
    of_ratios = covariance.diagonal(axis1=2, axis2=3)
    return {
        "loadings": vectors * jnp.sqrt(jnp.maximum(values, 0)),
        "centre": mu - mu.mean(),
        "sigma2": (drawn["sigma"] ** 2).mean(),
        "r_hat": summary({"c": np.asarray(of_ratios)})["c"]["r_hat"].max(),
        "compile_seconds": sum(compiled),
    }


if __name__ == "__main__":
    run(fit, warm=False)
