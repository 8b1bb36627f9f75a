"""What is distinctive in MambaMoE, and the defects of its released code that ours must not have."""

import dataclasses

import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.systems.mambamoe import MambaMoE, MambaMoEConfig, uncertainty
from terramoe.tasks import pixel_cross_entropy


def make(**changes):
    torch.manual_seed(0)
    return MambaMoE(dataclasses.replace(MambaMoE.tiny().config, **changes))


def test_the_defaults_are_the_papers():
    config = MambaMoEConfig(bands=103, classes=9)
    assert (config.width, config.expert_widths, config.top_k, config.state) == (64, (2, 4, 8, 16), 2, 16)
    system = MambaMoE(config)
    names = system.expert_names("level1")
    assert names == ("rows, width 2", "columns, width 4", "rows reversed, width 8", "columns reversed, width 16")


def test_the_spectral_expert_is_registered_and_trained():
    """The released code makes it anew, with random weights, in every forward pass."""
    system, batch = make(), MambaMoE.tiny_batch(2, 0)
    system.loss(system(batch), batch)["task"].backward()
    for block in system.blocks:
        gradients = [p.grad.abs().max() for p in block.spectral.parameters()]
        assert len(gradients) > 5
        assert min(gradients) > 0


def test_expert_i_scans_direction_i_whoever_is_chosen():
    """In evaluation the released code gives direction k to the k-th chosen expert."""
    system = make()
    bank = system.blocks[0].spatial.bank
    assert [e.direction for e in bank.experts] == ["rows", "columns", "rows reversed", "columns reversed"]


def test_every_expert_moves_its_router_logit():
    system, batch = make(), MambaMoE.tiny_batch(2, 0)
    system.loss(system(batch), batch)["task"].backward()
    assert (system.blocks[0].spatial.scorer.linear.weight.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize(("window", "items"), [(2, 2 * 5 * 4), (4, 2 * 3 * 2), (None, 2)])
def test_windows_are_the_items(window, items):
    system = make(window=window)
    output = system(MambaMoE.tiny_batch(2, 0))  # 19 x 17 pixels: level 1 has 9 x 8 cells
    assert output.routings["level1"].num_items == items


def test_all_prediction_levels_are_trained():
    system, batch = make(), MambaMoE.tiny_batch(2, 0)
    output = system(batch)
    assert output.extras.keys() == {"level2", "level3"}
    system.loss(output, batch)["task"].backward()
    assert all(head.classify.weight.grad.abs().max() > 0 for head in system.heads)


def test_without_sampling_the_loss_is_the_sum_over_levels():
    system, batch = make(uncertainty_sampling=False), MambaMoE.tiny_batch(2, 0)
    output = system(batch)
    levels = [output.prediction, *output.extras.values()]
    expected = sum(pixel_cross_entropy(level, batch["mask"]) for level in levels)
    torch.testing.assert_close(system.loss(output, batch)["task"], expected)


def test_uncertainty_is_greatest_where_the_model_is_unsure_and_zero_without_label():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0] = torch.tensor([0.3, 2.0, 9.0, 0.5])
    u = uncertainty(logits, torch.tensor([[[0, 1, 0, -1]]]))[0, 0]
    assert u.min() == 0
    assert u.max() == 1
    assert u[3] == 0
    assert u[2] < u[1]
    assert not uncertainty(logits.requires_grad_(), torch.zeros(1, 1, 4).long()).requires_grad


def test_a_batch_without_labels_gives_zero_loss_and_zero_gradient():
    system, batch = make(), MambaMoE.tiny_batch(2, 0)
    batch["mask"].fill_(-1)
    loss = system.loss(system(batch), batch)["task"]
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in system.parameters() if p.grad is not None)


def test_the_twin_of_the_default_has_widths_seven_and_eight():
    config = MambaMoEConfig(bands=3, classes=2)
    twin = MambaMoE.dense_twin(config)
    assert twin.expert_widths == (7, 8)
    assert MambaMoE.dense_twin(config, equal="parameters").expert_widths == (15, 15)


def test_images_below_eight_pixels_are_refused():
    with pytest.raises(ConfigError, match="7 x 20 pixels.*at least 8 x 8"):
        make()({"image": torch.zeros(1, 6, 7, 20)})


def test_validity_is_optional():
    system, batch = make().eval(), MambaMoE.tiny_batch(2, 0)
    everything = {**batch, "valid": torch.ones_like(batch["valid"])}
    without = {key: value for key, value in batch.items() if key != "valid"}
    assert torch.equal(system(without).prediction, system(everything).prediction)
