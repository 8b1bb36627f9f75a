"""Tables that the simulators of physics make, so that every system over rows can be tried without data.

``terramoe fit table:NAME[:SEED] --system SYSTEM`` reads one, ``terramoe world table:NAME`` writes it as CSV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terramoe.data.row_table import Columns, RowTable, row_table
from terramoe.errors import ConfigError, DataError
from terramoe.storage import write_text

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "table:"
ROWS = 1200


@dataclass(frozen=True)
class SimulatedTable:
    """One table.

    Attributes:
        about: what it is. system: that is made for it. make: seed -> data frame.
        columns: what is what. settings: of the system, beside its defaults.
    """

    about: str
    system: str
    make: Callable[[int], pd.DataFrame]
    columns: Columns
    settings: Mapping[str, Any] = field(default_factory=dict)


def ozone(seed: int) -> pd.DataFrame:
    """N-values of a polar orbiter over the globe, and the column of ozone (DU)."""
    import pandas as pd

    from terramoe.data.simulators.ozone import n_values, noisy, ozone_scenes, radiance
    from terramoe.systems.loyola import COLUMNS

    scenes = ozone_scenes(5 * ROWS, seed)
    spectra = n_values(noisy(radiance(scenes), seed), scenes.sun)
    rest = (scenes.sun, scenes.view, scenes.azimuth, scenes.albedo, np.abs(scenes.latitude), scenes.aerosol)
    frame = pd.DataFrame(np.column_stack([spectra, *rest]), columns=[*COLUMNS[:-2], "from_equator", COLUMNS[-1]])
    frame["latitude"] = scenes.latitude
    frame["longitude"] = _draw(seed, len(frame), -180, 180)
    return frame.assign(ozone=scenes.ozone)


def ocean_colour(seed: int) -> pd.DataFrame:
    """Reflectance of three kinds of water on 24 cruises, and absorption by phytoplankton (1/m)."""
    import pandas as pd

    from terramoe.data.simulators.ocean_colour import stand_in_spectra, water_samples

    bands = np.linspace(403, 693, 20)
    water = water_samples(ROWS, bands, stand_in_spectra(bands), seed)
    names = [f"{band:.0f}" for band in bands]
    frame = pd.DataFrame(water.reflectance, columns=[f"Rrs_{name}" for name in names])
    cruise = (_draw(seed, ROWS, 0, 24)).astype(int)
    frame["cruise"] = cruise
    frame["longitude"] = -90 + cruise % 6 + 0.2 * _draw(seed + 1, ROWS, 0, 1)
    frame["latitude"] = 26 + cruise // 6 + 0.2 * _draw(seed + 2, ROWS, 0, 1)
    return frame.join(pd.DataFrame(water.phytoplankton, columns=[f"aph_{name}" for name in names]))


def cloud_base(seed: int) -> pd.DataFrame:
    """57 sensors under convective and layered clouds, and the height of their base (km)."""
    import pandas as pd

    from terramoe.data.simulators.cloud_base import cloud_base_table

    X, y, _ = cloud_base_table(ROWS, seed, missing=0.02)
    frame = pd.DataFrame(X, columns=[f"sensor_{n}" for n in range(1, X.shape[1] + 1)])
    return frame.assign(day=np.arange(ROWS) // 8, base=y)


def mine_alarms(seed: int) -> pd.DataFrame:
    """Edge energies of radar along 15 positions over mines and clutter in two soils, on 40 lanes."""
    import pandas as pd

    from terramoe.data.simulators.mines import edge_features
    from terramoe.data.simulators.mines import mine_alarms as simulate

    found = simulate(400, seed)
    energy = np.log(np.maximum(edge_features(found.scans), 1e-12))
    names = [f"edge_{t}_{f}" for t in range(energy.shape[1]) for f in range(energy.shape[2])]
    frame = pd.DataFrame(energy.reshape(len(energy), -1), columns=names)
    return frame.assign(lane=np.arange(len(energy)) % 40, target=np.where(found.mine, "mine", "clutter"))


def cloudy_crops(seed: int) -> pd.DataFrame:
    """A year of NDVI of fields with gaps where clouds were, and the crop."""
    import pandas as pd

    from terramoe.experiments.claims.kussul import cloudy_year

    index, crop, in_field, days = cloudy_year(seed)
    pixels = np.random.default_rng(seed).permutation(crop.size)[:ROWS]
    frame = pd.DataFrame(index.reshape(len(days), -1).T[pixels], columns=[f"ndvi_{day:.0f}" for day in days])
    names = np.array([f"crop {k}" for k in range(int(crop.max()) + 1)])
    return frame.assign(field=in_field.ravel()[pixels], crop=names[crop.ravel()[pixels]])


def gathers(seed: int) -> pd.DataFrame:
    """Angle gathers and smooth models over blocky ground, and its velocities (km/s) and density (g/cm3)."""
    import pandas as pd

    from terramoe.experiments.claims.pmmoe import NEAR, simulated

    X, y = simulated(seed, NEAR).train
    steps = y.shape[1] // 3
    inputs = [f"{name}_{t}" for name in ("near", "mid", "far", "wide", "vp0", "vs0", "rho0") for t in range(steps)]
    frame = pd.DataFrame(X, columns=inputs)
    outputs = [f"{name}_{t}" for name in ("vp", "vs", "rho") for t in range(steps)]
    return frame.join(pd.DataFrame(y, columns=outputs)).assign(line=np.arange(len(X)) // 20)


def ships(seed: int) -> pd.DataFrame:
    """Half a second of sound of 200 ships at 2 kHz, and the ship's kind, range (km) and the receiver's depth (m)."""
    import pandas as pd

    from terramoe.experiments.claims.meg import recordings

    sound, _ = recordings(seed)
    frame = pd.DataFrame(sound.series, columns=[f"p_{t}" for t in range(sound.series.shape[1])])
    kinds = np.array(["A", "B", "C", "D", "E"])
    return frame.assign(ship=sound.source, kind=kinds[sound.kind], range_km=sound.distance / 1000, depth_m=sound.depth)


def counties(seed: int) -> pd.DataFrame:
    """Months of weather and NDVI, and the wheat yield, of 300 counties in 18 years."""
    from terramoe.experiments.claims.stf_moe import county_table

    return county_table(seed)


def rain(seed: int) -> pd.DataFrame:
    """Ten hours of a warm rain model around a cell, and the next hour's rain (mm)."""
    from terramoe.experiments.claims.jiang import rain_table

    return rain_table(seed)


