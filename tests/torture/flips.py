"""One flipped bit anywhere in the newest checkpoint: it is noticed, and the checkpoint before it leads to the same model."""

import random
import shutil

from runs import SHORT, WORK, Undisturbed, checkpoints, empty, faulty, train

FLAGS = SHORT.replace("limit 1", "limit 3").replace(" --quiet", "") + " --max-steps 12"


def torture(short, counts):
    rng, undisturbed, problems = random.Random(0), Undisturbed(f"{FLAGS} --quiet", "flips"), []
    killed, out = empty(WORK / "flips-killed"), WORK / "flips"
    train(FLAGS, killed, **faulty(killed / "checkpoint-10", only="mkdir", k=1, mode="kill"))
    assert checkpoints(killed)[-1] == 8, checkpoints(killed)
    names = sorted(path.name for path in (killed / "checkpoint-8").iterdir())
    for flip in range(len(names) if short else 120):
        counts["flipped"] += 1
        shutil.copytree(killed, empty(out))
        path = out / "checkpoint-8" / names[flip % len(names)]
        content = bytearray(path.read_bytes())
        at = rng.randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        code, errors = train(f"{FLAGS} --resume-from-checkpoint", out)
        # A flipped bit in a checksum is one in the file that it belongs to.
        named = "checkpoint-8" if path.name == "checksums.json" else f"checkpoint-8/{path.name}"
        noticed = "warning: not resumed from the newest checkpoint" in errors and named in errors
        counts["noticed"] += noticed
        found = [] if noticed else ["not noticed"]
        found += undisturbed.faults_at_end(out) if code == 0 else [f"exit code {code}: {errors}"]
        problems += [f"bit {at} of {path.name}: {problem}" for problem in found]
    return problems
