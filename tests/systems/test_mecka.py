"""What is distinctive in MECKA: votes only on what a head knows, teaching by the others, and no label of the target."""

import dataclasses

import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.experiments.claims.mecka import ALONE, CLAIM, COVERAGE, heads_alone
from terramoe.nets import patches_of
from terramoe.nets.strong_view import strong_view
from terramoe.systems import build_control
from terramoe.systems.mecka import MECKA, MECKAConfig, pseudo_labels, votes_of


def make(**changes):
    torch.manual_seed(0)
    return MECKA(dataclasses.replace(MECKA.tiny().config, **changes))


def test_the_prediction_is_the_mean_over_the_heads_that_know_the_class():
    system, batch = make().eval(), MECKA.tiny_batch(2, 0)
    output = system(batch)
    patches = patches_of(batch, 5)
    views = system.views(output.extras["features"])
    found = output.prediction.permute(0, 2, 3, 1).flatten(0, 2)[patches.pixel].exp()
    for k, voters in enumerate([[0, 2], [0], [0, 1], [1, 2]]):  # coverage 1110, 0011, 1001
        votes = []
        for head in voters:
            known = [c for c in range(4) if system.config.known[head][c]]
            votes.append(views[head][:, known].softmax(-1)[:, known.index(k)])
        torch.testing.assert_close(found[:, k], torch.stack(votes).mean(0))


def test_a_class_that_no_head_knows_is_never_predicted():
    system = make(coverage=("1100", "0100", "1000")).eval()
    output = system(MECKA.tiny_batch(2, 0))
    valid = MECKA.tiny_batch(2, 0)["valid"]
    assert output.prediction.isfinite().all()
    assert set(output.prediction.argmax(1)[valid].tolist()) <= {0, 1}


def test_all_heads_answer_with_equal_weight():
    output = make()(MECKA.tiny_batch(2, 0))
    routing = output.routings["heads"]
    assert routing.num_choices == 3
    torch.testing.assert_close(routing.weight, torch.full_like(routing.weight, 1 / 3))


def test_each_head_learns_labels_of_its_own_source_only():
    system, batch = make(consistency=0.0), MECKA.tiny_batch(2, 0)
    batch["mask"] = torch.where(batch["domain"] == 1, batch["mask"], -1)
    system.loss(system(batch), batch)["task"].backward()
    gradients = [max(p.grad.abs().max() for p in head.parameters()) for head in system.heads.bank.experts]
    assert gradients[0] == gradients[2] == 0
    assert gradients[1] > 0


def test_the_labels_of_the_target_are_never_read():
    system, batch = make(), MECKA.tiny_batch(2, 0)
    target = batch["domain"] == 3
    assert target.any()
    found = []
    for label in (-1, 0, 3):
        torch.manual_seed(1)
        labelled = {**batch, "mask": torch.where(target, label, batch["mask"])}
        found.append(sum(system.loss(system(labelled), labelled).values()))
    assert found[0] == found[1] == found[2]


def test_a_label_that_the_coverage_denies_is_not_read():
    system, batch = make(), MECKA.tiny_batch(2, 0)
    wrong = (batch["domain"] == 1) & (batch["mask"] == -1) & batch["valid"]
    assert wrong.any()
    losses = []
    for labels in (batch["mask"], torch.where(wrong, 0, batch["mask"])):  # source 1 lacks class 0
        batch["mask"] = labels
        losses.append(system.loss(system(batch), batch)["task"])
    assert losses[0] == losses[1]
    assert losses[0].isfinite()


def test_others_teach_what_they_know_and_only_when_sure():
    known = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)
    votes = torch.zeros(3, 2, 3)
    votes[0, 0], votes[1, 0], votes[2, 0] = (torch.tensor(v) for v in ([0.9, 0.1, 0], [0, 0.05, 0.95], [0.04, 0, 0.96]))
    votes[0, 1], votes[1, 1], votes[2, 1] = (torch.tensor(v) for v in ([0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]))
    taught = pseudo_labels(votes, known, 0.9)
    assert taught[0].tolist() == [2, -1]  # a class that head 0 lacks: heads 1 and 2 agree, mean 0.955
    assert taught[1].tolist() == [2, -1]  # of head 2 alone, 0.96; for class 0 the mean is 0.47
    assert taught[2].tolist() == [2, -1]  # of head 1 alone, 0.95; for class 0 head 0 says 0.9
    assert pseudo_labels(votes, known, 0.96)[:, 0].tolist() == [-1, 2, -1]


def test_a_single_head_teaches_nobody():
    assert (pseudo_labels(torch.ones(1, 4, 3), torch.ones(1, 3, dtype=torch.bool), 0.5) == -1).all()
    system, batch = make(head_of_source=(0, 0, 0)), MECKA.tiny_batch(2, 0)
    assert set(system.loss(system(batch), batch)) == {"task"}


def test_teaching_needs_tiles_of_the_target():
    system, batch = make(confidence=0.0), MECKA.tiny_batch(2, 0)
    assert system.loss(system(batch), batch)["consistency"] > 0
    batch["domain"] = batch["domain"].clamp(max=2)
    loss = system.loss(system(batch), batch)["consistency"]
    assert loss == 0
    loss.backward()
    assert all(p.grad.isfinite().all() for p in system.parameters() if p.grad is not None)


def test_nobody_is_taught_below_the_threshold_and_votes_sum_to_one():
    system, batch = make(confidence=1.0), MECKA.tiny_batch(2, 0)
    assert system.loss(system(batch), batch)["consistency"] == 0
    views = system.views(system(batch).extras["features"])
    votes = votes_of(views, torch.tensor(system.config.known))
    torch.testing.assert_close(votes.sum(-1), torch.ones_like(votes[..., 0]))