def _draw(seed: int, count: int, low: float, high: float) -> np.ndarray:
    """(count,) places that no simulator cares about."""
    return np.random.default_rng([seed, 7]).uniform(low, high, count)


SIMULATED_TABLES: Mapping[str, SimulatedTable] = {
    "ozone": SimulatedTable(
        "ultraviolet radiances over the globe -> ozone",
        "loyola",
        ozone,
        Columns(("ozone",), ("N-value*", "sun", "view", "azimuth", "albedo", "from_equator", "aerosol")),
    ),
    "ocean-colour": SimulatedTable(
        "reflectance of 24 cruises -> absorption by phytoplankton",
        "pha-moe",
        ocean_colour,
        Columns(("aph_*",), ("Rrs_*",), group="cruise"),
        {"hidden": 64, "width": 64, "covariance": "diagonal", "steps": 1000},
    ),
    "cloud-base": SimulatedTable(
        "57 sensors -> height of the cloud base", "pasika", cloud_base, Columns(("base",), ("sensor_*",), group="day")
    ),
    "mine-alarms": SimulatedTable(
        "radar along 15 positions -> mine or clutter",
        "yuksel-gader",
        mine_alarms,
        Columns(("target",), ("edge_*",), group="lane", classes=True),
        {"features": 4},
    ),
    "cloudy-crops": SimulatedTable(
        "a year of NDVI with gaps -> crop",
        "kussul",
        cloudy_crops,
        Columns(("crop",), ("ndvi_*",), group="field", classes=True),
    ),
    "gathers": SimulatedTable(
        "angle gathers and smooth models -> velocities and density",
        "pmmoe",
        gathers,
        Columns(
            ("vp_*", "vs_*", "rho_*"), ("near_*", "mid_*", "far_*", "wide_*", "vp0_*", "vs0_*", "rho0_*"), group="line"
        ),
    ),
    "ships": SimulatedTable(
        "half a second of sound -> kind, range and depth",
        "meg",
        ships,
        Columns(("kind", "range_km", "depth_m"), ("p_*",), group="ship", classes=True),
        {"n_fft": 128, "hop": 32, "width": 32, "embedding": 48, "bottleneck": 16, "steps": 300, "learning_rate": 3e-3},
    ),
    "counties": SimulatedTable(
        "weather and NDVI of 300 counties in 18 years -> wheat yield",
        "stf-moe",
        counties,
        Columns(
            ("yield",),
            ("*_oct", "*_nov", "*_dec", "*_jan", "*_feb", "*_mar", "*_apr", "*_may", "*_jun", "height"),
            time="year",
        ),
        {"features": 5, "static": 1, "width": 24, "heads": 2, "layers": 1, "steps": 500, "learning_rate": 3e-3},
    ),
    "rain": SimulatedTable(
        "ten hours around a cell -> the next hour's rain",
        "jiang",
        rain,
        Columns(("precipitation_next",), None, longitude="x", latitude="y", time="time"),
    ),
}


def simulated_facts(text: str) -> tuple[SimulatedTable, int]:
    """``table:NAME[:SEED]`` -> the table's description and the seed. DataError for another text."""
    name, _, seed = text.removeprefix(PREFIX).partition(":")
    if name not in SIMULATED_TABLES:
        raise DataError(f"there is no simulated table '{name}'", where=text, fix=f"use {', '.join(SIMULATED_TABLES)}")
    if seed and not seed.isdecimal():
        raise DataError(f"'{seed}' is no seed", where=text, fix=f"write {PREFIX}{name} or {PREFIX}{name}:3")
    return SIMULATED_TABLES[name], int(seed or 0)


def simulated_table(text: str) -> RowTable:
    """The table that ``table:NAME[:SEED]`` names, with its targets."""
    facts, seed = simulated_facts(text)
    return row_table(facts.make(seed), facts.columns, name=text.removeprefix(PREFIX).partition(":")[0])


def write_simulated(text: str, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the table that ``table:NAME[:SEED]`` names as CSV into a folder; ConfigError if it is there already."""
    facts, seed = simulated_facts(text)
    path = Path(folder) / f"{text.removeprefix(PREFIX).partition(':')[0]}.csv"
    if path.exists() and not overwrite:
        raise ConfigError(
            "the file is there already", where=path, fix="name another folder with -o, or add --overwrite"
        )
    write_text(path, facts.make(seed).to_csv(index=False))
    return path
