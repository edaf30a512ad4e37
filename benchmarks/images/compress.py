"""Bits a picture: `python -m benchmarks.images.compress`.

Without loss: deflate (zlib, level 9) and xz of the counts of all held-out pictures at once, and PNG
of them as one sheet, side by side; beside what an ideal coder needs that uses the model, -log2 p(x)
by importance sampling, or a table of how often each pixel of the fitted pictures has each count.
With loss: the coordinates of each picture as float16, or as int8 in steps of a 127th of the largest
that a fitted picture has; the distortion is half the absolute difference between the proportions
decoded and the true ones, or those of all counts of a digit. Either way the number of photons has
to be told, and is counted with as many bits as the largest needs. What decodes, the decoder or
table in 16 bits a number, is told apart, and shared out among all pictures of the set.
"""

import io
import lzma
import math
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, PCA, K, distance, models, on_all, pictures
from countvae import MultinomialVAE

DRAWS = 200


def packed(counts: np.ndarray, pack: Callable[[bytes], bytes]) -> float:
    """Bits a picture of all together."""
    return 8 * len(pack(_bytes(counts).tobytes())) / len(counts)


def png(counts: np.ndarray, shape: tuple[int, int]) -> float:
    """Bits a picture of all as one sheet, about as wide as high, by PNG."""
    across = math.isqrt(len(counts))
    missing = np.zeros((-len(counts) % across, counts.shape[1]), np.uint8)
    laid = np.concatenate([_bytes(counts), missing]).reshape(-1, across, *shape).swapaxes(1, 2)
    sheet, file = Image.fromarray(laid.reshape(-1, across * shape[1])), io.BytesIO()
    sheet.save(file, "png", optimize=True)
    return 8 * file.getbuffer().nbytes / len(counts)


def _bytes(counts: np.ndarray) -> np.ndarray:
    assert counts.max() < 256
    return counts.astype(np.uint8)


def size_of(model: MultinomialVAE | PCA) -> int:
    """Numbers that the decoder has."""
    decoder = model.law if isinstance(model, PCA) else model._decoder
    own = decoder.sigma2.numel() + sum(part.numel() for part in decoder.parameters())
    return own if decoder.linear else own + K * (K + 1)  # coordinates have axes of their own


def rounded(y: np.ndarray, kind: str, most: np.ndarray) -> np.ndarray:
    """Coordinates as they come back from float16, or from int8."""
    if kind == "float16":
        return y.astype(np.float16).astype(float)
    return np.rint(y / most * 127).clip(-127, 127) * most / 127


def in_float16(model: MultinomialVAE | PCA) -> None:
    """Round the decoder to what is counted of it, and what follows from it."""
    decoder = model.law if isinstance(model, PCA) else model._decoder
    for part in (*decoder.parameters(), *decoder.buffers()):
        part.data.copy_(part.data.half())
    if isinstance(model, MultinomialVAE):
        model._identify(model._encoder, model._decoder)


def of_histograms(fitted: np.ndarray, held: np.ndarray) -> tuple[float, int]:
    """Bits a picture of an ideal coder with a histogram a pixel, and the numbers that it has."""
    most = int(max(fitted.max(), held.max())) + 1
    counted = np.stack([np.bincount(of.astype(int), minlength=most) for of in fitted.T])
    share = (counted + 1 / most) / (len(fitted) + 1)
    pixels = np.arange(held.shape[1])
    bits = -np.log2(share[pixels, held.astype(int)]).sum(1).mean()
    return float(bits), int((counted > 0).sum())


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Compress what was held out."""
    data, rows = pictures(name, seed), []
    whole = data.held / data.held.sum(1, keepdims=True)
    true = whole if data.held_light is None else data.held_light
    n = len(data.held) + len(data.fitted)
    of_depth = math.ceil(math.log2(max(data.held.sum(1).max(), data.fitted.sum(1).max()) + 1))

    def tell_row(method: str, bits: float, found: np.ndarray, numbers: int = 0) -> None:
        row = {"pictures": name, "seed": seed, "method": method, "bits": bits}
        row["with_decoder"] = bits + 16 * numbers / n
        rows.append(row | {"distance": distance(found, true)})
        tell(rows[-1])

    tell_row("deflate", packed(data.held, partial(zlib.compress, level=9)), whole)
    tell_row("xz", packed(data.held, partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME)), whole)
    tell_row("PNG", png(data.held, data.shape), whole)
    bits, numbers = of_histograms(data.fitted, data.held)
    tell_row("a histogram a pixel: ideal", bits, whole, numbers)
    for method, model in models(data.shape, seed).items():
        model.fit(data.fitted)
        in_float16(model)
        evidence, _ = model.evidence(data.held, DRAWS)
        ideal = of_depth - evidence.mean() / math.log(2)
        tell_row(f"{method}: ideal", ideal, whole, size_of(model))
        y, most = model.transform(data.held), np.abs(model.transform(data.fitted)).max(0)
        for kind, bits in (("float16", 16), ("int8", 8)):
            decoded = model.inverse_transform(rounded(y, kind, most))
            tell_row(f"{method}: {kind}", of_depth + bits * K, decoded, size_of(model))
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = on_all(measure, seeds)
    print(frame.drop(columns="seed").groupby(["pictures", "method"], sort=False).mean().to_string())
    write("compress", frame, HERE)
