"""What crosses a process border: slots in shared memory, descriptors over ZeroMQ, control messages, the ledger.

Pixels and tensors stay in slot pools (:mod:`edge.wire.pool`); what travels is one small msgpack descriptor
(:mod:`edge.wire.descriptor`) over a link (:mod:`edge.wire.link`). The ledger (:mod:`edge.wire.ledger`) is the
truth about every frame: who holds it, and how it ended. A slot belongs to a frame's *ticket*; once the ledger has
closed the ticket the slot is free again, whoever died in between.
"""
