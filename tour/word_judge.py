"""A stand-in for a judge: an OpenAI-compatible server that counts words and understands none.

It scores an answer by the words that it shares with the reference, so that `gpt2 judge` can be shown
where no language model is served. The right word in other words gets 0 from it; take a real judge
for figures that mean something.

    python tour/word_judge.py [PORT]

prints its address, and serves until it is stopped. Without a port the system chooses one.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "word-judge"
LARGEST = 1 << 20  # bytes of a request
FIELDS = ("instruction", "input", "reference", "response")


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}/v1\n")
    sys.stdout.flush()
    server.serve_forever()


def grade(instruction: str, input: str, reference: str, response: str) -> dict[str, Any]:
    """What the judge's schema asks for. Words of the question count only where the reference has no
    others: to repeat the question is no answer.
    """
    asked, wanted, said = words(f"{instruction} {input}"), words(reference), words(response)
    if set(wanted) - set(asked):
        wanted = [word for word in wanted if word not in asked]
        said = [word for word in said if word not in asked]
    shared = set(wanted) & set(said)
    recall, precision = percent(len(shared), len(set(wanted))), percent(len(shared), len(set(said)))
    found = f": {', '.join(sorted(shared))}" if shared else ""
    return {
        "reason": f"It has {len(shared)} of the reference's {len(set(wanted))} own words{found[:200]}.",
        "relevance": precision,
        "correctness": recall,
        "clarity": percent(len(set(words(response))), len(words(response))),  # how little is repeated
        "score": percent(2 * len(shared), len(set(wanted)) + len(set(said))),  # F1 of the two
    }


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def percent(part: int, whole: int) -> int:
    return round(100 * part / whole) if whole else 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        else:
            self.answer(404, {"error": {"message": f"{self.path}: not here"}})

    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), LARGEST))
        if self.path != "/v1/chat/completions":
            self.answer(404, {"error": {"message": f"{self.path}: not here"}})
            return
        try:
            messages = json.loads(body)["messages"]
            question = json.loads(messages[-1]["content"])
            graded = grade(*(question[field] for field in FIELDS))
        except (ValueError, LookupError, TypeError) as error:
            self.answer(400, {"error": {"message": f"not a question of gpt2 judge: {error!r}"}})
            return
        n_read = sum(len(re.findall(r"\w+|[^\w\s]", message["content"])) for message in messages)
        self.answer(200, completion(json.dumps(graded), n_read))

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: who asks knows what they have asked."""


def completion(text: str, n_read: int) -> dict[str, Any]:
    n_said = len(text.split())
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": NAME,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": n_read, "completion_tokens": n_said, "total_tokens": n_read + n_said},
    }


if __name__ == "__main__":
    main()
