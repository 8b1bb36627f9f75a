"""torch.export and ONNX with a free number of items, run again on another length and another routing."""

import numpy as np
import pytest
import torch

from terramoe.moe import LinearScorer, ModuleBank, MoELayer, StackedFFN, TopK, weighing
from terramoe.moe.recipes import RECIPES
from terramoe.moe.scorers import CosineScorer

D, E = 6, 4


class OutputOnly(torch.nn.Module):
    """What is shipped: items in, result out."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def build(executor, k=2, bank="stacked", scorer="linear"):
    torch.manual_seed(0)
    made = StackedFFN(E, D, 5) if bank == "stacked" else ModuleBank(torch.nn.Linear(D, D) for _ in range(E))
    router = LinearScorer(D, E) if scorer == "linear" else CosineScorer(D, E, projected=4)
    layer = MoELayer(router, made, selector=TopK(k), weigh=weighing.renormalised, executor=executor)
    return OutputOnly(layer).eval()


CASES = {
    "dense top-1": lambda: build("dense", k=1),
    "dense top-2": lambda: build("dense"),
    "gather top-1": lambda: build("gather", k=1),
    "gather top-2": lambda: build("gather"),
    "default executor": lambda: build("auto"),
    "list of modules": lambda: build("dense", bank="modules"),
    "cosine router": lambda: build("dense", scorer="cosine"),
    "mixtral": lambda: OutputOnly(RECIPES["mixtral"].build(D, E, 5)).eval(),
    "olmoe": lambda: OutputOnly(RECIPES["olmoe"].build(D, E, 5)).eval(),
    "loss-free": lambda: OutputOnly(RECIPES["loss-free"].build(D, E, 5)).eval(),
}
LENGTHS = (1, 3, 50)


def items(n):
    """Other items, and so another routing, at each length."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(n))


def exported(module):
    dynamic = ({0: torch.export.Dim("items", min=1, max=10000)},)
    return torch.export.export(module, (items(7),), dynamic_shapes=dynamic, strict=False)


@pytest.mark.parametrize("name", CASES)
def test_torch_export_holds_for_other_lengths_and_routings(name):
    module = CASES[name]()
    program = exported(module).module()
    for n in LENGTHS:
        torch.testing.assert_close(program(items(n)), module(items(n)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dense top-1", "dense top-2", "gather top-2", "default executor", "mixtral"])
def test_onnx_holds_for_other_lengths_and_routings(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, path = CASES[name](), tmp_path / "layer.onnx"
    torch.onnx.export(exported(module), (items(7),), path, opset_version=18, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in LENGTHS:
        (y,) = session.run(None, {session.get_inputs()[0].name: items(n).numpy()})
        np.testing.assert_allclose(y, module(items(n)).detach().numpy(), rtol=1e-5, atol=2e-6)
