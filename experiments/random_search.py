"""The table of a comparison with random search, over the seeds."""

from benchmarks.report import markdown
from experiments.runs import Row, mean_and_spread


def table(rows: list[Row]) -> str:
    """Formats the comparison that ``RandomSearch`` prints, over the seeds, as Markdown.

    Args:
        rows: The printed rows of each seed, such as ``random search, 65 trials``.
    """
    lines = []
    for kind in dict.fromkeys(row["hyperparameters"].partition(",")[0] for row in rows):
        runs = [row for row in rows if row["hyperparameters"].startswith(kind)]
        loss, accuracy = ([float(row[name].strip(" %")) for row in runs] for name in ("test loss", "test accuracy"))
        trials = sorted(int(row["hyperparameters"].split()[2]) for row in runs if "," in row["hyperparameters"])
        name = f"{kind}, {trials[0]} to {trials[-1]} trials" if trials else kind
        lines.append([name, mean_and_spread(loss, 3), f"{mean_and_spread(accuracy)} %", len(runs)])
    return markdown(["hyperparameters", "test loss", "test accuracy", "seeds"], lines)
