"""Whole clusters in one process, on one thread, from a seed.

Production code on a simulated clock, disk, board and network. A failure prints its seed, and
``python -m tests.sim --seed n`` plays it again; ``docs/simulation.md`` says more.

    world      the event loop that jumps through time; processes that stop, go on and die
    network    requests and answers that are late, lost, doubled and cut
    disk       an SQLite VFS that forgets what was not fsynced
    board      the board in memory, behind such a network
    node       a node's parts as ``divandb.server`` puts them together; ``front``: its requests
    cluster    masters, replicas and their misfortunes
    client     clients, sessions and readers of changes, who know what they were promised
    history    what was really written; ``losses``: what of it may be gone with a disk
    checkers   what must hold of it everywhere
    faults     what goes wrong; ``workloads``: what clients do; ``storm`` draws a run of both
    chaos      smaller random runs; ``harness`` plays one
    search     many runs in processes; ``python -m tests.sim``

Scenarios are sentences: ``test_scenarios`` (masters), ``test_groups`` (forwarding, boards, relays),
``test_reading`` (sessions, age, cursors), ``test_verify`` (damage behind a node's back).
``test_broken_rules`` breaks rules, and wants it noticed.
"""
