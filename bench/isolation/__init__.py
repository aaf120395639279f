"""Attacks: what a hostile guest does, on any path and through any door, and what its neighbours notice of it.

    attack.py       what an attack is               catalogue.py    all of them
    descriptors.py, frames.py, calls.py, memory.py, nowhere.py    the attacks, by what they abuse
    drivers.py      a front end that does as it is told: rings and descriptors of each path without a thought for the protocol
    loops.py        what attacks at full speed, compiled
    attacker.py     what an attack works with       hostile.py      the hostile guest's role
    victim.py       the role of a neighbour whose memory is full of canaries
    trial.py        a topology under attack: bystanders that exchange verified traffic, and what became of them

A hostile guest has what any guest has: its sockets to the hypervisor, to xenstored and to the keeper, its memory, the descriptors
it was given, as many threads as it likes. ``python -m bench isolation`` runs them all (bench/benchmarks/isolation.py),
tests/attacks.py gives them to the tests, and adding one is a function with a decorator.
"""
