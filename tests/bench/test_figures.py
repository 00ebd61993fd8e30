"""Medians, tables, required figures, bars."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from bench.figures import Check, Figure, figure, ratio, table
from bench.load import Load, Sample
from bench.plot import Bar, Panel, draw
from bench.voice import panels, section


def test_a_figure_is_the_median_with_the_least_and_the_greatest() -> None:
    assert figure([5.0, 1.0, 3.0]) == Figure(3.0, 1.0, 5.0)
    assert figure([5.0, 1.0, 3.0]).text(1) == "3.0 (1.0–5.0)"
    assert figure([2.0]).text(0) == "2"


def test_a_table_is_markdown() -> None:
    assert table(["", "ms"], [["a", "1"]]) == "|  | ms |\n| --- | ---: |\n| a | 1 |\n"


def test_a_check_holds_on_its_side_of_the_bound() -> None:
    assert Check("at most", 0.5, 0.5).holds
    assert not Check("at most", 0.51, 0.5).holds
    assert Check("at least", 1.2, 1.2, is_least=True).holds
    assert not Check("at least", 1.19, 1.2, is_least=True).holds


def test_a_ratio_is_one_of_medians_and_left_out_where_one_side_was_not_measured() -> None:
    ours, theirs = Figure(3.0, 1.0, 9.0), Figure(6.0, 5.0, 7.0)
    assert ratio("", ours, theirs, 0.5)[0].value == 0.5
    assert ratio("", ours, None, 0.5) == []
    assert ratio("", None, theirs, 0.5) == []
    assert ratio("", ours, Figure(0.0, 0.0, 0.0), 0.5) == []


def test_requirements_are_judged_against_the_cheapest_peer_and_both_copies() -> None:
    costs = {"meshvpn": 6.0, "fastd": 15.0, "nebula": 10.0, "copy": 9.0, "copy-gso": 4.0}
    samples = {Load(50_000): {name: [sample(cost)] for name, cost in costs.items()}}
    found = {check.what: check for check in section(samples).checks}
    assert found["CPU a voice packet at 50,000/s against fastd"].value == 6.0 / 15.0
    assert found["CPU a voice packet at 50,000/s against the best peer"].value == 6.0 / 10.0
    assert found["CPU a voice packet at 50,000/s against the bare copy with GSO/GRO"].value == 6.0 / 4.0
    assert not found["CPU a voice packet at 50,000/s against the best peer"].holds
    assert "CPU a voice packet at 100,000/s against the best peer" not in found, "it was not measured"


def test_loss_and_cost_count_what_arrived() -> None:
    one = sample(6.0, lost=250)
    assert one.loss == 0.25
    assert one.cost_us == 6.0


def test_the_plot_shows_every_contestant_and_what_it_lost() -> None:
    samples = {Load(50_000): {"meshvpn": [sample(6.0)], "a<b": [sample(15.0, lost=500)]}}
    drawn = draw(panels(samples), "2 cores")
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "meshvpn" in texts
    assert "a<b" in texts
    assert "15.0, 50.00 % lost" in texts


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("a", Figure(1.0, 1.0, 1.0)), Bar("b", Figure(2.0, 2.0, 2.0))]
    rectangles = ElementTree.fromstring(draw([Panel("", bars)], "")).iter("{http://www.w3.org/2000/svg}rect")
    short, long = (float(rectangle.attrib["width"]) for rectangle in rectangles)
    assert long == 2 * short


def test_a_whisker_far_off_the_scale_does_not_shorten_the_bars() -> None:
    bars = [Bar("a", Figure(1.0, 1.0, 1.0)), Bar("b", Figure(2.0, 2.0, 500.0))]
    rectangles = ElementTree.fromstring(draw([Panel("", bars)], "")).iter("{http://www.w3.org/2000/svg}rect")
    assert max(float(rectangle.attrib["width"]) for rectangle in rectangles) > 300


def sample(cost_us: float, *, lost: int = 0) -> Sample:
    received = 1000 - lost
    return Sample(
        sent=1000,
        received=received,
        offered=50_000.0,
        cpu=cost_us * received / 1e6,
        softirq=0.0,
        generator=0.5,
        busy=0.5,
        p50_ms=0.1,
        p99_ms=1.0,
        p999_ms=2.0,
        jitter_ms=0.1,
        reordered=0,
        duplicates=0,
    )