def test_the_strong_view_keeps_nodata_and_hides_a_square():
    torch.manual_seed(0)
    values, valid = torch.ones(40, 2, 9, 9), torch.ones(40, 9, 9, dtype=torch.bool)
    valid[:, 0] = False
    values = torch.where(valid[:, None], values, 0)
    changed, seen = strong_view(values, valid)
    assert changed.shape == values.shape
    assert (changed[~seen[:, None].expand_as(changed)] == 0).all()
    lost = 81 - seen.sum((1, 2))
    assert ((lost >= 9) & (lost <= 9 + 9)).all()  # a row without data, and a square of 3 x 3 that may lie on it
    edges = torch.stack([~seen[:, 0], ~seen[:, -1], ~seen[:, :, 0], ~seen[:, :, -1]]).all(-1)
    assert edges.any(1).all()  # the row without data turned to every side
    assert (edges.sum(0) >= 1).all()
    again, _ = strong_view(values, valid)
    assert not torch.equal(changed, again)


@pytest.mark.parametrize("extractor", [False, True])
def test_what_heads_teach_each_other_reaches_the_extractor_only_if_asked(extractor):
    system, batch = make(teach_extractor=extractor, confidence=0.0), MECKA.tiny_batch(2, 0)
    system.loss(system(batch), batch)["consistency"].backward()
    assert (system.levels[0].conv.weight.grad is not None) == extractor
    assert all(p.grad.abs().max() > 0 for head in system.heads.bank.experts for p in head.parameters())


def test_before_teaching_only_sources_train():
    system, batch = make(consistency=0.0), MECKA.tiny_batch(2, 0)
    torch.testing.assert_close(system.pretrain_loss(batch)["task"], system.loss(system(batch), batch)["task"])
    assert all(p.requires_grad for p in system.parameters())


def test_large_tiles_go_through_in_parts(monkeypatch):
    system, batch = make().eval(), MECKA.tiny_batch(2, 0)
    whole = system(batch).prediction
    monkeypatch.setattr("terramoe.systems.mecka.AT_ONCE", 100)  # four tiles of 25 pixels
    torch.testing.assert_close(system(batch).prediction, whole)


def test_pooled_and_single_sources_are_settings():
    config = MECKA.tiny().config
    pooled = build_control(MECKA, config, "dense").config
    assert pooled.heads == ((0, 1, 2),)
    assert pooled.known == ((True, True, True, True),)
    single = make(head_of_source=(-1, 0, -1))
    assert single.config.known == ((False, False, True, True),)
    assert single.expert_names("heads") == ("source 2",)
    assert MECKA.scaled(config, 2, 2).heads == ((0, 2), (1,))
    assert make(head_of_source=(0, 1, 0)).expert_names("heads") == ("source 1 + 3", "source 2")
    with pytest.raises(ConfigError, match="6 heads.*1 to 3 heads"):
        MECKA.scaled(config, 6, 6)
    with pytest.raises(ConfigError, match="let all of them answer"):
        MECKA.scaled(config, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": 1}, "domains must be at least 2"),
        ({"coverage": ("1110", "0011")}, "coverage must be"),
        ({"coverage": ("1110", "0011", "0000")}, "coverage must be"),
        ({"coverage": (1110, 11, 1001)}, "coverage must be"),
        ({"coverage": ("1110", "0011", "10012")}, "coverage must be"),
        ({"head_of_source": (0, 2, 0)}, "head_of_source must be"),
        ({"head_of_source": (-1, -1, -1)}, "head_of_source must be"),
        ({"head_of_source": (0, -2, 1)}, "head_of_source must be"),
        ({"patch": 6}, "patch must be odd"),
        ({"patch": 3}, "patch must be odd"),
        ({"widths": (6, 8)}, "widths must be"),
        ({"widths": (8, 0)}, "widths must be"),
        ({"head_width": 0}, "head_width must be"),
        ({"confidence": 1.1}, "confidence"),
        ({"consistency": -1.0}, "consistency"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_training_without_domains_is_our_error():
    system, batch = make(), MECKA.tiny_batch(2, 0)
    del batch["domain"]
    system(batch)
    with pytest.raises(ConfigError, match="no 'domain'"):
        system.loss(system(batch), batch)


def test_the_claim_scores_heads_on_the_classes_that_they_lack():
    scene = CLAIM.scene()
    split = CLAIM.plan.folds(scene)[0]
    config = MECKAConfig(bands=3, classes=8, domains=4, patch=17, widths=(8,), head_width=4, coverage=COVERAGE)
    system = MECKA(config).eval()
    with torch.no_grad():  # each head says its own class, whatever it sees
        for head, answer in zip(system.heads.bank.experts, (7, 0, 3), strict=True):
            head.logits[-1].weight.zero_()
            head.logits[-1].bias.copy_(torch.nn.functional.one_hot(torch.tensor(answer), 8))
    assert all(COVERAGE[s][answer] == "0" for s, answer in enumerate((7, 0, 3)))
    predictor = dataclasses.make_dataclass("P", ["system", "normaliser"])(system, lambda image: image)
    found = heads_alone(dataclasses.make_dataclass("A", ["predictor"])(predictor), scene, split)
    assert found["best_head"] == pytest.approx(1 / 8)
    assert found["missing_classes"] == pytest.approx(1 / 3)  # one of three classes that a head lacks
    assert [sum(head >= 0 for head in heads) for heads in ALONE.values()] == [1, 1, 1]
