"""Whatever befalls sites that talk, with the figures that must hold; each prints the longest gap and what was lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from . import nat_scenarios, path_scenarios, server_scenarios
from .scenarios import Outcome, Scenario

pytestmark = pytest.mark.netns

SCENARIOS = (*server_scenarios.SCENARIOS, *nat_scenarios.SCENARIOS, *path_scenarios.SCENARIOS)
"""The long ones first: the others fit in beside them."""
TEST = "test_it_goes_on"
AT_ONCE = 5
"""Labs: enough to make use of the waiting, few enough for two processors."""


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[Scenario, Future[Outcome]]]:
    """Those that are asked for."""
    names = {item.name for item in request.session.items}
    wanted = [scenario for scenario in SCENARIOS if f"{TEST}[{scenario.__name__}]" in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scenario: pool.submit(_run, scenario) for scenario in wanted}
        pool.shutdown(cancel_futures=True)


def _run(scenario: Scenario) -> Outcome:
    outcome = Outcome()
    try:
        scenario(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome.describe()}") from error
    return outcome


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_goes_on(running: dict[Scenario, Future[Outcome]], scenario: Scenario) -> None:
    sys.stdout.write(f"{scenario.__name__}: {running[scenario].result().describe()}\n")
