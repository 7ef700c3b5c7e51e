"""``edge bench``: start-up, wire, pipeline, measured in fresh processes, with their spread and the machine they ran on.

Every comparison is made in one run, its sides in alternating blocks, so that whatever else the machine does falls
on both. Worker processes (:mod:`edge.bench.bare`, :mod:`edge.bench.wire_ends`) print one JSON line.
"""
