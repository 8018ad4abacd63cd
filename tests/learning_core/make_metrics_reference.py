"""Figures of continual learning by public implementations, for a made-up accuracy matrix.

The test `figures_are_those_of_public_implementations` in src/domain/accuracy.rs holds the matrix and what this prints.
The program knows nothing of that code: every held-out image gets a right or a wrong answer, and the libraries count.

    pip install continuum==1.2.7 avalanche-lib==0.6.0 six
    python tests/learning_core/make_metrics_reference.py

Which library for what, and where definitions differ:

- average incremental accuracy and last accuracy: continuum's `Logger`, which like ours takes all images of a version
  together, so that tasks of unequal sizes may stand here. (Its `accuracy_A` weighs tasks equally.)
- backward transfer and forgetting: avalanche's `BWT` and `Forgetting`, averaged over the tasks before the last one.
  Avalanche takes the accuracy right after learning where Chaudhry et al. 2018 take the best one before the last
  version; in this matrix both are the same. Continuum's functions of these names are left out: version 1.2.7 leaves out
  the task before the last one.
- forward transfer: avalanche's `ForwardTransfer`, with the bare backbone's accuracy in the place of that at random
  initialisation.
"""

import numpy as np
from avalanche.evaluation.metrics import BWT, Forgetting, ForwardTransfer
from continuum.metrics import Logger

# Held-out images of each task, and of them the right answers of each version.
SIZES = [20, 40, 10, 30]
RIGHT = [
    [19],
    [17, 36],
    [18, 30, 7],
    [14, 33, 6, 27],
]
# Of every task after the first: right answers of the version before it, and of the bare backbone.
AHEAD = [22, 5, 12]
BARE = [20, 6, 9]


def answers(right):
    """Predictions, targets and tasks of one version's held-out images."""
    predicted, wanted, tasks = [], [], []
    for task, (count, size) in enumerate(zip(right, SIZES)):
        wanted += [task] * size
        predicted += [task] * count + [-1] * (size - count)
        tasks += [task] * size
    return np.array(predicted), np.array(wanted), np.array(tasks)


logger = Logger(list_subsets=["test"])
forgetting, backward, forward = Forgetting(), BWT(), ForwardTransfer()
for version, right in enumerate(RIGHT):
    logger.add(value=list(answers(right)), subset="test")
    average, last = logger.average_incremental_accuracy, logger.accuracy
    logger.end_task()
    for task, (count, size) in enumerate(zip(right, SIZES)):
        for metric in (forgetting, backward):
            metric.update(task, count / size, initial=task == version)
for task, (ahead, bare) in enumerate(zip(AHEAD, BARE), start=1):
    forward.update(task, bare / SIZES[task], initial=True)
    forward.update(task, ahead / SIZES[task])

print("average", repr(float(average)))
print("last", repr(float(last)))
for name, metric in [("forgetting", forgetting), ("backward transfer", backward), ("forward transfer", forward)]:
    print(name, repr(float(np.mean(list(metric.result().values())))))
