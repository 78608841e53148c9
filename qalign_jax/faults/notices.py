"""Google Cloud's notices that a machine ends, taken as SIGTERM.

A spot machine is pre-empted, and a TPU's host maintained, about 30 to 60 seconds after the
metadata server says so; the operating system's own signal comes late or never.
"""

import http.client
import os
import pathlib
import signal
import threading
import time

from absl import logging

# What the kernel says of the machine.
PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")
ADDRESS = "169.254.169.254"
NOTICES = {
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}
_WAIT_S = 60  # of one request, which is answered at a change
_RETRY_S = 5


def watch() -> None:
    """Waits for the notices in threads, on Google's machines (or with GCE_METADATA_HOST)."""
    host = os.environ.get("GCE_METADATA_HOST")
    if not host:
        try:
            if PRODUCT.read_text().strip() != "Google Compute Engine":
                return
        except OSError:
            return
        host = ADDRESS
    for name in NOTICES:
        threading.Thread(target=_wait, args=(host, name), daemon=True).start()


def _wait(host: str, name: str) -> None:
    before, etag = "", ""
    while True:
        try:
            value, etag = _ask(host, name, etag)
        except (OSError, http.client.HTTPException):
            time.sleep(_RETRY_S)
            continue
        # one that stands at the start has ended an earlier run: this one goes on while it can
        if before and before != value == NOTICES[name]:
            logging.warning("%s is %s: taken as SIGTERM", name, value)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        before = value


def _ask(host: str, name: str, etag: str) -> tuple[str, str]:
    """The present value, or the one that comes after that of `etag`; and its own."""
    path = f"/computeMetadata/v1/instance/{name}"
    if etag:
        path += f"?wait_for_change=true&last_etag={etag}&timeout_sec={_WAIT_S}"
    connection = http.client.HTTPConnection(host, timeout=2 * _WAIT_S)
    try:
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        value, etag = answer.read(1000).decode(errors="replace").strip(), answer.headers["ETag"]
        if answer.status != 200 or not etag:
            raise OSError(f"{path}: status {answer.status}")
        return value, etag
    finally:
        connection.close()
