"""An RTSP camera: run with the system's Python (gi), not with the project's.

    rtsp_server.py PORT [--fps 25] [--gop 25] [--size 640x360] [--user NAME --password PASSWORD]

Serves H.264 at rtsp://127.0.0.1:PORT/cam (PORT 0: any) and prints "ready PORT". Each frame carries the monotonic
clock in ms, low 32 bits, as 32 black or white blocks along its upper edge, most significant first: what one sees is
how old the picture is, all the way through encoder, network and decoder.
"""

from __future__ import annotations

import argparse
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BLOCK = 16
ROLE = "viewer"


def grey_frame(width: int, height: int, number: int) -> bytes:
    """A grey ramp with a white bar that moves, and the clock."""
    now_ms = int(time.monotonic() * 1000) & 0xFFFFFFFF
    side = width // 32
    clock = b"".join((b"\xeb" if now_ms >> bit & 1 else b"\x10") * side for bit in range(31, -1, -1))
    ramp = bytes(40 + 160 * x // width for x in range(width))
    at = (number * 8) % (width - 48)
    bar = ramp[:at] + b"\xff" * 48 + ramp[at + 48 :]
    middle = (height - BLOCK) // 2
    return clock.ljust(width, b"\x10") * BLOCK + ramp * middle + bar * 40 + ramp * (height - BLOCK - middle - 40)


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self, width: int, height: int, fps: int, gop: int) -> None:
        super().__init__()
        self.width, self.height, self.fps, self.gop = width, height, fps, gop

    def do_create_element(self, url: object) -> Gst.Element:
        # I420 is asked for because x264's baseline profile knows no 4:4:4.
        return Gst.parse_launch(
            "appsrc name=source is-live=true format=time do-timestamp=true"
            f" caps=video/x-raw,format=GRAY8,width={self.width},height={self.height},framerate={self.fps}/1"
            " ! videoconvert ! video/x-raw,format=I420"
            f" ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={self.gop} bitrate=2000"
            " ! h264parse config-interval=1 ! rtph264pay name=pay0 pt=96"
        )

    def do_configure(self, media: GstRtspServer.RTSPMedia) -> None:
        source = media.get_element().get_child_by_name("source")
        number = 0

        def push() -> bool:
            nonlocal number
            buffer = Gst.Buffer.new_wrapped(grey_frame(self.width, self.height, number))
            number += 1
            return source.emit("push-buffer", buffer) == Gst.FlowReturn.OK  # False ends the timer with the media

        GLib.timeout_add(1000 // self.fps, push)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--gop", type=int, default=25)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    args = parser.parse_args()
    Gst.init(None)
    missing = [n for n in ("appsrc", "videoconvert", "x264enc", "h264parse", "rtph264pay") if not has(n)]
    if missing:
        sys.exit(f"GStreamer lacks {' '.join(missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    factory = Factory(*map(int, args.size.split("x")), args.fps, args.gop)
    factory.set_shared(True)
    if args.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", ROLE)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(args.user, args.password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        for what in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role(ROLE, what, True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/cam", factory)
    if server.attach(None) == 0:
        sys.exit("the port is in use")
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


def has(element: str) -> bool:
    return Gst.ElementFactory.find(element) is not None


if __name__ == "__main__":
    main()
