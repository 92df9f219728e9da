"""The table of metrics: its page, its sections, and the names that a run writes."""

import pytest
from conftest import ROOT

from hfbsz.records import metrics
from hfbsz.records.metrics import METRICS, metric, metrics_page, section


def test_the_page_is_current():
    assert (ROOT / "docs/metrics.md").read_text() == metrics_page(), "python scripts/schema.py writes it"
    assert all(f"| `{name}` |" in metrics_page() for name in METRICS)


def test_a_number_has_a_unit_or_a_heading_that_tells_what_it_is():
    for name, entry in METRICS.items():
        assert entry.heading and entry.definition and entry.label.endswith(")"), name
        assert entry.show(0.5).endswith(entry.unit), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eval/loss", METRICS["eval/loss"]),
        ("eval/films/loss", METRICS["eval/loss"]),
        ("full/films/bits_per_byte", METRICS["full/bits_per_byte"]),
        ("eval/rouge_l", metrics.Metric("rouge l", "", "rouge_l")),
        ("other/scale", metrics.Metric("scale", "", "scale")),
    ],
)
def test_the_entry_of_a_name(name, expected):
    assert metric(name) == expected


def test_sections_hold_each_metric_once():
    titles = {entry.section for entry in METRICS.values()} - {""}
    assert sum(len(section(title)) for title in titles) == sum(bool(entry.section) for entry in METRICS.values())
    at_end = ["full/loss", "full/accuracy", "full/preference_accuracy", "full/bits_per_byte", "last/loss"]
    assert list(section(metrics.AT_END)) == at_end


def test_the_noise_scale_of_a_layer_has_an_entry():
    entry = metric("noise/layer/model.layers.0.input_layernorm")
    assert (entry.unit, entry.heading) == ("sequences", "noise scale of model.layers.0.input_layernorm")
