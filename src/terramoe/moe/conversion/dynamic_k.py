"""From a dense FFN to many small experts of which an item uses as many as it needs: D2DMoE.

Four steps: make activations sparse (``objectives.hoyer_square`` of ``hidden_activations``, weight 0.2 for a ViT), put
neurons with like input weights into one expert (``to_dynamic_k``), train the router alone to predict the norms of the
experts' outputs (``norm_error``), choose ``tau``. Source: Exploiting Activation Sparsity with Dense to Dynamic-k
Mixture-of-Experts Conversion, 2023, arXiv 2310.04361; its conversion of attention projections to FFNs is left out.

The given modules are left as they are. Shapes: T items, D in, H neurons, O out, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.conversion.dense_ffn import read_ffn, slice_experts, with_offset
from terramoe.moe.conversion.expert_models import balanced_clusters
from terramoe.moe.experts import Bank
from terramoe.moe.layer import MoELayer
from terramoe.moe.objectives.reductions import at_least_float32, mean_over
from terramoe.moe.organisation import SharedPlusRouted
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import MLPScorer, Scores
from terramoe.moe.selectors import Threshold


class NormScorer(nn.Module):
    """Predicts the norm of each expert's output: ``|W2 tanh(W1 x + b1) + b2|``, at least 0.

    # code: the released ViT script has ReLU in the place of tanh and no offsets.

    Args:
        dim: channels D of an item.
        num_experts: E.
        hidden: width of the hidden layer.
    """

    def __init__(self, dim: int, num_experts: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.mlp = MLPScorer(dim, num_experts, hidden=hidden)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> norms (T, E)."""
        return Scores(self.mlp(inp).logits.abs())


def hidden_activations(ffn: nn.Module, x: Tensor) -> Tensor:
    """What the second matrix of a dense FFN gets for x: (..., D) -> (..., H), with gradient to the FFN.

    ``recorded_inputs`` collects the x of each FFN in a model. # code: for GELU the source measures the input of the
    activation, clamped, instead.
    """
    return read_ffn(ffn, lambda parameter: parameter).hidden(x)


def cluster_neurons(ffn: nn.Module, num_experts: int, seed: int = 0) -> Tensor:
    """(E, H / E) ids: neurons whose input weights point the same way, in clusters of equal size.

    Balanced k-means on the columns of W1, each of norm 1; of a gated neuron the gate's column, which is what makes it
    silent.

    Raises:
        RoutingError: the neurons do not divide by the experts.
    """
    dense = read_ffn(ffn)
    if num_experts < 1 or dense.neurons % num_experts:
        raise RoutingError(
            f"{dense.neurons} neurons for {num_experts} experts",
            where="cluster_neurons",
            fix="choose a number of experts that divides the neurons",
        )
    gates = dense.by_neuron(dense.weights.w_in)[:, 0]  # (D, H)
    label = balanced_clusters(F.normalize(gates.T.double(), dim=1), num_experts, seed=seed).label
    return torch.argsort(label, stable=True).view(num_experts, -1)


def to_dynamic_k(
    ffn: nn.Module, num_experts: int, tau: float, *, router_hidden: int = 128, seed: int = 0
) -> MoELayer | SharedPlusRouted:
    """Experts of H / E like neurons; an item uses those with a predicted norm of at least (1 - tau) times the largest.

    All weights are 1 and the output offset is added once, so that tau = 1 gives the dense FFN whatever the router says.
    Work grows with tau (``Routing.load``). Put another ``Threshold(tau)`` into ``layer.selector`` at any time.

    Args:
        ffn: see ``read_ffn``.
        num_experts: E, a divisor of H; the source uses experts of 6 neurons in a ViT and 128 experts in BERT.
        tau: 0 (the best expert) to 1 (all).
        router_hidden: width of the router's hidden layer.
        seed: of the clusters.
    """
    dense = read_ffn(ffn)
    bank = slice_experts(dense, cluster_neurons(ffn, num_experts, seed))
    scorer = NormScorer(bank.dim, num_experts, hidden=router_hidden).to(bank.w_in_EDH)
    layer = MoELayer(scorer, bank, selector=Threshold(tau), link=links.identity, weigh=weighing.ones)
    return with_offset(layer, dense.weights.b_out).train(ffn.training)


@torch.no_grad()
def expert_norms(bank: Bank, x: Tensor) -> Tensor:
    """(T, E) norm of each expert's output for items (T, ..., D), over all inner rows: the router's targets."""
    return at_least_float32(bank.run_all(x)).flatten(2).norm(dim=-1).T


def norm_error(routing: Routing, norms: Tensor) -> Tensor:
    """Mean squared error of the predicted norms, over experts and valid items; trains the router, and it alone.

    Args:
        routing: the decision of a layer with ``NormScorer``.
        norms: (T, E) from ``expert_norms``, for the same items.
    """
    if norms.shape != routing.logits.shape:
        raise RoutingError(
            f"norms have shape {tuple(norms.shape)}, the routing {tuple(routing.logits.shape)}",
            where="norm_error",
            fix="give expert_norms of the layer's bank for the same items",
        )
    valid = routing.valid()
    gap = routing.logits - torch.where(valid[:, None], norms, 0).to(routing.logits)
    return mean_over(valid, gap.square()).mean()
