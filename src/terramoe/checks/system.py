"""Checks that every system must pass, made from what released implementations of the field get wrong.

check_system(MySystem)                                  # raises CheckFailed, naming all that fails
check_system(MySystem, exempt={"nodata": "one pixel"})  # an exemption is data with a reason
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from terramoe.errors import TerraMoEError
from terramoe.moe import FixedCapacity, MoELayer, NoisyScorer, Scores, summarise
from terramoe.systems import Output, System
from terramoe.training.state import gather_state, restore_state

Check = Callable[[type[System]], None]


class CheckFailed(TerraMoEError):
    """A system breaks the contract."""


def check_system(cls: type[System], exempt: Mapping[str, str] | None = None) -> None:
    """Run every check of ``SYSTEM_CHECKS`` on the miniature of a system.

    Args:
        exempt: names of checks to leave out, each with the reason; those of ``cls.exempt`` if None.

    Raises:
        CheckFailed: names every check that failed and why.
    """
    exempt = cls.exempt if exempt is None else exempt
    for name, reason in exempt.items():
        if name not in SYSTEM_CHECKS or not reason.strip():
            raise CheckFailed(f"exemption '{name}' has no such check or no reason", where=cls.__name__)
    failures = []
    for name, check in SYSTEM_CHECKS.items():
        if name not in exempt:
            try:
                check(cls)
            except CheckFailed as failure:
                failures.append(f"{name}: {failure.what}")
    if failures:
        raise CheckFailed("; ".join(failures), where=cls.__name__, fix="see terramoe.checks.system")


def task_gradient(cls: type[System]) -> None:
    """The task's loss alone gives every router a gradient (a renormalised top-1 does not)."""
    system, batch = _fresh(cls)
    system.loss(system(batch), batch)["task"].backward()
    for name, layer in _layers(system):
        _require(_gradient(layer.scorer) > 0, f"the router of {name} gets no gradient from the task")


def auxiliary_gradient(cls: type[System]) -> None:
    """Every auxiliary loss moves a router (a detached one does not)."""
    system, batch = _fresh(cls)
    for name in [name for name in system.loss(system(batch), batch) if name != "task"]:
        system.zero_grad()
        loss = system.loss(system(batch), batch)[name]
        _require(loss.requires_grad, f"the loss '{name}' is detached")
        loss.backward()
        moved = any(_gradient(layer.scorer) > 0 for _, layer in _layers(system))
        _require(moved, f"the loss '{name}' moves no router")


def experts_matter(cls: type[System]) -> None:
    """Perturbing the weights of an expert or adapter in use changes the output."""
    system, batch = _fresh(cls)
    system.eval()
    output = _predict(system, batch)
    for (name, layer), routing in zip(_layers(system), output.routings.values(), strict=True):
        before = {key: value.clone() for key, value in layer.bank.state_dict().items()}
        with torch.no_grad():
            for parameter in layer.bank.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        changed = not torch.equal(_predict(system, batch).prediction, output.prediction)
        layer.bank.load_state_dict(before)
        _require(changed or not routing.kept.any(), f"the experts of {name} do not change the output")


def conditioning(cls: type[System]) -> None:
    """Changing any input that the card declares as conditioning changes a routing."""
    system, batch = _fresh(cls)
    system.eval()
    before = _predict(system, batch).routings
    for key in cls.conditioning:
        changed = dict(batch)
        changed[key] = batch[key].flip(0) if batch[key].dtype != torch.float32 else 1.5 * batch[key] + 1
        after = _predict(system, changed).routings
        moved = any(not torch.equal(before[n].logits, after[n].logits) for n in before)
        _require(moved, f"'{key}' does not influence any routing")


def train_equals_eval(cls: type[System]) -> None:
    """Training and evaluation mode compute the same function once noise and dropout are off."""
    system, batch = _fresh(cls)
    system.train()
    for module in system.modules():
        if isinstance(module, NoisyScorer | nn.Dropout):
            module.eval()
    training = _predict(system, batch).prediction
    system.eval()
    _require(
        torch.equal(training, _predict(system, batch).prediction), "training and evaluation mode give other predictions"
    )


