"""Tables that the simulators make: each fits its system, and the command line reads and writes it."""

import numpy as np
import pandas as pd
import pytest

from terramoe.cli.main import main
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.row_study import targets_of, trainable
from terramoe.experiments.simulated_tables import SIMULATED_TABLES, simulated_table, write_simulated
from terramoe.systems.table_registry import TABLE_SYSTEMS, build_table_system, table_system_class

SLOW = ("ships", "rain")  # half a minute of simulation each; their claims make them


def test_every_table_system_has_one():
    assert {made.system for made in SIMULATED_TABLES.values()} == set(TABLE_SYSTEMS)


@pytest.mark.parametrize("name", [name for name in SIMULATED_TABLES if name not in SLOW])
def test_a_table_is_what_its_system_reads(name):
    made = SIMULATED_TABLES[name]
    table = simulated_table(f"table:{name}:1")
    system = build_table_system(made.system, made.settings)
    assert bool(table.class_names) == (table_system_class(made.system).task != "values")
    whole, left_out = trainable(table, system)
    assert left_out < 0.1 * len(table)
    assert len(whole) >= 300
    assert table.groups is not None or table.places is not None
    y = targets_of(whole)
    assert np.ptp(y.reshape(len(y), -1), axis=0).min() > 0
    assert simulated_table(f"table:{name}:1").digest() == table.digest()
    assert simulated_table(f"table:{name}:2").digest() != table.digest()


def test_a_table_is_written_as_csv_once(tmp_path):
    path = write_simulated("table:ocean-colour:3", tmp_path)
    frame = pd.read_csv(path)
    np.testing.assert_allclose(frame["Rrs_403"], simulated_table("table:ocean-colour:3").features[:, 0], rtol=1e-12)
    with pytest.raises(ConfigError, match="there already"):
        write_simulated("table:ocean-colour:3", tmp_path)


def test_the_command_line_takes_one(tmp_path, capsys):
    sizes = [f"--model.{k}={v}" for k, v in {"steps": 20, "experts": 2, "top_k": 1, "width": 8, "hidden": 8}.items()]
    words = ["fit", "table:ocean-colour", "--system", "pha-moe", *sizes, "--seeds", "1", "-o", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(["predict", str(tmp_path / "run"), "table:ocean-colour:1", "-o", str(tmp_path / "p.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "p.csv")) == 1200
    assert main(["world", "table:cloud-base", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "cloud-base.csv").exists()
    capsys.readouterr()
    assert main(["world"]) == 0
    assert "table:ozone" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["table:none", "table:ozone:x"])
def test_other_names_are_our_error(text):
    with pytest.raises(DataError):
        simulated_table(text)
