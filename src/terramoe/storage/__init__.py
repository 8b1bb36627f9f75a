"""Files: ``atomic`` writes, ``model_file`` and ``state_file`` (safetensors), ``estimator_file`` (skops), ``geotiff``
(COG), ``run_folder``.
"""

from terramoe.storage.atomic import atomic_path, sha256_of, write_bytes, write_checksum, write_json, write_text
from terramoe.storage.estimator_file import (
    StoredEstimator,
    is_estimator,
    load_estimator,
    load_manifest,
    save_estimator,
)
from terramoe.storage.geotiff import RasterForm, RasterWriter, cog_writer, quiet_without_georeference, write_cog
from terramoe.storage.model_file import StoredModel, load_model, save_model
from terramoe.storage.run_folder import RunFolder
from terramoe.storage.state_file import load_state, save_state

__all__ = [
    "RasterForm",
    "RasterWriter",
    "RunFolder",
    "StoredEstimator",
    "StoredModel",
    "atomic_path",
    "cog_writer",
    "is_estimator",
    "load_estimator",
    "load_manifest",
    "load_model",
    "load_state",
    "quiet_without_georeference",
    "save_estimator",
    "save_model",
    "save_state",
    "sha256_of",
    "write_bytes",
    "write_checksum",
    "write_cog",
    "write_json",
    "write_text",
]