def eval_deterministic(cls: type[System]) -> None:
    """Evaluation is deterministic, and an image's prediction does not depend on the others of its batch."""
    system, batch = _fresh(cls)
    system.eval()
    together = _predict(system, batch).prediction
    _require(torch.equal(together, _predict(system, batch).prediction), "two evaluations of one batch differ")
    for i in range(len(together)):
        alone = _predict(system, {key: value[i : i + 1] for key, value in batch.items()}).prediction
        same = torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)
        _require(same, "a prediction depends on the other images of the batch")


def parameters_move(cls: type[System]) -> None:
    """All parameters exist before the first forward pass; those in use move in training, frozen ones do not."""
    system, _ = _fresh(cls)
    before = {name: value.clone() for name, value in system.named_parameters()}
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    used = {name: torch.zeros(layer.bank.num_experts) for name, layer in _layers(system)}
    for step in range(6):
        batch = cls.tiny_batch(2, seed=step)
        output = system(batch)
        for load_sum, routing in zip(used.values(), output.routings.values(), strict=True):
            load_sum += routing.load()
        optimizer.zero_grad()
        sum(system.loss(output, batch).values()).backward()
        optimizer.step()
    after = dict(system.named_parameters())
    _require(list(before) == list(after), "the forward pass creates or removes parameters")
    idle = [
        f"{name}.bank.experts.{expert}."
        for name, load in used.items()
        for expert in (load == 0).nonzero().flatten().tolist()
    ]
    trained = [name for name, parameter in after.items() if parameter.requires_grad]
    stuck = [n for n in trained if torch.equal(before[n], after[n]) and not n.startswith(tuple(idle))]
    moved = [n for n in set(after) - set(trained) if not torch.equal(before[n], after[n])]
    _require(not moved, f"frozen, but changed: {', '.join(moved)}")
    _require(not stuck, f"never trained: {', '.join(stuck)}")


def nodata(cls: type[System]) -> None:
    """What stands in an invalid pixel, NaN included, changes nothing: neither prediction, nor loss, nor gradient."""
    system, batch = _fresh(cls)
    if "valid" not in batch:
        raise CheckFailed("the miniature batch has no 'valid'")
    invalid = ~batch["valid"]
    batch["mask"] = torch.where(invalid, -1, batch["mask"])
    expected = None
    for junk in (0.0, 1e9, torch.nan, torch.inf):
        system.zero_grad()
        torch.manual_seed(0)
        output = system({**batch, "image": torch.where(invalid[:, None], junk, batch["image"])})
        clean = output.prediction if expected is None else expected[0]
        _require(torch.equal(output.prediction, clean), "an invalid pixel changes the prediction")
        sum(system.loss(output, batch).values()).backward()
        gradients = [p.grad.clone() for p in system.parameters() if p.grad is not None]
        expected = expected or (output.prediction.detach(), gradients)
        same = all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))
        _require(same, "an invalid pixel changes a gradient")


def extremes(cls: type[System]) -> None:
    """No item at all, a single image, and all items on one expert: finite outputs and gradients."""
    system, batch = _fresh(cls)
    nothing = {**batch, "valid": torch.zeros_like(batch["valid"])} if "valid" in batch else batch
    one = {key: value[:1] for key, value in batch.items()}
    for case, inputs in (("without valid items", nothing), ("of one image", one)):
        _run_and_require_finite(system, inputs, case)
    hooks = [layer.scorer.register_forward_hook(_prefer_first) for _, layer in _layers(system)]
    _run_and_require_finite(system, batch, "with all items on one expert")
    for hook in hooks:
        hook.remove()


