"""A stand-in for the metadata server of a Google machine, to which a notice can be given."""

import http.server
import threading


class Metadata(http.server.ThreadingHTTPServer):
    """Serves while it is entered; `notice` is the event of a TPU host's maintenance.

    The machine is no spot machine: it has no key `preempted`.
    """

    def __init__(self):
        self.notice, self.asked = threading.Event(), []
        super().__init__(("localhost", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.notice.set()
        self.shutdown()
        self.server_close()

    @property
    def address(self):
        return f"localhost:{self.server_address[1]}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self):
        path, _, query = self.path.partition("?")
        name = path.removeprefix("/computeMetadata/v1/instance/")
        values = {"maintenance-event": ("NONE", "TERMINATE_ON_HOST_MAINTENANCE")}.get(name)
        self.server.asked.append((name, self.headers["Metadata-Flavor"]))
        if values and "wait_for_change=true&last_etag=a1" in query:
            self.server.notice.wait()
        self.send_response(200 if values else 404)
        self.send_header("ETag", "b2" if self.server.notice.is_set() else "a1")
        self.end_headers()
        self.wfile.write((values or ("no such key",) * 2)[self.server.notice.is_set()].encode())

    def log_message(self, *_):
        pass
