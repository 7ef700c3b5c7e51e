"""The commands of ``edge``, one module each; :mod:`edge.cli` imports the one that is called."""
