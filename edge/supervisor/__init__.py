"""The supervisor: makes the pools, starts the stages, watches their progress, restarts, drains, reloads.

Decisions are pure (:mod:`edge.supervisor.policy`, :mod:`edge.supervisor.plan`); processes, sockets and signals are
at the rim (:mod:`edge.supervisor.process`, :mod:`edge.supervisor.daemon`).
"""
