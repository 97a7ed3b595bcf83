"""The command line. A benchmark is a module with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import importlib

BENCHMARKS = {
    "loss": "time, memory and accuracy of the loss on the CPU, against the alternatives",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of labelsmooth."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, summary in BENCHMARKS.items():
        module = importlib.import_module(f"benchmarks.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
