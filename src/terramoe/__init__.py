"""TerraMoE: Mixture-of-Experts for remote sensing.

Importing this package is cheap: torch is loaded only by the subpackage that needs it.
"""

from terramoe._version import __version__
from terramoe.errors import TerraMoEError

__all__ = ["TerraMoEError", "__version__"]
