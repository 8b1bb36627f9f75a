"""Candidate labels: which survive, and what they cost, against hand-made cases."""

import math

import pytest
import torch

from terramoe.tasks.partial_labels import partial_label_loss, pruned_candidates

P = torch.tensor([[0.5, 0.4, 0.1], [0.45, 0.45, 0.1], [0.1, 0.2, 0.7]])
ALIKE = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])  # 0 and 1 are each other's neighbours
NONE = torch.full((3,), -1)
ALL = torch.ones(3, dtype=torch.bool)


def pruned(labels=NONE, known=ALL, neighbours=1, features=ALIKE):
    return pruned_candidates(P.log(), features, labels, known, neighbours).int().tolist()


def test_unlikely_classes_go_first():
    found = pruned_candidates(P.log(), ALIKE, NONE, torch.zeros(3, dtype=torch.bool), 1)
    assert found.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]  # nobody may be asked: within the sample alone


@pytest.mark.parametrize(("label", "left"), [(0, [1, 0, 0]), (1, [0, 1, 0]), (2, [0, 0, 0])])
def test_a_labelled_neighbour_prunes_all_but_its_label(label, left):
    assert pruned(torch.tensor([-1, label, -1]))[0] == left


def test_an_unlabelled_neighbour_votes_by_its_probabilities():
    assert pruned()[0] == [1, 1, 0]
    assert pruned()[2] == [0, 0, 0]  # its nearest is sample 1, which gives class 2 a tenth


def test_a_sample_is_not_its_own_neighbour():
    assert pruned(torch.tensor([2, -1, -1]))[0] == [1, 1, 0]


def test_only_known_samples_are_asked():
    labels, same = torch.tensor([-1, 2, -1]), torch.ones(3, 2)
    assert pruned(labels, torch.tensor([True, False, True]), features=same)[0] == [0, 0, 0]  # sample 2 gives a tenth
    assert pruned(labels, torch.tensor([True, False, False]))[0] == [1, 1, 0]


def test_more_neighbours_than_samples_and_a_lonely_sample():
    assert pruned(neighbours=50) == pruned(neighbours=3)
    alone = pruned_candidates(P[:1].log(), ALIKE[:1], NONE[:1], ALL[:1], 5)
    assert alone.tolist() == [[True, True, False]]


def test_pruning_takes_no_gradient():
    logits = P.log().requires_grad_()
    assert not pruned_candidates(logits, logits, NONE, ALL, 2).requires_grad


def test_the_loss_is_the_weighted_log_of_the_candidates_mass():
    candidates = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    expected = (0.25 * -math.log(0.9) + 0.175 * -math.log(0.45)) / 3  # (max - 1/3) / (2/3) sure; the empty one adds 0
    assert partial_label_loss(P.log(), candidates, ALL).item() == pytest.approx(expected, rel=1e-5)


def test_all_candidates_cost_nothing_and_neither_does_ignorance():
    assert partial_label_loss(P.log(), torch.ones(3, 3, dtype=torch.bool), ALL).item() == pytest.approx(0, abs=1e-7)
    one = torch.tensor([[True, False, False]])
    assert partial_label_loss(torch.zeros(1, 3), one, ALL[:1]).item() == pytest.approx(0, abs=1e-7)


def test_only_the_items_count_and_none_gives_zero_with_a_gradient_path():
    logits = P.log().requires_grad_()
    candidates = torch.tensor([[True, False, False]]).expand(3, 3)
    items = torch.tensor([True, False, False])
    assert partial_label_loss(logits, candidates, items).item() == pytest.approx(0.25 * math.log(2), rel=1e-5)
    loss = partial_label_loss(logits, candidates, ~ALL)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_the_gradient_lifts_candidates_and_does_not_pass_through_the_weight():
    logits = P.log().requires_grad_()
    partial_label_loss(logits, torch.tensor([[True, True, False]] * 3), ALL).backward()
    inside = P[:, :2] / P[:, :2].sum(1, keepdim=True)
    sure = (P.amax(1) - 1 / 3) * 1.5
    expected = sure[:, None] / 3 * (P - torch.nn.functional.pad(inside, (0, 1)))
    torch.testing.assert_close(logits.grad, expected)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = partial_label_loss(logits, torch.tensor([[False, True, False]]), ALL[:1])
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad.isfinite().all()
