"""A frozen body behind one call: image -> feature map, with room for adapters beside and after its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.nets.vit import NO_BRANCH, Branch, Branches, ViT, read_valid

# body, image (B, C, H, W), valid (B, H, W), beside, after -> (B, D, h, w)
Features = Callable[[nn.Module, Tensor, Tensor, Branches, Branches], Tensor]


class Frozen(nn.Module):
    """A body whose parameters do not learn and whose dropout and batch statistics never switch on.

    Gradients still pass through it, to whatever stands beside or after its blocks. The adapters belong to the caller,
    who hands them over with each call; nothing of them is kept here.

    Args:
        body: any module; it is frozen in place.
        features: what to call, as a function of (body, image, valid, beside, after).
        bands: C.
    """

    def __init__(self, body: nn.Module, features: Features, bands: int) -> None:
        super().__init__()
        self.body, self.features, self.bands = body.requires_grad_(False).eval(), features, bands

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of this wrapper alone; the body stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(
        self, image: Tensor, valid: Tensor | None = None, beside: Branches = NO_BRANCH, after: Branches = NO_BRANCH
    ) -> Tensor:
        """image (B, C, H, W), valid (B, H, W) bool -> feature map (B, D, h, w).

        Args:
            image: values that suit the body (see ``frozen_backbone``); invalid pixels read as 0.
            valid: all by default.
            beside: by number of a block: gets the MLP's input (B, N, D), is added to the MLP's output.
            after: by number of a block: gets the block's output (B, N, D), takes its place.

        Raises:
            DataError: shapes that do not fit.
            ConfigError: no such block.
        """
        image, valid = read_valid(image, valid, self.bands)
        return self.features(self.body, image, valid, beside, after)


def freeze_vit(vit: ViT) -> Frozen:
    """Our ViT, frozen in place."""
    return Frozen(vit, _vit_features, vit.bands)


def hooked(
    features: Callable[[nn.Module, Tensor, Tensor], Tensor],
    body: nn.Module,
    image: Tensor,
    valid: Tensor,
    beside: Branches,
    after: Branches,
) -> Tensor:
    """Features of a body that knows nothing of adapters: ``Frozen(body, partial(hooked, features), bands)``."""
    with adapters_attached(body, beside, after):
        return features(body, image, valid)


def find_blocks(body: nn.Module) -> list[nn.Module]:
    """The longest list of blocks with a part ``mlp`` in a module: those of timm's, transformers' and our ViTs."""
    lists = [list(m) for m in body.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
    blocks = [found for found in lists if all(isinstance(getattr(b, "mlp", None), nn.Module) for b in found)]
    return max(blocks, key=len, default=[])


@contextmanager
def adapters_attached(body: nn.Module, beside: Branches, after: Branches) -> Iterator[None]:
    """Inside the ``with`` block, forward hooks run adapters at the blocks of a body; afterwards it is as before.

    ConfigError where there is no such block.
    """
    handles, blocks = [], find_blocks(body) if beside or after else []
    for i in {*beside, *after}:
        if i not in range(len(blocks)):
            raise ConfigError(
                f"no block {i}; {type(body).__name__} has {len(blocks)} with an MLP",
                where="adapters_attached",
                fix="use a transformer, and number its blocks from 0",
            )
    try:
        handles += [blocks[i].mlp.register_forward_hook(partial(_add, branch)) for i, branch in beside.items()]
        handles += [blocks[i].register_forward_hook(partial(_replace, branch)) for i, branch in after.items()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(branch: Branch, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + branch(inputs[0])


def _replace(branch: Branch, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):  # older transformers: (hidden, attention weights ...)
        return (branch(output[0]), *output[1:])
    return branch(output)


def _vit_features(body: nn.Module, image: Tensor, valid: Tensor, beside: Branches, after: Branches) -> Tensor:
    return body(image, valid, beside, after).to_map()
