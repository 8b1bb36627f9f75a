"""Frozen backbones: frozen means frozen, adapters learn through them, and every kind gives a map."""

import copy
import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from terramoe.errors import ConfigError, DataError
from terramoe.nets.backbones import frozen_backbone
from terramoe.nets.frozen import Frozen, adapters_attached, find_blocks, freeze_vit, hooked
from terramoe.nets.vit import TransformerBlock, ViT

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
WEIGHTS = DATA / "weights"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="the published weights are not there")
S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")


def importable(name):
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


class Body(nn.Module):
    """A stranger with all that can leak: dropout, batch statistics, blocks with an MLP."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.blocks = nn.Sequential(*(TransformerBlock(8, 2) for _ in range(3)))


def body_features(body, image, valid):
    x = body.stem(image)
    return body.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[-2:])


def backbone(kind):
    torch.manual_seed(0)
    if kind == "stranger":
        return Frozen(Body(), partial(hooked, body_features), 3)
    return freeze_vit(ViT(3, dim=8, depth=3, heads=2, patch=2))


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return self.up(torch.tanh(self.down(x)))


@pytest.mark.parametrize("kind", ["stranger", "ours"])
def test_frozen_stays_frozen_bit_for_bit_while_adapters_learn_through_it(kind):
    frozen, adapters = backbone(kind), nn.ModuleList(Adapter() for _ in range(3))
    model = nn.ModuleDict({"body": frozen, "adapters": adapters}).train()
    before, image = copy.deepcopy(frozen.state_dict()), torch.randn(4, 3, 8, 6)
    assert not any(p.requires_grad for p in frozen.parameters())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    y = frozen(image, beside={0: adapters[0], 1: adapters[1]}, after={2: lambda h: h + adapters[2](h)})
    assert y.shape == (4, 8, 4, 3)
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapters.parameters())
    assert all(p.grad is None for p in frozen.parameters())
    learned = copy.deepcopy(adapters.state_dict())
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert all(not torch.equal(value, learned[name]) for name, value in adapters.state_dict().items())
    assert set(frozen.state_dict()) == set(before)  # nothing of the adapters is kept


@pytest.mark.parametrize("kind", ["stranger", "ours"])
def test_train_does_not_switch_dropout_or_batch_statistics_on(kind):
    frozen, image = backbone(kind), torch.randn(4, 3, 8, 6)
    base = frozen(image)
    for mode in (True, False):
        nn.Sequential(frozen).train(mode)
        assert frozen.training is mode
        assert not any(m.training for m in frozen.body.modules())
        assert torch.equal(frozen(image), base)
    assert torch.equal(copy.deepcopy(frozen).train()(image), base)


def test_hooks_and_our_own_call_agree_and_leave_nothing_behind():
    vit, image = ViT(3, dim=8, depth=3, heads=2, patch=2), torch.randn(2, 3, 8, 6)
    torch.manual_seed(1)
    beside, after = {0: Adapter(), 2: Adapter()}, {0: Adapter(), 1: lambda h: h + 1}
    with adapters_attached(vit, beside, after):
        by_hooks = vit(image).x
    assert torch.equal(by_hooks, vit(image, None, beside, after).x)
    assert not torch.equal(by_hooks, vit(image).x)
    with pytest.raises(ZeroDivisionError), adapters_attached(vit, beside, {1: lambda h: 1 / 0}):
        vit(image)
    assert not any(m._forward_hooks for m in vit.modules())


def test_a_copy_runs_its_own_body():
    frozen = backbone("stranger")
    other = copy.deepcopy(frozen)
    with torch.no_grad():
        other.body.stem[0].weight.zero_()
    image = torch.randn(1, 3, 8, 6)
    assert not torch.equal(other(image), frozen(image))
    seen = []
    other(image, beside={0: lambda h: seen.append(1) or h * 0})
    assert seen == [1]


@pytest.mark.parametrize("kind", ["stranger", "ours"])
def test_adapters_need_a_block(kind):
    with pytest.raises(ConfigError, match="no block 3"):
        backbone(kind)(torch.randn(1, 3, 8, 6), beside={3: lambda h: h})
    assert find_blocks(nn.Sequential(nn.Linear(2, 2))) == []
    assert find_blocks(backbone(kind)) == list(backbone(kind).body.blocks) or len(find_blocks(backbone(kind))) == 3


@pytest.mark.parametrize("kind", ["stranger", "ours"])
def test_nodata_does_not_matter(kind):
    frozen, image = backbone(kind), torch.randn(2, 3, 8, 6)
    valid = torch.rand(2, 8, 6) < 0.7
    base = frozen(image, valid)
    assert torch.equal(frozen(image.masked_fill(~valid[:, None], float("nan")), valid), base)
    with pytest.raises(DataError):
        frozen(image[:, :2])


@pytest.mark.parametrize(
    ("name", "bands", "message"),
    [
        ("resnet", 3, "no backbone"),
        ("timm:", 3, "no backbone"),
        ("galileo:x", S2, "no backbone"),
        ("presto:x", 10, "by name"),
        ("presto:x", ("B2", "B99"), "B99"),
        ("presto:x", ("B2", "B3"), "no channel group"),
        ("presto:x", ("B8", "B8"), "each once"),
        ("galileo-nano:x", ("temperature_2m",), "bands"),
    ],
)
def test_names_and_bands_that_cannot_be(name, bands, message):
    with pytest.raises(ConfigError, match=message):
        frozen_backbone(name, bands, pretrained=False)


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("timm:x", "timm", "geo"), ("torchgeo:x", "torchgeo.models", "geo"),
                                  ("hf:x", "transformers", "language")]
)  # fmt: skip
def test_a_missing_package_is_named_with_its_pip_command(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{module.split('.')[0]}.*pip install 'terramoe\[{extra}\]'"):
        frozen_backbone(name, 3)


def test_our_vit_by_name():
    y = frozen_backbone("vit", 5, patch=2)(torch.randn(1, 5, 7, 6))
    assert y.shape[-2:] == (4, 3)


@pytest.mark.parametrize("pretrained", [False, pytest.param(True, marks=needs_weights)])
@pytest.mark.parametrize(("kind", "folder", "size"), [("galileo-nano", "galileo_nano", (2, 2)),
                                                      ("presto", "presto", (6, 7))])  # fmt: skip
def test_galileo_and_presto_map_images_by_band_name(kind, folder, size, pretrained):
    torch.manual_seed(0)
    frozen = frozen_backbone(f"{kind}:{WEIGHTS / folder}", S2, pretrained=pretrained)
    image = 2000 + 800 * torch.randn(2, 10, 6, 7)
    valid = torch.ones(2, 6, 7, dtype=torch.bool)
    valid[1, :, 4:] = False
    y = frozen(image, valid)
    assert y.shape == (2, 128, *size)
    assert y.isfinite().all()
    assert torch.equal(frozen(image.masked_fill(~valid[:, None], float("nan")), valid), y)
    if kind == "presto":  # a pixel without data is one of which nothing is known, not one of value 0
        assert (y[1, :, :, 4:] == y[1, :, :1, 4:5]).all()
        assert not torch.allclose(frozen(image * 0)[1, :, 0, 4], y[1, :, 0, 4], atol=1e-2)
    # The order of the bands is that of the names.
    order = torch.randperm(10)
    torch.manual_seed(0)
    other = frozen_backbone(f"{kind}:{WEIGHTS / folder}", [S2[i] for i in order], pretrained=pretrained)
    other.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(other(image[:, order], valid), y, atol=1e-4, rtol=1e-4)
    adapter = Adapter()
    adapter.down, adapter.up = nn.Linear(128, 2), nn.Linear(2, 128)
    frozen(image, valid, beside={1: adapter}).square().sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["presto", "galileo-nano"])
def test_ndvi_is_computed_where_it_is_not_given(kind):
    torch.manual_seed(0)
    image = 2000 + 300 * torch.randn(1, 10, 4, 4)
    red, near = image[:, S2.index("B4")], image[:, S2.index("B8")]
    given = torch.cat([image, ((near - red) / (near + red))[:, None]], dim=1)
    without = frozen_backbone(f"{kind}:x", S2, pretrained=False)
    with_it = frozen_backbone(f"{kind}:x", (*S2, "NDVI"), pretrained=False)
    with_it.load_state_dict(without.state_dict())
    torch.testing.assert_close(without(image), with_it(given))
    given[:, -1] += 0.5
    assert not torch.allclose(without(image), with_it(given))


@pytest.mark.skipif(not importable("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_transformers_bodies_from_a_local_configuration(tmp_path, kind):
    import transformers

    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    options |= {"intermediate_size": 16} if kind == "ViT" else {"mlp_ratio": 2}
    config = getattr(transformers, f"{kind}Config")(**options, num_channels=3)
    config.save_pretrained(tmp_path)
    frozen = frozen_backbone(f"hf:{tmp_path}", 5, pretrained=False).train()
    image, adapter = torch.randn(2, 5, 11, 16), Adapter()
    base = frozen(image)
    assert base.shape == (2, 8, 3, 4)
    assert torch.equal(frozen(image, beside={0: torch.zeros_like}), base)
    y = frozen(image, beside={0: adapter}, after={1: lambda h: 2 * h})
    assert not torch.allclose(y, base)
    y.square().sum().backward()
    assert adapter.down.weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="3 bands, not 5"):
        frozen_backbone(f"hf:{tmp_path}", 5)
    torch.manual_seed(0)
    body = transformers.AutoModel.from_config(config)
    body.save_pretrained(tmp_path)
    saved = frozen_backbone(f"hf:{tmp_path}", 3)
    assert all(torch.equal(value, saved.body.state_dict()[name]) for name, value in body.state_dict().items())


@pytest.mark.skipif(not importable("transformers"), reason="transformers is not installed")
def test_transformers_without_such_a_model(tmp_path):
    with pytest.raises(ConfigError, match="no model"):
        frozen_backbone(f"hf:{tmp_path / 'absent' / 'deep'}", 3)


@pytest.mark.skipif(not importable("timm"), reason="timm is not installed, or not for this torch")
@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("vit_tiny_patch16_224", (32, 40), (2, 3)), ("resnet10t", (64, 32), (2, 1)), ("test_vit", (32, 32), (2, 2))],
)
def test_timm_bodies(name, size, grid):
    frozen = frozen_backbone(f"timm:{name}", 5, pretrained=False).train()
    image = torch.randn(1, 5, *size)
    base = frozen(image)
    assert base.shape[-2:] == grid
    if "vit" in name:
        adapter = nn.Linear(base.shape[1], base.shape[1])
        frozen(image, beside={0: adapter}, after={1: lambda h: h * 2}).square().sum().backward()
        assert adapter.weight.grad.abs().sum() > 0
        assert torch.equal(frozen(image, beside={0: torch.zeros_like}), base)
    else:
        with pytest.raises(ConfigError, match="no block 0"):
            frozen(image, after={0: lambda h: h})
    with pytest.raises(ConfigError, match="no model"):
        frozen_backbone("timm:no_such_model", 3, pretrained=False)


class FakeTimm(Body):
    """forward_features as timm's ViTs have it: class token first."""

    def __init__(self):
        super().__init__()
        self.patch_embed, self.num_prefix_tokens = SimpleNamespace(patch_size=(2, 2)), 1

    def forward_features(self, image):
        x = self.stem(image).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([x[:, :1] * 0 + 9, x], dim=1))


