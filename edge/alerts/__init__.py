"""From verdicts to alerts: decision, regions, store, public messages, publisher and subscriber, evidence pictures.

Import the module that is needed; nothing is imported here, so that a subscriber loads no OpenCV.
"""
