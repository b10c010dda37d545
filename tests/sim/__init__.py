"""Whole clusters in one process, on simulated time, from a seed.

    world       the event loop that jumps instead of waiting
    board       boards and the network between nodes, with their faults
    cluster     masters made of production code: store, master, publisher, applier, catch-up
    checkers    what must hold in the end

`python -m tests.sim --seed N` replays one run; a failure prints its seed.
"""
