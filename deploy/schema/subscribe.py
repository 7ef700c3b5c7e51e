#!/usr/bin/env python3
"""Print every alert once, missed ones included: subscribe.py PUB REPLAY [LAST_ID]; needs pyzmq and msgpack."""

import sys

import msgpack
import zmq

context = zmq.Context()
stream, ask = context.socket(zmq.SUB), context.socket(zmq.DEALER)
stream.subscribe(b"alert.")
stream.connect(sys.argv[1])
ask.setsockopt(zmq.IMMEDIATE, 1)  # a request waits for the daemon instead of piling up
ask.connect(sys.argv[2])
last = int(sys.argv[3]) if len(sys.argv) > 3 else 0  # keep the last id somewhere to go on after a restart

while True:
    ask.send(msgpack.packb({"v": 1, "since": last, "limit": 100}))
    answer = msgpack.unpackb(ask.recv()) if ask.poll(2000) else {"alerts": [], "more": False}
    for alert in answer["alerts"]:
        if alert["id"] > last:
            last = alert["id"]
            print(last, alert["camera"], alert["why"], alert["picture"], flush=True)
    if not answer["more"]:
        stream.poll(2000)  # the stream is only the wake-up call: the alerts themselves come from the replay
        while stream.poll(0):
            stream.recv_multipart()
