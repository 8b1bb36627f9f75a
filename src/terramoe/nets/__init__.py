"""Network bodies and their parts without routing, each used by two or more systems or too long for a system's file.

State-space scans: ``scan`` linear recurrences, ``selective_scan`` Mamba's layer, ``directional`` scans of windows and
of channels. Maps: ``masked`` normalisation and pooling that leave nodata out, ``fusion`` of several resolutions,
``dynamic_conv``, ``spectral_stem`` (3-D and heterogeneous convolution), ``spectral_filter`` (masks between Fourier
transforms), ``texture``. Tokens: ``tokeniser``, ``cross_attention``, ``wavelengths``. Several sensors: ``sensors``
splits them, ``missing`` ones, ``fusion_operators``. Sound: ``sound_trunks``, ``statistics_pooling``. Densities:
``mixture_density``. ``patches``: for networks that classify one pixel at a time.
Bodies to freeze: ``vit``, ``galileo``, ``presto``; ``backbones`` finds one by name, ``frozen`` lets adapters stand
beside it, and ``masked_reconstruction`` pretrains one.
"""

from terramoe.nets.backbones import frozen_backbone
from terramoe.nets.cross_attention import BidirectionalCrossAttention, ClassAttention, CrossAttention
from terramoe.nets.directional import DIRECTIONS, DirectionalSSM, SpectralSSM
from terramoe.nets.dynamic_conv import DynamicDepthwiseConv
from terramoe.nets.frozen import Frozen, adapters_attached, freeze_vit
from terramoe.nets.fusion import TopDownFusion
from terramoe.nets.fusion_operators import (
    FUSIONS,
    AttentionFusion,
    BilinearFusion,
    ConcatFusion,
    GatedFusion,
    PairScorer,
    ProductFusion,
    SumFusion,
    fusion_bank,
    pool_pair,
)
from terramoe.nets.galileo import Galileo, GalileoTokens, load_galileo
from terramoe.nets.masked import MaskedGroupNorm, masked_average_pool, masked_mean
from terramoe.nets.masked_reconstruction import PixelDecoder, masked_reconstruction_loss
from terramoe.nets.missing import MissingEmbedding, modality_dropout, presence_code, presence_pattern
from terramoe.nets.patches import Patches, PatchLayout, patches_of
from terramoe.nets.presto import Presto, load_presto
from terramoe.nets.scan import linear_recurrence
from terramoe.nets.selective_scan import SelectiveScan
from terramoe.nets.sensors import split_sensors
from terramoe.nets.spectral_filter import BandMaskFilter, RadialFilter
from terramoe.nets.spectral_stem import HetConv, SpectralStem
from terramoe.nets.texture import edge_responses, texture_statistics
from terramoe.nets.tokeniser import LearnedTokeniser
from terramoe.nets.vit import TransformerBlock, ViT, tokens_to_map
from terramoe.nets.wavelengths import WavelengthEmbedding, encode_wavelengths

__all__ = [
    "DIRECTIONS",
    "FUSIONS",
    "AttentionFusion",
    "BandMaskFilter",
    "BidirectionalCrossAttention",
    "BilinearFusion",
    "ClassAttention",
    "ConcatFusion",
    "CrossAttention",
    "DirectionalSSM",
    "DynamicDepthwiseConv",
    "Frozen",
    "Galileo",
    "GalileoTokens",
    "GatedFusion",
    "HetConv",
    "LearnedTokeniser",
    "MaskedGroupNorm",
    "MissingEmbedding",
    "PairScorer",
    "PatchLayout",
    "Patches",
    "PixelDecoder",
    "Presto",
    "ProductFusion",
    "RadialFilter",
    "SelectiveScan",
    "SpectralSSM",
    "SpectralStem",
    "SumFusion",
    "TopDownFusion",
    "TransformerBlock",
    "ViT",
    "WavelengthEmbedding",
    "adapters_attached",
    "edge_responses",
    "encode_wavelengths",
    "freeze_vit",
    "frozen_backbone",
    "fusion_bank",
    "linear_recurrence",
    "load_galileo",
    "load_presto",
    "masked_average_pool",
    "masked_mean",
    "masked_reconstruction_loss",
    "modality_dropout",
    "patches_of",
    "pool_pair",
    "presence_code",
    "presence_pattern",
    "split_sensors",
    "texture_statistics",
    "tokens_to_map",
]
