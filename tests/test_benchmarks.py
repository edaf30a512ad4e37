"""The scripts of `benchmarks/`: what they take from elsewhere is there, and those of images run."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    f"benchmarks.{file.parent.name}.{file.stem}"
    for file in ROOT.glob("*/*.py")
    if file.parent.name != "simulations" and file.stem != "__init__"
)
OF_IMAGES = ("anomaly", "bounds", "compress", "denoise", "few", "transfer")
MEASURED = """
import inspect, sys, warnings
from importlib import import_module

import pandas as pd, torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

import countvae.estimator
from benchmarks.images import scene
from countvae.steps import Schedule

warnings.simplefilter("ignore")
torch.set_num_threads(1)
counts, digit = load_digits(return_X_y=True)
few = counts[:150], digit[:150]
countvae.estimator.Schedule = lambda epochs, *more: Schedule(min(2, epochs), *more)
given = {"digit": 3, "name": "digits", "seed": 0}
for name in sys.argv[1:]:
    script = import_module(f"benchmarks.images.{name}")
    for module in (scene, script):
        if hasattr(module, "load_digits"):
            module.load_digits = lambda return_X_y=False: few if return_X_y else Bunch(data=few[0])
    for limit, value in (("REFERENCE", 100), ("DRAWS", 20), ("GIVEN", (40, 60))):
        if hasattr(script, limit):
            setattr(script, limit, value)
    found = script.measure(*(given[of] for of in inspect.signature(script.measure).parameters))
    rows = pd.DataFrame(found[0] if isinstance(found, tuple) else found)
    assert len(rows) > 4, name
    assert rows.select_dtypes("number").notna().any().all(), name
    print(f"{name} measured")
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_begun(name):
    assert import_module(name).__doc__


def test_what_is_measured_of_images_can_be_measured():
    """On few digits and in two epochs: whether a script runs, not what it finds."""
    command = [sys.executable, "-c", MEASURED, *OF_IMAGES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [f"{name} measured" in done.stdout for name in OF_IMAGES] == [True] * len(OF_IMAGES)


def test_the_page_of_performance_is_what_its_tables_say():
    published = ROOT.parent / "docs" / "performance.md"
    assert (
        published.read_text(encoding="utf-8") == import_module("benchmarks.performance.page").page()
    )
