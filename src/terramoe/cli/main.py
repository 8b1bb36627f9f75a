"""``terramoe``: finds the verb, runs it, and turns our errors into one line and exit code 2.

Nothing heavy is imported here, so that help is instant.
"""

from __future__ import annotations

import sys
from importlib import import_module

from terramoe._version import __version__
from terramoe.errors import TerraMoEError

VERBS = {
    "demo": "audit, train and compare MambaMoE on the real Indian Pines scene (start here)",
    "fit": "train a system on your own scene and labels",
    "evaluate": "score a trained model on a labelled scene",
    "predict": "map a raster of any size with a trained model",
    "compare": "train systems and their controls, and say where routing helps",
    "scale": "quality and cost over the number of experts and choices",
    "reproduce": "test what is distinctive in a system, and say whether the paper's claim holds",
    "diff": "name what differs between two runs, and whether it may change results",
    "shift": "test a trained model under missing bands, clouds, gain, noise and mis-registration",
    "explain": "show which bands and pixels a prediction rests on, beside the map of experts",
    "audit": "say what a split gives away, before anything is trained on it",
    "trust": "say whether a trained model's probabilities, sets and routing can be trusted",
    "drift": "say whether a new image is drawn as the reference was",
    "world": "simulate a place whose truth is known, as GeoTIFFs",
    "systems": "list the published systems, or show one",
    "doctor": "check this installation",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"terramoe {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"terramoe: there is no '{verb}'. Fix: use one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return import_module(f"terramoe.cli.{verb}").run(arguments[1:])
    except TerraMoEError as error:
        print(f"terramoe: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("terramoe: stopped. The same command goes on from the last saved step.", file=sys.stderr)
        return 130


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: terramoe VERB ...",
            "",
            "Mixture-of-Experts for remote sensing: published systems, trained, compared and shown honestly.",
            "",
            *lines,
            "",
            "'terramoe VERB --help' explains one. Made a mistake? One line says what, where, and how to mend it.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
