"""Shared by all tests: one thread, and where the real tables are."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("countvae", deadline=None, derandomize=True)
hypothesis.settings.load_profile("countvae")

_FILES = {
    "ecam": "ecam/table.biom",
    "ifnb_pbmc": "ifnb_pbmc/counts.h5ad",
    "oaks": "oaks/table.biom",
    "globalpatterns": "globalpatterns/table.biom",
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Let tests be quick on a busy machine; those about threads ask for more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_table() -> Callable[[str], Path]:
    """Path of a real table by name; without it the test is skipped, but under CI it fails."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("COUNTVAE_DATA", default))

    def find(name: str) -> Path:
        path = folder / _FILES[name]
        if not path.exists():
            reason = f"no {_FILES[name]} in {folder}: set COUNTVAE_DATA to where the tables are"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find