def drops_counted(cls: type[System]) -> None:
    """What a tight capacity drops appears in the record and in the statistics, pair by pair."""
    system, batch = _fresh(cls)
    for _, layer in _layers(system):
        layer.capacity = FixedCapacity(0.4)
    output = _predict(system, batch)
    dropped_any = False
    for name, routing in output.routings.items():
        lost = int(routing.demand().sum() - routing.load().sum())
        share = lost / max(routing.expert.numel(), 1)
        _require(abs(float(routing.dropped()) - share) < 1e-6, f"{name} miscounts its dropped pairs")
        counted = summarise({name: routing})[name].dropped_share
        _require(abs(counted - share) < 1e-6, f"the statistics of {name} miscount dropped pairs")
        dropped_any |= lost > 0
    _require(dropped_any, "a capacity of 0.4 drops nothing")
    _require(bool(output.prediction.isfinite().all()), "dropped items make the prediction infinite")


def state_round_trip(cls: type[System]) -> None:
    """Weights survive a safetensors file bit for bit, and give the same prediction in a new instance."""
    system, batch = _fresh(cls)
    system.eval()
    weights = load(save({name: value.contiguous() for name, value in system.state_dict().items()}))
    other = cls.tiny().eval()
    other.load_state_dict(weights)
    _require(
        torch.equal(_predict(other, batch).prediction, _predict(system, batch).prediction), "a reloaded system differs"
    )


def resume(cls: type[System]) -> None:
    """Training stopped, saved, loaded and continued equals training that never stopped, bit for bit."""
    whole, _ = _train(cls, 0, 4, None)
    _, saved = _train(cls, 0, 2, None)
    resumed, _ = _train(cls, 2, 4, saved)
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    _require(same, "resumed training ends elsewhere")


SYSTEM_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        task_gradient,
        auxiliary_gradient,
        experts_matter,
        conditioning,
        train_equals_eval,
        eval_deterministic,
        parameters_move,
        nodata,
        extremes,
        drops_counted,
        state_round_trip,
        resume,
    )
}


def _fresh(cls: type[System]) -> tuple[System, dict[str, Tensor]]:
    torch.manual_seed(0)
    return cls.tiny(), cls.tiny_batch(2, seed=0)


def _layers(system: System) -> list[tuple[str, MoELayer]]:
    found = [(name, module) for name, module in system.named_modules() if isinstance(module, MoELayer)]
    _require(bool(found), "the system has no routed layer")
    return found


def _predict(system: System, batch: Mapping[str, Tensor]) -> Output:
    with torch.no_grad():
        return system(batch)


def _gradient(module: nn.Module) -> float:
    return max((float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None), default=0.0)


def _prefer_first(module: nn.Module, inputs: object, scores: Scores) -> Scores:
    bonus = torch.zeros_like(scores.logits)
    bonus[:, 0] = 1e4
    return scores._replace(logits=scores.logits + bonus)


def _run_and_require_finite(system: System, batch: dict[str, Tensor], case: str) -> None:
    system.zero_grad()
    output = system(batch)
    sum(system.loss(output, batch).values()).backward()
    _require(bool(output.prediction.isfinite().all()), f"a batch {case} gives a prediction that is not finite")
    gradients = (p.grad for p in system.parameters() if p.grad is not None)
    _require(all(bool(g.isfinite().all()) for g in gradients), f"a batch {case} gives gradients that are not finite")


def _train(
    cls: type[System], start: int, stop: int, saved: dict[str, Tensor] | None
) -> tuple[System, dict[str, Tensor]]:
    torch.manual_seed(0)
    system = cls.tiny()
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    if saved is not None:
        restore_state(system, optimizer, saved)
    for step in range(start, stop):
        torch.manual_seed(step)
        batch = cls.tiny_batch(2, seed=step)
        optimizer.zero_grad()
        sum(system.loss(system(batch), batch).values()).backward()
        optimizer.step()
    return system, {name: value.clone() for name, value in gather_state(system, optimizer).items()}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailed(otherwise)
