"""The stages: capture, preprocess, backbone, head, alert. One small file each, one process each.

:mod:`edge.stages.base` has what they share: the loop that works, beats and obeys the supervisor.
"""
