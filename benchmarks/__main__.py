"""The command line. A benchmark is a module with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import importlib
import sys

BENCHMARKS = {
    "loss": "time, memory and accuracy of the loss on the CPU, against the alternatives",
    "linear": "time and memory of the projection and the loss together on the CPU",
    "targets": "time and memory of the loss on the CPU by the kind of its target",
    "ranks": "time, memory and bytes of the loss on the CPU over the ranks of a process group",
    "gpu": "time, memory and accuracy of the loss on a GPU, alone and with the projection",
    "instructions": "machine instructions of the GPU kernels, counted without a GPU",
    "traffic": "bytes, instructions and occupancy of the GPU kernels, counted without a GPU",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of labelsmooth."
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, summary in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in sys.argv[1:2]:  # the others may need what is not here
            module = importlib.import_module(f"benchmarks.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
