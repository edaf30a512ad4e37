"""How many pictures a network needs: `python -m benchmarks.images.few`.

Models are fitted to the first 50 to 800 of the pictures, and score the evidence of those held out
by 100 importance draws, in nats a count. The network once more with a tenth of what it is given to
watch, and the best epoch by that kept.
"""

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, LINEAR, NETWORK, models, on_all, pictures

GIVEN = (50, 100, 200, 400, 800)
WATCHED = f"{NETWORK}, best epoch"
METHODS = {NETWORK: {}, WATCHED: {"validation_fraction": 0.1}, LINEAR: {}}
DRAWS = 100


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit to some pictures, then to more."""
    data, rows = pictures(name, seed), []
    for given in GIVEN:
        for method, settings in METHODS.items():
            model = models(data.shape, seed)[LINEAR if method == LINEAR else NETWORK]
            model.set_params(**settings).fit(data.fitted[:given])  # pyright: ignore
            evidence = model.evidence(data.held, DRAWS)[0].sum() / data.held.sum()
            about = {"pictures": name, "given": given, "method": method, "seed": seed}
            rows.append(about | {"evidence": evidence})
            tell(rows[-1])
    return rows


if __name__ == "__main__":
    seeds = arguments(__doc__ or "", 3).seeds
    frame = on_all(measure, seeds)
    mean = frame.groupby(["pictures", "given", "method"], sort=False)["evidence"].mean()
    print(mean.unstack("method").to_string())
    write("few", frame, HERE)
