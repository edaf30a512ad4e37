"""How many pictures a network needs: `python -m benchmarks.images.few`.

Models are fitted to the first 50 to 800 of the pictures, and score the evidence of those held out
by 100 importance draws, in nats a count.
"""

from benchmarks.core.common import arguments, tell, write
from benchmarks.images.scene import HERE, LINEAR, NETWORK, models, on_all, pictures

GIVEN = (50, 100, 200, 400, 800)
METHODS = (NETWORK, LINEAR)
DRAWS = 100


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Fit to some pictures, then to more."""
    data, rows = pictures(name, seed), []
    for given in GIVEN:
        for method in METHODS:
            model = models(data.shape, seed)[method].fit(data.fitted[:given])
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
