"""Presto: a small transformer over the time series of one pixel from many sensors, for its published weights.

Source: Lightweight, Pre-trained Transformers for Remote Sensing Timeseries, 2023, arXiv 2304.14065. Written from the
paper, the published configuration, and the names and shapes of the tensors. Marks: [inferred] is ours where these are
silent; [measured] was chosen because the published decoder then rebuilds hidden values of real series best.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.nets.fixed_tables import month_table, step_table
from terramoe.nets.presto_inputs import BANDS, GROUPS, LONGEST, NO_CLASS, PLACES, check_inputs, on_the_sphere
from terramoe.nets.vit import TransformerBlock
from terramoe.nets.weight_file import load_all, read_tensors

WEIGHTS = "default_model.pt"
_DIM, _HEADS, _DEPTH, _CHANNEL = 128, 8, 2, 32


class PrestoTokens(NamedTuple):
    """``x`` (B, N, 128), N = 9 T + 2; ``valid`` (B, N) bool, the tokens that exist.

    Order: the groups of ``GROUPS`` without SRTM, T tokens each; Dynamic World, T tokens; SRTM; location.
    """

    x: Tensor
    valid: Tensor


class _Encodings(nn.Module):
    """Month, channel and position side by side, in this order [measured]; 0 where a token has no time."""

    def __init__(self, width: int, month: int, channel_name: str) -> None:
        super().__init__()
        steps = step_table(LONGEST, width - month - _CHANNEL, 1000.0, interleaved=True)
        self.pos_embed = nn.Parameter(steps[None], requires_grad=False)
        self.month_embed = nn.Embedding.from_pretrained(month_table(month))
        self.add_module(channel_name, nn.Embedding(len(GROUPS) + 1, _CHANNEL))
        self.channel_name = channel_name

    def encodings(self, months: Tensor) -> Tensor:
        """months (B, T) -> (B, 9 T + 2, width)."""
        batch, steps = months.shape
        channels = self.get_submodule(self.channel_name).weight
        month, place = self.month_embed(months), self.pos_embed[:, :steps].expand(batch, -1, -1)
        timed = [
            torch.cat([month, channels[i].expand(batch, steps, -1), place], dim=-1)
            for i, name in enumerate([*GROUPS, "dynamic_world"])
            if name != "SRTM"
        ]
        terrain = channels[list(GROUPS).index("SRTM")].expand(batch, 1, -1)
        terrain = nn.functional.pad(terrain, (month.shape[-1], place.shape[-1]))
        return torch.cat([*timed, terrain, torch.zeros_like(terrain)], dim=1)


class PrestoEncoder(_Encodings):
    """Series -> tokens; see ``Presto``."""

    def __init__(self) -> None:
        super().__init__(_DIM, 32, "channel_embed")
        self.eo_patch_embed = nn.ModuleDict({name: nn.Linear(len(bands), _DIM) for name, bands in GROUPS.items()})
        self.dw_embed = nn.Embedding(NO_CLASS + 1, _DIM)
        self.latlon_embed = nn.Linear(3, _DIM)
        self.blocks = nn.ModuleList(TransformerBlock(_DIM, _HEADS) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(_DIM, eps=1e-6)

    def embed(
        self, series: Tensor, valid: Tensor, months: Tensor, dynamic_world: Tensor, latlon: Tensor | None
    ) -> PrestoTokens:
        """What ``Presto.encode`` gets, checked -> tokens before the blocks."""
        values, present = [], []
        for name, places in PLACES.items():
            if name != "SRTM":
                values.append(self.eo_patch_embed[name](series[..., places]))
                present.append(valid[..., places].all(-1))
        values.append(self.dw_embed(dynamic_world))
        present.append(dynamic_world != NO_CLASS)
        seen = valid[..., PLACES["SRTM"]].all(-1)  # terrain does not change: the mean over the steps that have it
        terrain = (series[..., PLACES["SRTM"]] * seen[..., None]).sum(1, keepdim=True)
        values.append(self.eo_patch_embed["SRTM"](terrain / seen.sum(1).clamp_min(1)[:, None, None]))
        present.append(seen.any(1, keepdim=True))
        values.append(self.latlon_embed(on_the_sphere(series.new_zeros(len(series), 2) if latlon is None else latlon)))
        values[-1] = values[-1][:, None]
        present.append(torch.full_like(present[-1], latlon is not None))
        return PrestoTokens(torch.cat(values, 1) + self.encodings(months), torch.cat(present, 1))


class PrestoDecoder(_Encodings):
    """Pretraining's other half: tokens -> all values of the series."""

    def __init__(self) -> None:
        super().__init__(_DIM, 48, "channel_embeddings")
        self.mask_token = nn.Parameter(torch.zeros(_DIM))
        self.decoder_embed = nn.Linear(_DIM, _DIM)
        self.decoder_blocks = nn.ModuleList(TransformerBlock(_DIM, _HEADS) for _ in range(_DEPTH))
        self.decoder_norm = nn.LayerNorm(_DIM, eps=1e-6)
        self.eo_decoder_pred = nn.ModuleDict({name: nn.Linear(_DIM, len(bands)) for name, bands in GROUPS.items()})
        self.dw_decoder_pred = nn.Linear(_DIM, NO_CLASS)

    def forward(self, tokens: PrestoTokens, months: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the encoder, months (B, T) -> series (B, T, 17) normalised, class logits (B, T, 9)."""
        steps = months.shape[1]
        x = torch.where(tokens.valid[..., None], self.decoder_embed(tokens.x), self.mask_token)
        x = x + self.encodings(months)
        for block in self.decoder_blocks:
            x = block(x)
        *timed, rest = self.decoder_norm(x).split([steps] * len(GROUPS) + [2], dim=1)
        series = x.new_zeros(*months.shape, len(BANDS))
        for name, y in zip([name for name in GROUPS if name != "SRTM"], timed[:-1], strict=True):
            series[..., PLACES[name]] = self.eo_decoder_pred[name](y)
        series[..., PLACES["SRTM"]] = self.eo_decoder_pred["SRTM"](rest[:, :1]).expand(-1, steps, -1)
        return series, self.dw_decoder_pred(timed[-1])


class Presto(nn.Module):
    """Encoder and decoder; 102 tensors, 823,002 parameters.

    All methods take

    - series: (B, T, 17), normalised (``presto_inputs.normalise``), monthly steps, 1 <= T <= 24, bands as in
      ``presto_inputs.BANDS``;
    - months: (B, T) int, 0 January to 11 December, of each step;
    - valid: (B, T, 17) bool; a group is left out at the steps where one of its bands is not valid [inferred];
    - dynamic_world: (B, T) int, class 0 to 8, or 9 where unknown, which leaves the token out [inferred];
    - latlon: (B, 2) degrees; without it the token is left out [inferred].

    Raises:
        DataError: shapes, months or classes out of range; more than 24 steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PrestoEncoder(), PrestoDecoder()

    def encode(
        self,
        series: Tensor,
        months: Tensor,
        valid: Tensor | None = None,
        dynamic_world: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> PrestoTokens:
        """-> the encoder's tokens after its last norm."""
        tokens = self._blocks(series, months, valid, dynamic_world, latlon)
        return tokens._replace(x=self.encoder.norm(tokens.x))

    def forward(
        self,
        series: Tensor,
        months: Tensor,
        valid: Tensor | None = None,
        dynamic_world: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> Tensor:
        """-> embedding (B, 128): the norm of the mean over the tokens that exist [inferred]; of 0 where none does."""
        tokens = self._blocks(series, months, valid, dynamic_world, latlon)
        keep = tokens.valid[..., None].to(tokens.x.dtype)
        return self.encoder.norm((tokens.x * keep).sum(1) / keep.sum(1).clamp_min(1))

    def reconstruct(
        self,
        series: Tensor,
        months: Tensor,
        valid: Tensor | None = None,
        dynamic_world: Tensor | None = None,
        latlon: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """-> series (B, T, 17) as the decoder sees it, hidden values too, and logits (B, T, 9) of Dynamic World."""
        return self.decoder(self.encode(series, months, valid, dynamic_world, latlon), months)

    def _blocks(
        self,
        series: Tensor,
        months: Tensor,
        valid: Tensor | None,
        dynamic_world: Tensor | None,
        latlon: Tensor | None,
    ) -> PrestoTokens:
        valid = torch.ones_like(series, dtype=torch.bool) if valid is None else valid
        if dynamic_world is None:
            dynamic_world = torch.full_like(months, NO_CLASS)
        check_inputs(series, months, valid, dynamic_world, latlon)
        x, present = self.encoder.embed(series.masked_fill(~valid, 0), valid, months, dynamic_world, latlon)
        for block in self.encoder.blocks:
            x = block(x, keys=present)
        return PrestoTokens(x, present)


def load_presto(folder: Path | str) -> Presto:
    """The published weights, in evaluation mode; ModelFileError where a tensor is missing, extra or misshapen."""
    model = Presto()
    path = Path(folder) / WEIGHTS
    load_all(model, read_tensors(path), path)
    return model.eval()
