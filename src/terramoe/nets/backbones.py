"""Frozen backbones by name: our ViT, Galileo, Presto, and those of timm, torchgeo and transformers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.nets import galileo, galileo_inputs, presto, presto_inputs
from terramoe.nets.frozen import Frozen, freeze_vit, hooked
from terramoe.nets.vit import ViT, tokens_to_map

KINDS = ("vit", "timm:NAME", "torchgeo:NAME", "hf:NAME", "galileo-nano:FOLDER", "presto:FOLDER")


def frozen_backbone(
    name: str, bands: int | Sequence[str], *, pretrained: bool = True, month: int = 6, patch: int = 4
) -> Frozen:
    """A frozen backbone by name.

    - "vit": our ``ViT`` with random weights, a control; ``freeze_vit`` freezes a trained one.
    - "timm:NAME", "torchgeo:NAME" (extra ``geo``), "hf:NAME" (extra ``language``): images as their weights were trained
      on. timm adapts its weights to any number of bands; the others need weights for just as many.
    - "galileo-nano:FOLDER", "presto:FOLDER": single-date images in natural units, with ``bands`` by name
      (``galileo_inputs.GROUPS``, ``presto_inputs.BANDS``). NDVI is added where B4 and B8 are there. A channel group
      of which a band is missing takes no part. Presto reads each pixel alone; its map is as large as the image.

    Args:
        name: one of these.
        bands: number of bands, or their names.
        pretrained: load weights, which downloads them in the three cases with NAME.
        month: 0 to 11, of the images, for Galileo and Presto.
        patch: pixels, for Galileo and ours.

    Raises:
        ConfigError: an unknown name, a missing package, bands that do not fit.
        ModelFileError: weights in FOLDER that do not fit.
    """
    kind, _, rest = name.partition(":")
    count = bands if isinstance(bands, int) else len(bands)
    if name == "vit":
        return freeze_vit(ViT(count, patch=patch))
    if not rest or kind not in [known.partition(":")[0] for known in KINDS[1:]]:
        raise ConfigError(f"no backbone '{name}'", where="frozen_backbone", fix=f"use {', '.join(KINDS)}")
    if kind == "timm":
        timm = _package("timm", "geo")
        return Frozen(_timm_body(timm, rest, count, pretrained), partial(hooked, _timm_features), count)
    if kind == "torchgeo":
        return Frozen(_torchgeo_body(rest, count, pretrained), partial(hooked, _timm_features), count)
    if kind == "hf":
        return Frozen(_hf_body(rest, count, pretrained), partial(hooked, _hf_features), count)
    if isinstance(bands, int):
        raise ConfigError(f"'{kind}' needs the bands by name", where="frozen_backbone", fix="give ('B2', 'B3', ...)")
    if kind == "presto":
        _known(bands, presto_inputs.BANDS, [set(group) for group in presto_inputs.GROUPS.values()])
        body: nn.Module = presto.load_presto(rest) if pretrained else presto.Presto()
        read = partial(_presto_features, bands=tuple(bands), month=month)
        return Frozen(body, partial(hooked, read), count)
    groups = {n: g.bands for n, g in galileo_inputs.GROUPS.items() if g.kind == "space_time" or n == "SRTM"}
    _known(bands, [band for group in groups.values() for band in group], [set(group) for group in groups.values()])
    body = galileo.load_galileo(rest) if pretrained else galileo.Galileo()
    read = partial(_galileo_features, bands=tuple(bands), month=month, patch=patch)
    return Frozen(body, partial(hooked, read), count)


def _package(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise ConfigError(
            f"the package {name.partition('.')[0]} cannot be imported: {error}",
            where="frozen_backbone",
            fix=f"pip install 'terramoe[{extra}]'",
        ) from error


def _timm_body(timm: ModuleType, name: str, bands: int, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'", where="frozen_backbone", fix="see timm.list_models()")
    try:  # ViTs of timm need this for images of other sizes than in training; other models do not know it
        return timm.create_model(name, pretrained=pretrained, in_chans=bands, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(name, pretrained=pretrained, in_chans=bands, num_classes=0)


def _torchgeo_body(name: str, bands: int, pretrained: bool) -> nn.Module:
    models = _package("torchgeo.models", "geo")
    if name not in models.list_models():
        raise ConfigError(f"torchgeo has no model '{name}'", where="frozen_backbone", fix="see models.list_models()")
    if not pretrained:
        return models.get_model(name, weights=None, in_chans=bands)
    choices = list(models.get_model_weights(name))
    fitting = [weights for weights in choices if weights.meta.get("in_chans") == bands]
    if not fitting:
        counts = sorted({weights.meta.get("in_chans") for weights in choices} - {None})
        raise ConfigError(f"no weights of '{name}' for {bands} bands", where="frozen_backbone", fix=f"use {counts}")
    return models.get_model(name, weights=fitting[0])


def _timm_features(body: nn.Module, image: Tensor, valid: Tensor) -> Tensor:
    patch = getattr(getattr(body, "patch_embed", None), "patch_size", None)
    height, width = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
    x = body.forward_features(_filled(image, height, width))
    if x.ndim == 4:
        return x.permute(0, 3, 1, 2) if str(getattr(body, "output_fmt", "")).endswith("NHWC") else x
    return tokens_to_map(x[:, getattr(body, "num_prefix_tokens", 0) :], _grid(image, height, width))


def _hf_body(name: str, bands: int, pretrained: bool) -> nn.Module:
    transformers = _package("transformers", "language")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model '{name}': {str(error)[:120]}", where="hf", fix="check the name") from error
    if getattr(config, "num_channels", bands) != bands:
        if pretrained:
            raise ConfigError(
                f"weights for {config.num_channels} bands, not {bands}", where=name, fix="choose as many bands"
            )
        config.num_channels = bands
    if not pretrained:
        return transformers.AutoModel.from_config(config)
    return transformers.AutoModel.from_pretrained(name, use_safetensors=True)


def _hf_features(body: nn.Module, image: Tensor, valid: Tensor) -> Tensor:
    patch = body.config.patch_size if isinstance(getattr(body.config, "patch_size", None), int) else 1
    options = {}
    if "interpolate_pos_encoding" in inspect.signature(body.forward).parameters:
        options["interpolate_pos_encoding"] = True
    x = body(pixel_values=_filled(image, patch, patch), **options).last_hidden_state
    if x.ndim == 4:
        return x
    grid = _grid(image, patch, patch)
    return tokens_to_map(x[:, x.shape[1] - grid[0] * grid[1] :], grid)  # class and register tokens stand first


def _presto_features(body: nn.Module, image: Tensor, valid: Tensor, bands: tuple[str, ...], month: int) -> Tensor:
    image, names = _with_ndvi(image, bands)
    pixels = image.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, C)
    places = [presto_inputs.BANDS.index(name) for name in names]
    series = pixels.new_zeros(len(pixels), 1, len(presto_inputs.BANDS))
    series[:, 0, places] = pixels
    seen = torch.zeros_like(series, dtype=torch.bool)
    seen[:, 0, places] = valid.flatten()[:, None]
    months = torch.full((len(pixels), 1), month, device=image.device)
    embedding = body(presto_inputs.normalise(series), months, seen)
    return embedding.unflatten(0, valid.shape).permute(0, 3, 1, 2)


def _galileo_features(
    body: nn.Module, image: Tensor, valid: Tensor, bands: tuple[str, ...], month: int, patch: int
) -> Tensor:
    image, names = _with_ndvi(image, bands)
    seen, image = _filled(valid, patch, patch), _filled(image, patch, patch)
    inputs = {}
    for name, group in galileo_inputs.GROUPS.items():
        if set(group.bands) <= set(names):
            values = image[:, [names.index(band) for band in group.bands]]
            inputs[name] = values[:, None] if group.kind == "space_time" else values
    masks = {name: seen[:, None] if x.ndim == 5 else seen for name, x in inputs.items()}
    months = torch.full((len(image), 1), month, device=image.device)
    return body(galileo_inputs.normalise(inputs), months, masks, patch=patch).to_map()


def _with_ndvi(image: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    if "NDVI" in bands or not {"B4", "B8"} <= set(bands):
        return image, bands
    red, near = image[:, bands.index("B4")], image[:, bands.index("B8")]
    total = red + near
    ndvi = torch.where(total > 0, (near - red) / torch.where(total > 0, total, 1), 0)
    return torch.cat([image, ndvi[:, None]], dim=1), (*bands, "NDVI")


def _known(bands: Sequence[str], known: Sequence[str], groups: Sequence[set[str]]) -> None:
    unknown = [band for band in bands if band not in known]
    if unknown or len(set(bands)) != len(bands):
        raise ConfigError(f"bands {list(bands)}", where="frozen_backbone", fix=f"use {', '.join(known)}, each once")
    if not any(group <= set(bands) for group in groups):
        raise ConfigError(f"bands {list(bands)} fill no channel group", where="frozen_backbone", fix="add bands")


def _filled(x: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) with 0 (or False) below and on the right, up to multiples of a patch."""
    return nn.functional.pad(x, (0, -x.shape[-1] % width, 0, -x.shape[-2] % height))


def _grid(image: Tensor, height: int, width: int) -> tuple[int, int]:
    return -(-image.shape[-2] // height), -(-image.shape[-1] // width)
