"""Every registered system, by being registered."""

import dataclasses
import json

import pytest
import torch

from terramoe.checks import SYSTEM_CHECKS
from terramoe.errors import ConfigError
from terramoe.systems import SYSTEMS, build, plain_config, system_class


@pytest.mark.parametrize("check", SYSTEM_CHECKS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_check(name, check):
    cls = system_class(name)
    if check in cls.exempt:
        pytest.skip(cls.exempt[check])
    SYSTEM_CHECKS[check](cls)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_card_is_complete(name):
    card = system_class(name).card
    assert card.title
    assert card.authors
    assert 1985 <= card.year <= 2030
    assert card.arxiv or card.doi or card.provenance == ("survey",)  # a paper that nobody here could find
    assert card.provenance
    assert card.task
    assert card.sensors
    assert card.reported
    assert card.reconstruction == bool(card.completions)
    json.dumps(dataclasses.asdict(card))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_configuration_survives_json(name):
    system = system_class(name).tiny()
    again = build(name, json.loads(json.dumps(plain_config(system))))
    assert again.config == system.config


@pytest.mark.parametrize("name", SYSTEMS)
def test_layers_are_named_and_lie_in_the_image(name):
    cls = system_class(name)
    system = cls.tiny()
    batch = cls.tiny_batch(2, seed=0)
    output = system(batch)
    assert output.prediction.shape[0] == 2
    for layer, routing in output.routings.items():
        assert len(system.expert_names(layer)) == routing.num_experts
    for layer, layout in output.layouts.items():
        pixels = layout.to_pixels(torch.arange(output.routings[layer].num_items))
        assert pixels.shape == (2, *batch["image"].shape[-2:])
        items = set(pixels.unique().tolist())
        assert items <= {-1, *range(output.routings[layer].num_items)}  # -1: a pixel that no item is about
        assert len(items) > 1


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("nothing", {}, "there is no system 'nothing'.*use one of: .*mambamoe"),
        ("mambamoe", {"bands": 3, "classes": 2, "depth": 9}, "no setting depth"),
        ("mambamoe", {"bands": 3}, "classes"),
        ("mambamoe", {"bands": 3, "classes": 2, "top_k": 9}, "top_k must be in 1..4"),
        ("mambamoe", {"bands": 3, "classes": 2, "window": 0}, "window must be at least 1"),
        ("mambamoe", {"bands": "many", "classes": 2}, "system config of mambamoe"),
    ],
)
def test_bad_configurations(name, config, message):
    with pytest.raises(ConfigError, match=message):
        build(name, config)
