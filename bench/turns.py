"""Measurements that take turns, so that a machine whose pace changes is as fast for one as for the others."""

from statistics import median


def by_turns(rounds, measures):
    """`measures` are functions by name, of which each gives numbers by name. In every round each has its turn; gives the
    medians over the rounds, by both names."""
    found = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: medians(runs) for name, runs in found.items()}


def medians(runs):
    """Of numbers by name, one by one."""
    return {name: median(run[name] for run in runs) for name in runs[0]}
