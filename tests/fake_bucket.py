"""A bucket of Google Cloud Storage in memory, behind its XML interface on localhost."""

import contextlib
import http.server
import json
import threading
import urllib.parse
from xml.sax.saxutils import escape


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes] = {}

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        base = {"Content-Length": len(content), "ETag": '"1"'}
        base |= {"Last-Modified": "Sat, 01 Jan 2000 00:00:00 GMT"}
        for name, value in (base | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def key(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        return path.lstrip("/").partition("/")[2]

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        is_new = self.headers.get("x-goog-if-generation-match") == "0"
        if is_new and self.key in self.objects:
            return self.answer(412)
        self.objects[self.key] = content
        self.answer(200, x_goog_generation=1)

    def do_GET(self):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
        if "list-type" not in query:
            if self.key not in self.objects:
                return self.answer(404)
            return self.answer(200, self.objects[self.key], x_goog_generation=1)
        prefix, end = query.get("prefix", ""), query.get("delimiter")
        entries, folders = "", set()
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            folder, _, _ = key.removeprefix(prefix).partition(end or "/")
            if end and prefix + folder != key:
                folders.add(escape(prefix + folder + end))
                continue
            entries += (
                f"<Contents><Key>{escape(key)}</Key>"
                f"<Size>{len(self.objects[key])}</Size>"
                "<LastModified>2000-01-01T00:00:00.000Z</LastModified>"
                '<ETag>"1"</ETag></Contents>'
            )
        for name in sorted(folders):
            entries += f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
        text = f"<ListBucketResult>{entries}</ListBucketResult>"
        self.answer(200, text.encode(), Content_Type="application/xml")

    do_HEAD = do_GET

    def do_DELETE(self):
        self.answer(204 if self.objects.pop(self.key, None) is not None else 404)


@contextlib.contextmanager
def serve(folder):
    """Objects of the bucket, and a service account file that points to it."""
    handler = type("Bucket", (Handler,), {"objects": {}})
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = folder / "account.json"
    address = f"http://localhost:{server.server_port}"
    keys = {"client_email": "", "private_key": "", "private_key_id": ""}
    keys |= {"gcs_base_url": address, "disable_oauth": True}
    account.write_text(json.dumps(keys))
    try:
        yield handler.objects, account
    finally:
        server.shutdown()
        server.server_close()
