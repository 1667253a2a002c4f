"""Which run goes on which GPU: whole cards for large runs, shared ones for small runs. No framework, no processes."""

from collections.abc import Collection, Sequence

from benchmarks.claim_plan import ClaimRun


def starts(
    waiting: Sequence[ClaimRun],
    free: Sequence[int],
    slots: int,
    finished: Collection[str],
    ended: Collection[str],
) -> list[tuple[ClaimRun, int]]:
    """What can be started now.

    Args:
      waiting: runs that haven't been started, those first that matter most.
      free: of each GPU, how many of its slots are; a large run takes all, a small one takes one.
      slots: of a GPU.
      finished: names of the runs that came to their end.
      ended: names of those that won't run any more, however they ended: `finished` and the failed.

    Returns: runs and their GPUs.

    A run that waits for others keeps a GPU free once the first of those has ended; a large run for which no GPU is
    wholly free keeps small ones off the one that will be free soonest. Otherwise small runs would be put before large
    ones for ever.
    """
    free = list(free)
    begun: list[tuple[ClaimRun, int]] = []
    for run in waiting:
        needed = 1 if run.shares_gpu else slots
        at = max(range(len(free)), key=lambda gpu: free[gpu])
        if all(name in ended for name in run.best_of):
            if not any(name in finished for name in run.best_of) and run.best_of:
                continue  # none of them gave a learning rate
            if free[at] >= needed:
                begun.append((run, at))
                free[at] -= needed
            elif not run.shares_gpu:
                free[at] = 0
        elif any(name in ended for name in run.best_of):
            free[at] = 0
    return begun
