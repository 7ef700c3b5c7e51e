"""``edge bench``: start-up, wire, pipeline, heads, each in fresh processes, with spread and the machine it ran on.

Every comparison is made in one run, its sides in alternating blocks, so that whatever else the machine does falls
on both. Worker processes (:mod:`edge.bench.bare`, :mod:`edge.bench.wire_ends`, :mod:`edge.bench.heads_worker`) print
one JSON line.
"""
