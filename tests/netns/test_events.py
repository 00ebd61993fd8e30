"""Whatever befalls sites that talk, with the figures that must hold; each prints the longest gap and what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.figures import FIGURES

from . import host_scenarios, ipv6_scenarios, mtu_scenarios, nat_scenarios, path_scenarios, server_scenarios
from .scenarios import Outcome, Scenario

pytestmark = pytest.mark.netns

SCENARIOS = (
    *server_scenarios.SCENARIOS,
    *nat_scenarios.SCENARIOS,
    *path_scenarios.SCENARIOS,
    *host_scenarios.SCENARIOS,
    *ipv6_scenarios.SCENARIOS,
    *mtu_scenarios.SCENARIOS,
)
"""The long ones first: the others fit in beside them."""
TEST = "test_it_goes_on"
AT_ONCE = 5
"""Labs: enough to make use of the waiting, few enough for two processors."""


@dataclass(slots=True)
class Run:
    """A scenario that runs, and what was seen so far."""

    future: Future[None]
    outcome: Outcome


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[Scenario, Run]]:
    """Those that are asked for."""
    names = {item.name for item in request.session.items}
    wanted = [scenario for scenario in SCENARIOS if f"{TEST}[{scenario.__name__}]" in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scenario: Run(pool.submit(scenario, outcome := Outcome()), outcome) for scenario in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_goes_on(
    running: dict[Scenario, Run], scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    run = running[scenario]
    error = run.future.exception()
    record_property(FIGURES, f"{scenario.__name__.replace('_', ' ')}: {run.outcome.describe()}")
    if error is not None:
        raise error
