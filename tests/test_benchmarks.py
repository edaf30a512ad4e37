"""The scripts of `benchmarks/`: what they take from elsewhere is there."""

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    f"benchmarks.{file.parent.name}.{file.stem}"
    for file in ROOT.glob("*/*.py")
    if file.parent.name != "simulations" and file.stem != "__init__"
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_begun(name):
    assert import_module(name).__doc__
