"""``terramoe world``: write a simulated world as GeoTIFFs, with the truth behind it."""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "world",
        "Simulate a place: optical, radar and LiDAR images with clouds, gaps and slopes, and the truth behind them: "
        "classes, changes, and the regimes that a router should find. Without a name, list the worlds.",
    )
    options.add_argument("name", nargs="?", help="a world")
    options.add_argument("-o", "--output", default="world", help="folder of the files (default: world)")
    options.add_argument("--size", type=int, default=256, help="side in pixels of 10 m (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="another seed, another place (default: %(default)s)")
    options.add_argument("--overwrite", action="store_true", help="replace the world in that folder")
    options.add_argument("--json", action="store_true", help="print JSON: the list, or the manifest of what is written")
    chosen = options.parse_args(argv)

    import json

    from rich.console import Console
    from rich.table import Table

    from terramoe.data.worlds import RECIPES, make_world
    from terramoe.experiments import simulated_surfaces
    from terramoe.experiments.simulated_tables import PREFIX, SIMULATED_TABLES, write_simulated
    from terramoe.storage.world_files import write_world

    console = Console()
    if chosen.name is not None and chosen.name.startswith(simulated_surfaces.PREFIX):
        own = chosen.name.removeprefix(simulated_surfaces.PREFIX)
        text = chosen.name if ":" in own else f"{chosen.name}:{chosen.seed}"
        paths = simulated_surfaces.write_known(text, chosen.output, overwrite=chosen.overwrite)
        if chosen.json:
            print(json.dumps({path.stem: str(path) for path in paths}, indent=2))
            return 0
        for path in paths:
            console.print(str(path), highlight=False, soft_wrap=True)
        return 0
    if chosen.name is not None and chosen.name.startswith(PREFIX):
        text = chosen.name if ":" in chosen.name.removeprefix(PREFIX) else f"{chosen.name}:{chosen.seed}"
        path = write_simulated(text, chosen.output, overwrite=chosen.overwrite)
        console.print(f"Table: {path}", highlight=False, soft_wrap=True)
        return 0
    if chosen.name is None:
        listed = {
            name: {
                "about": recipe.about,
                "classes": list(recipe.shares),
                "sensors": [sensor.name for sensor in recipe.sensors],
                "weeks": list(recipe.weeks),
                "latitudes": list(recipe.latitudes),
            }
            for name, recipe in RECIPES.items()
        }
        if chosen.json:
            print(json.dumps(listed, indent=2))
            return 0
        table = Table()
        for column in ("name", "what it is", "classes", "dates", "sensors"):
            table.add_column(column)
        for name, facts in listed.items():
            row = (facts["about"], str(len(facts["classes"])), str(len(facts["weeks"])), ", ".join(facts["sensors"]))
            table.add_row(name, *row, end_section=True)
        console.print(table)
        console.print("Next: terramoe world delta -o delta, or terramoe fit world:regimes")
        tables = Table("table", "what it is", "system")
        for name, made in SIMULATED_TABLES.items():
            tables.add_row(f"{PREFIX}{name}", made.about, made.system)
        console.print(tables)
        console.print("Next: terramoe fit table:ozone --system loyola, or terramoe world table:ozone -o ozone")
        surfaces = Table("surface", "what it is", "system")
        for name, scene in simulated_surfaces.SIMULATED_SURFACES.items():
            surfaces.add_row(f"{simulated_surfaces.PREFIX}{name}", scene.about, scene.system)
        console.print(surfaces)
        console.print("Next: terramoe fit surface:jacksboro --system aggarwal, or terramoe world surface:jacksboro")
        return 0
    world = make_world(chosen.name, size=chosen.size, seed=chosen.seed)
    manifest = write_world(world, chosen.output, overwrite=chosen.overwrite)
    if chosen.json:
        print(manifest.read_text(), end="")
        return 0
    written = json.loads(manifest.read_text())
    console.print(
        f"{world.name}, seed {world.seed}: {len(written['files'])} rasters of {world.size} x {world.size} pixels, "
        f"{len(world.class_names)} classes, {len(world.recipe.weeks)} dates",
        highlight=False,
    )
    console.print(f"Manifest: {manifest}", highlight=False, soft_wrap=True)
    console.print(
        f"Next: terramoe fit {manifest.parent / 'scene.tif'} {manifest.parent / 'labels.tif'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
