"""Galileo's encoder: one transformer over space, time and channel groups of many sensors, for its published weights.

Source: Galileo: Learning Global and Local Features in Pretrained Remote Sensing Models, 2025, arXiv 2502.09356.
Written from the paper, the published configuration, and the names and shapes of the tensors. Marks: [inferred] is ours
where these are silent; [measured] was read from the weights themselves (see ``Galileo``). The published file holds the
encoder only, without the decoder and the target encoder of pretraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import DataError, ModelFileError
from terramoe.nets.fixed_tables import month_table, step_table
from terramoe.nets.galileo_inputs import GROUPS, LARGEST_PATCH, LONGEST, check_inputs, names_of
from terramoe.nets.vit import TransformerBlock, sincos_positions
from terramoe.nets.weight_file import load_all, read_tensors

WEIGHTS = "encoder.pt"
_DIM, _HEADS, _DEPTH, _PART = 128, 8, 4, 32
_CHANNEL = {"space_time": "s_t", "space": "sp", "time": "t", "static": "st"}


class GalileoTokens(NamedTuple):
    """What the encoder makes of its inputs.

    Attributes:
        x: (B, N, 128), the tokens of each group one after the other, in the order of ``shapes``.
        valid: (B, N) bool; a token is valid where any of its pixels is.
        shapes: by group: (T, h, w), (h, w), (T,) or (), whose product is the group's number of tokens.
    """

    x: Tensor
    valid: Tensor
    shapes: dict[str, tuple[int, ...]]

    def embedding(self) -> Tensor:
        """(B, 128), the mean over valid tokens; 0 where there is none. [inferred]"""
        keep = self.valid[..., None].to(self.x.dtype)
        return (self.x * keep).sum(1) / keep.sum(1).clamp_min(1)

    def to_map(self) -> Tensor:
        """(B, 128, h, w): the mean over the valid tokens at each place, of all groups with space and all steps."""
        total, count, start = 0.0, 0.0, 0
        for shape in self.shapes.values():
            stop = start + torch.Size(shape).numel()
            if len(shape) >= 2:
                steps = shape[0] if len(shape) == 3 else 1
                keep = self.valid[:, start:stop].to(self.x.dtype).unflatten(1, (steps, *shape[-2:]))
                x = self.x[:, start:stop].unflatten(1, (steps, *shape[-2:]))
                total, count = total + (x * keep[..., None]).sum(1), count + keep.sum(1)
            start = stop
        if not isinstance(total, Tensor):
            raise DataError("no group has space", where="GalileoTokens.to_map", fix="give one, or use embedding()")
        return (total / count.clamp_min(1)[..., None]).permute(0, 3, 1, 2)


class FlexiblePatchEmbed(nn.Module):
    """Patches of 1 to 8 pixels -> tokens, with one set of weights for patches of 8.

    A smaller patch is enlarged to 8 x 8 (bicubic) before the weights; equally, and cheaper, the weights are taken
    through the transpose of that map. [inferred] this, instead of FlexiViT's pseudo-inverse (2022, arXiv 2212.08013):
    a uniform patch then embeds alike at every size, which the pseudo-inverse of these weights misses by some 10 % at
    sides of 1 to 3. Each patch is enlarged alone, so that an invalid pixel stays within its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, _DIM, LARGEST_PATCH, stride=LARGEST_PATCH)

    def forward(self, x: Tensor, patch: int) -> Tensor:
        """x (n, C, H, W) -> (n, H / patch, W / patch, 128)."""
        weight = self.proj.weight
        if patch != LARGEST_PATCH:
            unit = torch.eye(patch**2, dtype=weight.dtype, device=weight.device).view(-1, 1, patch, patch)
            enlarge = nn.functional.interpolate(unit, (LARGEST_PATCH, LARGEST_PATCH), mode="bicubic").flatten(1)
            weight = (weight.flatten(2) @ enlarge.T).unflatten(2, (patch, patch))
        return nn.functional.conv2d(x, weight, self.proj.bias, stride=patch).permute(0, 2, 3, 1)


