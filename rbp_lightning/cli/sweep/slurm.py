"""A script for SLURM, whose tasks are the trainings of a sweep."""

import shlex
import sys
from pathlib import Path

_SCRIPT = """\
#!/bin/bash
# Options of your cluster, such as --partition, --time and --gres=gpu:1, go here or to sbatch itself.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --output={folder}/slurm_%A_%a.txt
cd {here}
srun {command} --only "$SLURM_ARRAY_TASK_ID"
# When all have ended, the command without --only writes the report, and trains what has failed once more:
# {command}
"""


def script(words: list[str], trainings: int, folder: Path) -> str:
    """The script, which sbatch takes from its standard input.

    Args:
        words: The arguments of the sweep, ``sweep`` itself left out.
        trainings: How many trainings it has.
        folder: The sweep's folder.

    Example:
        >>> text = script(["--config=one.yaml", "--seeds=3", "--slurm"], 3, Path("logs/sweep"))
        >>> "--array=0-2" in text, "--slurm" in text
        (True, False)
    """
    program = Path(sys.argv[0])
    started = ["-m", "rbp_lightning"] if program.name == "__main__.py" else [str(program.absolute())]
    words = [word for word in words if word != "--slurm"]
    command = shlex.join([sys.executable, *started, "sweep", *words])
    absolute = shlex.quote(str(folder.absolute()))
    return _SCRIPT.format(last=trainings - 1, folder=absolute, here=shlex.quote(str(Path.cwd())), command=command)
