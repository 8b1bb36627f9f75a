"""The checks must catch what they are for: each seeded defect fails the check that is named for it."""

import pytest
import torch
from torch import nn

from terramoe.checks import SYSTEM_CHECKS, CheckFailed, check_system
from terramoe.moe import weighing
from terramoe.systems import system_class

MambaMoE = system_class("mambamoe")


def broken(change):
    """MambaMoE with ``change(system)`` applied to each new miniature."""

    class Broken(MambaMoE):
        @classmethod
        def tiny(cls):
            system = super().tiny()
            change(system)
            return system

    return Broken


def no_router_gradient(system):
    for block in system.blocks:
        block.spatial.weigh = weighing.ones


def expert_born_in_forward(system):
    def forward(x):
        torch.manual_seed(int(torch.randint(1 << 30, ())))
        return nn.Linear(x.shape[-1], x.shape[-1])(x)

    for block in system.blocks:
        del block.spectral
        block.spectral = forward


def noise_in_evaluation(system):
    system.heads[0].register_forward_hook(lambda m, i, out: out + 1e-3 * torch.randn_like(out))


def batch_norm(system):
    system.heads[0].register_forward_hook(lambda m, i, out: out - out.mean(0, keepdim=True))


def dead_experts(system):
    for block in system.blocks:
        block.spatial.bank.register_forward_hook(lambda m, i, out: out)
        block.spatial.executor = lambda x, routing, bank: torch.zeros_like(x) * routing.weight.sum()


def reads_nodata(system):
    forward = system.forward
    system.forward = lambda batch: forward({**batch, "valid": torch.ones_like(batch["valid"])})


def blind_router(system):
    for block in system.blocks:
        block.spatial.scorer.register_forward_hook(lambda m, i, out: out._replace(logits=0 * out.logits.nan_to_num()))


def frozen_part(system):
    system.heads[0].classify.weight.register_hook(torch.zeros_like)


def parameter_on_the_fly(system):
    def add(module, inputs):
        if not hasattr(module, "late"):
            module.late = nn.Parameter(torch.zeros(1))

    system.register_forward_pre_hook(add)


DEFECTS = {
    "task_gradient": no_router_gradient,
    "train_equals_eval": expert_born_in_forward,
    "eval_deterministic": batch_norm,
    "experts_matter": dead_experts,
    "nodata": reads_nodata,
    "conditioning": blind_router,
    "parameters_move": frozen_part,
}


@pytest.mark.parametrize("check", DEFECTS)
def test_a_seeded_defect_is_caught(check):
    with pytest.raises(CheckFailed):
        SYSTEM_CHECKS[check](broken(DEFECTS[check]))


@pytest.mark.parametrize(
    ("check", "defect"),
    [("eval_deterministic", noise_in_evaluation), ("parameters_move", parameter_on_the_fly)],
)
def test_another_form_of_a_defect_is_caught(check, defect):
    with pytest.raises(CheckFailed):
        SYSTEM_CHECKS[check](broken(defect))


def test_a_detached_auxiliary_loss_is_caught():
    class Detached(MambaMoE):
        def loss(self, output, batch):
            routing = output.routings["level1"]
            return {**super().loss(output, batch), "balance": routing.probs.detach().sum()}

    with pytest.raises(CheckFailed, match="'balance' is detached"):
        SYSTEM_CHECKS["auxiliary_gradient"](Detached)


def test_all_failures_are_named_at_once_and_exemptions_need_reasons():
    system = broken(no_router_gradient)
    with pytest.raises(CheckFailed, match=r"task_gradient: the router of blocks\.0\.spatial gets no gradient"):
        check_system(system)
    with pytest.raises(CheckFailed, match="no reason"):
        check_system(system, exempt={"task_gradient": " "})
    with pytest.raises(CheckFailed, match="no such check"):
        check_system(system, exempt={"nonsense": "because"})
    check_system(MambaMoE)
