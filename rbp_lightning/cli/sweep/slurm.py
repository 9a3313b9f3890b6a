"""A SLURM script that runs each run of a sweep as a task of a job array."""

import shlex
import sys
from pathlib import Path

_SCRIPT = """\
#!/bin/bash
# Put the options of your cluster, such as --partition, --time and --gres=gpu:1, here or on sbatch's command line.
#SBATCH --job-name=sweep
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --output={folder}/slurm_%A_%a.txt
cd {here}
srun {command} --only "$SLURM_ARRAY_TASK_ID"
# When all tasks have ended, run this to write the report; it repeats the runs that failed:
# {command}
"""


def script(words: list[str], runs: int, folder: Path) -> str:
    """Returns the script, which sbatch reads from standard input.

    Args:
        words: The arguments of the sweep, without ``sweep`` itself.
        runs: The number of runs.
        folder: The sweep's folder.

    Example:
        >>> text = script(["--config=one.yaml", "--seeds=3", "--slurm"], 3, Path("logs/sweep"))
        >>> "--array=0-2" in text, "--slurm" in text
        (True, False)
    """
    program = Path(sys.argv[0])
    launcher = ["-m", "rbp_lightning"] if program.name == "__main__.py" else [str(program.absolute())]
    words = [word for word in words if word != "--slurm"]
    command = shlex.join([sys.executable, *launcher, "sweep", *words])
    absolute = shlex.quote(str(folder.absolute()))
    return _SCRIPT.format(last=runs - 1, folder=absolute, here=shlex.quote(str(Path.cwd())), command=command)
