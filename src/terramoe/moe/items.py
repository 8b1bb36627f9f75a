"""Images to items and back: how the pixels of an image become the rows that a router decides on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError


@dataclass(frozen=True)
class WindowGrid:
    """Cuts a feature map into windows, one item each, and lays items back on the pixel grid of the input.

    A feature map may be coarser than the image by ``stride`` pixels per cell. Maps that the window does not divide
    are padded with zeros on the lower and right side.

    Attributes:
        batch, height, width: B, H, W of the feature map.
        window: (rows, columns) of a window, in cells.
        stride: pixels of the image per cell of the feature map.
        image_size: (rows, columns) of the image, in pixels.
    """

    batch: int
    height: int
    width: int
    window: tuple[int, int]
    stride: int = 1
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.window) < 1:
            raise RoutingError(f"window {self.window}", where="WindowGrid", fix="use at least one cell")

    @property
    def rows(self) -> int:
        return -(-self.height // self.window[0])

    @property
    def columns(self) -> int:
        return -(-self.width // self.window[1])

    @property
    def num_items(self) -> int:
        return self.batch * self.rows * self.columns

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (T, h, w, C), T = B * rows * columns in reading order."""
        (h, w), channels = self.window, x.shape[-1]
        x = nn.functional.pad(x, (0, 0, 0, self.columns * w - self.width, 0, self.rows * h - self.height))
        x = x.reshape(self.batch, self.rows, h, self.columns, w, channels)
        return x.transpose(2, 3).reshape(self.num_items, h, w, channels)

    def merge(self, items: Tensor) -> Tensor:
        """(T, h, w, C) -> (B, H, W, C): the inverse of ``split``."""
        (h, w), channels = self.window, items.shape[-1]
        x = items.reshape(self.batch, self.rows, self.columns, h, w, channels).transpose(2, 3)
        x = x.reshape(self.batch, self.rows * h, self.columns * w, channels)
        return x[:, : self.height, : self.width]

    def to_pixels(self, values: Tensor) -> Tensor:
        """One value per item (T, ...) -> one per pixel of the image (B, rows, columns, ...), by nearest cell."""
        rows, columns = self.image_size or (self.height * self.stride, self.width * self.stride)
        row = self._item_of_pixel(rows, self.height, self.window[0], values.device)
        column = self._item_of_pixel(columns, self.width, self.window[1], values.device)
        grid = values.reshape(self.batch, self.rows, self.columns, *values.shape[1:])
        return grid[:, row][:, :, column]

    def _item_of_pixel(self, pixels: int, cells: int, window: int, device: torch.device) -> Tensor:
        # Pooling drops an odd last pixel; it belongs to the last cell.
        cell = (torch.arange(pixels, device=device) // self.stride).clamp_max(cells - 1)
        return cell // window