class Galileo(nn.Module):
    """Encoder of width 128, depth 4, 8 heads; 1,037,856 parameters.

    A token is its values' projection plus four encodings of 32 side by side: channel group, step, month, place; 0
    where a group has no time or no space. [measured] the order: the first block's queries, keys and values respond most
    to differences of channel embeddings in part 1, of steps in part 2, of places in part 4. [inferred] places count
    from the upper left corner in units of 10 m, rows before columns, with base 10,000.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(step_table(LONGEST, _PART, 10.0, interleaved=False), requires_grad=False)
        for kind, prefix in _CHANNEL.items():
            rows = nn.Parameter(torch.randn(len(names_of(kind)), _PART) * 0.02)
            self.register_parameter(f"{prefix}_channel_embed", rows)
        self.blocks = nn.ModuleList(TransformerBlock(_DIM, _HEADS) for _ in range(_DEPTH))
        self.month_embed = nn.Embedding.from_pretrained(month_table(_PART))
        self.space_time_embed = nn.ModuleDict(
            {n: FlexiblePatchEmbed(len(GROUPS[n].bands)) for n in names_of("space_time")}
        )
        self.space_embed = nn.ModuleDict({n: FlexiblePatchEmbed(len(GROUPS[n].bands)) for n in names_of("space")})
        self.time_embed = nn.ModuleDict({n: nn.Linear(len(GROUPS[n].bands), _DIM) for n in names_of("time")})
        self.static_embed = nn.ModuleDict({n: nn.Linear(len(GROUPS[n].bands), _DIM) for n in names_of("static")})
        self.norm = nn.LayerNorm(_DIM, eps=1e-6)

    def embed(
        self,
        inputs: Mapping[str, Tensor],
        months: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
        patch: int = 4,
        metres: float = 10.0,
    ) -> GalileoTokens:
        """What ``forward`` gets -> tokens with encodings, before the blocks."""
        values, present, shapes = [], [], {}
        steps, size = check_inputs(inputs, months, valid or {}, patch)
        grid = None if size is None else (size[0] // patch, size[1] // patch)
        for name in (name for name in GROUPS if name in inputs):
            kind, x = GROUPS[name].kind, inputs[name]
            seen = (valid or {}).get(name)
            spatial = kind in ("space_time", "space")
            if seen is not None:
                x = x.masked_fill(~(seen.unsqueeze(-3) if spatial else seen.unsqueeze(-1)), 0)
            shapes[name] = ((steps,) if kind in ("space_time", "time") else ()) + (grid if spatial and grid else ())
            tokens = self._project(name, x, patch) + self._encoding(name, months, grid, patch * metres / 10.0)
            values.append(tokens.reshape(len(x), -1, _DIM))
            if seen is None:
                seen = values[-1].new_ones(values[-1].shape[:2], dtype=torch.bool)
            elif spatial:
                seen = seen.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).any(-1).any(-2)
            present.append(seen.reshape(len(x), -1))
        return GalileoTokens(torch.cat(values, 1), torch.cat(present, 1), shapes)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        months: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
        patch: int = 4,
        metres: float = 10.0,
    ) -> GalileoTokens:
        """Encode whatever groups there are; an absent group takes no part.

        Args:
            inputs: by group, normalised (``galileo_inputs.normalise``), shaped by its kind as in
                ``galileo_inputs.SHAPES``; one B, T, H and W for all.
            months: (B, T) int, 0 January to 11 December; needed where a group has time. T <= 24.
            valid: by group, bool of the group's shape without C; missing groups are valid everywhere. Invalid values
                read as 0, and a token without any valid value is seen by nobody.
            patch: side of a patch, 1 to 8 pixels, which divides H and W.
            metres: side of a pixel on the ground.

        Raises:
            DataError: an unknown group, shapes that do not fit, months missing or out of range.
        """
        tokens = self.embed(inputs, months, valid, patch, metres)
        x = tokens.x
        for block in self.blocks:
            x = block(x, keys=tokens.valid)
        return tokens._replace(x=self.norm(x))

    def _project(self, name: str, x: Tensor, patch: int) -> Tensor:
        """-> (B, T, h, w, 128), (B, h, w, 128), (B, T, 128) or (B, 128)."""
        kind = GROUPS[name].kind
        layer = self.get_submodule(f"{kind}_embed.{name}")
        if kind == "space_time":
            return layer(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])
        return layer(x, patch) if kind == "space" else layer(x)

    def _encoding(self, name: str, months: Tensor | None, grid: tuple[int, int] | None, scale: float) -> Tensor:
        """As ``_project``, to be added."""
        kind = GROUPS[name].kind
        channel = self.get_parameter(f"{_CHANNEL[kind]}_channel_embed")[names_of(kind).index(name)]
        code = nn.functional.pad(channel, (0, 3 * _PART))
        if kind in ("space_time", "time") and months is not None:
            step = self.pos_embed[: months.shape[1]].expand(len(months), -1, -1)
            code = code + nn.functional.pad(torch.cat([step, self.month_embed(months)], -1), (_PART, _PART))
        if kind in ("space_time", "space") and grid is not None:
            place = sincos_positions(_PART, *grid, like=channel, scale=scale).unflatten(0, grid)
            place = nn.functional.pad(place, (3 * _PART, 0))  # (h, w, 128)
            code = code[..., None, None, :] + place
        return code


def load_galileo(folder: Path | str) -> Galileo:
    """The published weights, in evaluation mode; ModelFileError where a tensor is missing, extra or misshapen."""
    path = Path(folder) / WEIGHTS
    tensors = read_tensors(path)
    model = Galileo()
    for i in range(_DEPTH):  # queries, keys and values lie apart in the file
        for end in ("weight", "bias"):
            joined = f"blocks.{i}.attn.qkv.{end}"
            parts = [tensors.pop(f"blocks.{i}.attn.{part}.{end}", torch.empty(0)) for part in "qkv"]
            if joined in tensors or any(part.shape != (_DIM, _DIM)[: part.ndim] or not part.ndim for part in parts):
                raise ModelFileError(
                    f"tensors of block {i}: '{end}' of q, k or v is missing or misshapen, or '{joined}' is extra",
                    where=path,
                    fix="use Galileo's encoder of width 128",
                )
            tensors[joined] = torch.cat(parts)
    load_all(model, tensors, path)
    return model.eval()
