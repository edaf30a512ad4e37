"""The scenarios, one question a file."""

from countvae_simulations.scenarios import depth, parts, peers, sizes, wrong
from countvae_simulations.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO for module in (depth, parts, wrong, sizes, peers)
}
