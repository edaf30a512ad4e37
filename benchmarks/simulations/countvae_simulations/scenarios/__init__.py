"""The scenarios, one question a file."""

from countvae_simulations.scenarios import depth, mcmc, parts, peers, samples, sizes, width, wrong
from countvae_simulations.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (depth, samples, width, parts, wrong, sizes, peers, mcmc)
}