def test_torchgeo_and_timm_calls_with_stand_ins(monkeypatch):
    calls = []

    def create(name, **options):
        calls.append((name, options))
        if name == "plain" and "dynamic_img_size" in options:
            raise TypeError("unexpected argument")
        return FakeTimm()

    weights = [SimpleNamespace(meta={"in_chans": n}) for n in (13, 3)]
    timm = SimpleNamespace(create_model=create, is_model=lambda name: name in ("plain", "dynamic"))
    models = SimpleNamespace(
        list_models=lambda: ["known"], get_model=create, get_model_weights=lambda name: weights
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchgeo", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchgeo.models", models)
    frozen = frozen_backbone("timm:dynamic", 3)
    image = torch.randn(2, 3, 5, 8)
    tokens = frozen.body.forward_features(nn.functional.pad(image, (0, 0, 0, 1)))
    assert frozen(image).shape == (2, 8, 3, 4)
    assert torch.equal(frozen(image).flatten(2).transpose(1, 2), tokens[:, 1:])
    frozen_backbone("timm:plain", 3, pretrained=False)
    frozen_backbone("torchgeo:known", 3)
    frozen_backbone("torchgeo:known", 3, pretrained=False)
    timm_options = {"in_chans": 3, "num_classes": 0}
    assert calls == [
        ("dynamic", {"pretrained": True, "dynamic_img_size": True, **timm_options}),
        ("plain", {"pretrained": False, "dynamic_img_size": True, **timm_options}),
        ("plain", {"pretrained": False, **timm_options}),
        ("known", {"weights": weights[1]}),
        ("known", {"weights": None, "in_chans": 3}),
    ]
    with pytest.raises(ConfigError, match=r"for 5 bands.*\[3, 13\]"):
        frozen_backbone("torchgeo:known", 5)
    for name in ("torchgeo:other", "timm:other"):
        with pytest.raises(ConfigError, match="no model 'other'"):
            frozen_backbone(name, 3)
