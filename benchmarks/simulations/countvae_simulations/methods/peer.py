"""The peers, each by a script that runs in an environment of their own (`make bench-peers`)."""

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from countvae.simulate import Simulation
from countvae_simulations.methods.base import Found

SCRIPTS = Path(__file__).parent / "peer_scripts"

VERSIONS = """
import importlib.metadata as m, json
there = {found.metadata["Name"].lower(): found.version for found in m.distributions()}
names = ("pyPLNmodels", "scvi-tools", "gemelli", "glmpca", "numpyro", "jax", "jaxlib", "torch",
         "lightning", "anndata", "biom-format", "numpy", "scipy")
print(json.dumps({name: there.get(name.lower(), "none") for name in names}))
"""


MORE = ("compile_seconds", "r_hat")


class PeerMissing(RuntimeError):
    """There is no environment for the peers, or a peer failed in it."""


@functools.cache
def versions() -> dict[str, str]:
    """What the peers' results depend on; nothing where there is no environment for them."""
    if not python().exists():
        return {}
    done = subprocess.run([str(python()), "-c", VERSIONS], capture_output=True, text=True)
    return {} if done.returncode else json.loads(done.stdout)


def python() -> Path:
    """Return the peers' interpreter: COUNTVAE_PEERS, or .venv-peers where the program runs."""
    return Path(os.environ.get("COUNTVAE_PEERS", ".venv-peers/bin/python"))


def call(name: str, k: int, seed: int, **arrays: Any) -> dict[str, np.ndarray]:
    """Run a peer's script on named arrays, counts among them, and return those that it wrote."""
    if not python().exists():
        raise PeerMissing(f"{name}: no environment for the peers (`make bench-peers`).")
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(given, **arrays)
        command = [python(), SCRIPTS / f"{name}.py", given, written, "--rank", k, "--seed", seed]
        read, held = os.pipe()
        try:
            done = subprocess.run(
                [str(part) for part in command], stdin=read, capture_output=True, text=True
            )
        finally:
            os.close(read)
            os.close(held)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
            raise PeerMissing(f"{name}: {said[-1]}")
        with np.load(written) as file:
            return {key: file[key] for key in file.files}


def fit(truth: Simulation, k: int, seed: int, *, name: str, **settings: Any) -> Found:
    """Fit by a peer; its seconds and memory are its own, without those of its imports."""
    found = call(name, k, seed, counts=truth.counts.toarray(), **settings)
    if not np.isfinite(found["loadings"]).all():
        raise PeerMissing(f"{name}: its loadings are not finite")
    return Found(
        found["loadings"],
        found.get("centre"),
        float(found["sigma2"]) if "sigma2" in found else None,
        converged=bool(found["converged"]) if "converged" in found else None,
        seconds=float(found["seconds"]),
        before_mb=float(found["before_mb"]),
        peak_mb=float(found["peak_mb"]),
        more={name: float(found[name]) for name in MORE if name in found},
    )
