"""An HTTP camera that sends JPEG pictures, in a thread of the test."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import cv2
import numpy as np

BLOCK = 16  # JPEG's own block: flat ones come through exactly enough


def clock_picture(width: int = 640, height: int = 480) -> np.ndarray:
    """Grey, with the monotonic clock in ms (low 32 bits) along its upper edge; see :func:`rigs.rtsp.age_ms`."""
    picture = np.full((height, width, 3), 90, np.uint8)
    now_ms = int(time.monotonic() * 1000) & 0xFFFFFFFF
    side = width // 32
    for k in range(32):
        picture[:BLOCK, k * side : (k + 1) * side] = 235 if now_ms >> (31 - k) & 1 else 16
    return picture


class MjpegServer:
    """Serves ``/stream`` on loopback, 25 pictures a second. ``stall``: while set, connections stay open and silent."""

    def __init__(self, user: str = "", password: str = "", port: int = 0) -> None:
        self.stall = threading.Event()
        self._stop = threading.Event()
        wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else None
        rig = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if wanted is not None and self.headers.get("Authorization") != wanted:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                elif self.path == "/stream":
                    rig._stream(self)
                elif self.path == "/page":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(b"<html>log in</html>")
                else:
                    self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/stream", login: str = "") -> str:
        return f"http://{login + '@' if login else ''}127.0.0.1:{self.port}{path}"

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        try:
            while not self._stop.wait(0.04):
                if self.stall.is_set():
                    continue
                data = cv2.imencode(".jpg", clock_picture())[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                handler.wfile.write(head.encode() + data + b"\r\n")
        except OSError:  # the reader went away
            pass

    def close(self) -> None:
        """End all streams and stop listening."""
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
