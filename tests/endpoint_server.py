"""A small OpenAI-compatible server that answers by a function, and fails on demand."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers chat completions by `answer(text, number) -> str | dict | (status, body)`.

    A dict is the message; a string its content. `questions` and `authorizations` are what came.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.lock = answer, threading.Lock()
        self.questions, self.authorizations = [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that hung up, as after its time-out, is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.questions.append(text)
            self.server.authorizations.append(self.headers["Authorization"])
            number = len(self.server.questions)
        said = self.server.answer(text, number)
        if isinstance(said, tuple):
            self._send(*said)
            return
        finish = said.pop("finish_reason", "stop") if isinstance(said, dict) else "stop"
        message = said if isinstance(said, dict) else {"content": said}
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant"} | message}
        usage = {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}
        self._send(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            },
        )

    def _send(self, status, body):
        plain = isinstance(body, str)
        content = (body if plain else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if plain else "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status >= 400:
            self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Silent."""


def serving(answer):
    """A server on a free port while the block runs."""
    return served(Server(answer))


@contextlib.contextmanager
def served(server):
    """The server, answering while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
