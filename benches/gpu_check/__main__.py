"""The checks that need a real GPU, in one command of a few minutes: see README.md beside this file."""

import argparse
import sys
from pathlib import Path

import pack
import parts
import run


def main():
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    packing = commands.add_parser("pack", help="build, and put into DIR what the machine with the GPU needs beside this checkout")
    packing.add_argument("dir", type=Path)
    packing.add_argument("--preset", choices=parts.PRESETS, default="contact")
    packing.add_argument("--archs", default="90a", help="architectures to compile for, or all [default: 90a]")
    packing.add_argument("--without-gpu-code", action="store_true", help="allow a build without nvcc: it runs on the virtual GPU alone")
    packing.add_argument("--train-file", type=Path, help="reviews to train on [default: the bundled sample]")
    packing.add_argument("--validation-file", type=Path, help="reviews to evaluate on")
    packing.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json [default: the bundled sample's]")
    packing.add_argument("--model", type=Path, help="folder of a model, for the preset compare")

    running = commands.add_parser("run", help="run the pack in DIR; logs and results go to $OUT, or DIR/out")
    running.add_argument("dir", type=Path)
    running.add_argument("parts", nargs="*", metavar="PART", help="only these parts [default: those of the preset that need not be named]")
    running.add_argument("--small", action="store_true", help="a smoke test with little work")

    commands.add_parser("parts", help="list the presets' parts and their limits")

    # Parts may follow --small too.
    args, rest = parser.parse_known_args()
    if rest and (args.command != "run" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "parts":
        for preset, listed in parts.PRESETS.items():
            print(f"{preset}, {sum(part.limit for part in listed if not part.named)} s at most")
            for part in listed:
                notes = [f"needs {part.needs}"] * bool(part.needs) + ["only if it is named"] * part.named
                print(f"  {part.name:<12}{part.limit:>4} s  {part.what}" + (f" ({', '.join(notes)})" if notes else ""))
    elif args.command == "run":
        sys.exit(run.run(args.dir.resolve(), args.parts + rest, args.small))
    else:
        if (args.train_file is None) != (args.validation_file is None):
            parser.error("--train-file and --validation-file must be given together")
        if (args.preset == "compare") != (args.model is not None):
            parser.error("--model is for the preset compare, which requires it")
        pack.pack(args.dir, args.preset, args.archs, args.without_gpu_code, args.train_file, args.validation_file, args.tokenizer, args.model)


main()
