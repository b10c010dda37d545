"""Whole clusters in one process, on one thread, from a seed.

Production code on a simulated clock, disk, board and network. A failure prints its seed:
``DIVANDB_SIM_SEEDS=1 DIVANDB_SIM_FIRST_SEED=n pytest tests/sim/test_random.py`` plays it again.

    world      the event loop that jumps through time; processes that stop, go on and die
    network    requests and answers that are late, lost, doubled and cut
    board      the board in memory, behind such a network
    node       a node's parts as ``divandb.server`` puts them together; ``front``: its requests
    cluster    masters, replicas and their misfortunes
    client     clients, sessions and readers of changes, who know what they were promised
    history    what was really written; ``checkers``: what must hold of it everywhere
    chaos      random runs; ``harness`` plays one; ``trace`` prints one

Scenarios are sentences: ``test_scenarios`` (masters), ``test_groups`` (forwarding, boards, relays),
``test_reading`` (sessions, age, cursors), ``test_verify`` (damage behind a node's back).
``test_broken_rules`` breaks rules, and wants it noticed.
"""
