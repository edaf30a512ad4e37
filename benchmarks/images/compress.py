"""Bits a picture: `python -m benchmarks.images.compress`.

Without loss: deflate (zlib, level 9) of the counts of all held-out pictures at once, and PNG of
them as one sheet; beside what an ideal coder needs that uses the model, -log2 p(x) by importance
sampling and 12 bits for the number of photons. With loss: the coordinates of each picture as
float16, or as int8 in steps of a hundredth of their range, and 12 bits again; the distortion is
half the absolute difference between the proportions decoded and those of the counts. The model
itself, in float16, is told apart: bits of it, once.
"""

import io
import math
import zlib

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, PCA, SETS, K, models, pictures
from countvae import MultinomialVAE

DEPTH_BITS = 12
DRAWS = 200


def deflated(counts: np.ndarray) -> float:
    """Bits a picture of all together, by zlib."""
    return 8 * len(zlib.compress(counts.astype(np.uint8).tobytes(), 9)) / len(counts)


def png(counts: np.ndarray, shape: tuple[int, int]) -> float:
    """Bits a picture of all as one sheet, a picture under the other, by PNG."""
    sheet = Image.fromarray(counts.astype(np.uint8).reshape(-1, shape[1]))
    file = io.BytesIO()
    sheet.save(file, "png", optimize=True)
    return 8 * file.getbuffer().nbytes / len(counts)


def size_of(model: MultinomialVAE) -> int:
    """Numbers that encoder and decoder have."""
    modules = model._encoder, model._decoder
    return sum(part.numel() for module in modules for part in module.state_dict().values())


def rounded(y: np.ndarray, kind: str) -> np.ndarray:
    """Coordinates as they come back from float16, or from int8."""
    if kind == "float16":
        return y.astype(np.float16).astype(float)
    reach = np.abs(y).max(0) / 127
    return np.rint(y / reach) * reach


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Compress what was held out."""
    data, rows = pictures(name, seed), []
    whole = data.held / data.held.sum(1, keepdims=True)

    def tell_row(method: str, bits: float, distance: float, once: float = 0.0) -> None:
        keys = {"pictures": name, "seed": seed, "method": method}
        rows.append(keys | {"bits": bits, "distance": distance, "model_bits": once})
        tell(rows[-1])

    tell_row("deflate", deflated(data.held), 0.0)
    tell_row("PNG", png(data.held, data.shape), 0.0)
    for method, model in models(data.shape, seed).items():
        model.fit(data.fitted)
        evidence, _ = model.evidence(data.held, DRAWS)
        ideal = DEPTH_BITS - evidence.mean() / math.log(2)
        if isinstance(model, PCA):
            tell_row(f"{method}: ideal", ideal, 0.0)
            continue
        once = 16 * size_of(model)
        tell_row(f"{method}: ideal", ideal, 0.0, once)
        y = model.transform(data.held)
        for kind, bits in (("float16", 16), ("int8", 8)):
            decoded = model.inverse_transform(rounded(y, kind))
            distance = np.abs(decoded - whole).sum(1).mean() / 2
            tell_row(f"{method}: {kind}", DEPTH_BITS + bits * K, distance, once)
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 2).seeds
    frame = pd.DataFrame(
        [row for name in SETS for seed in range(seeds) for row in measure(name, seed)]
    )
    print(frame.drop(columns="seed").groupby(["pictures", "method"], sort=False).mean().to_string())
    write("compress", frame, HERE)
