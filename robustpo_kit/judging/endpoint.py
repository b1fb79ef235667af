"""A language model behind any OpenAI-compatible endpoint, asked with every answer kept on disk.

An answer is a JSON file of its own, named by the digest of everything that decides it, and written
the moment it arrives: a run that was killed asks nothing twice. The key is read from the
environment when the client is made and is in no file, record or message.
"""

import dataclasses
import inspect
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import digest, progress, read_json, write_json

if TYPE_CHECKING:
    from openai import OpenAI

REQUEST: dict[str, Any] = {"temperature": 0, "max_tokens": 256}  # ours: App. C.4 states neither
OURS = {"model", "messages", "stream", "n", "extra_headers", "extra_query"}
NO_COMPLETION = (
    "endpoint: what came back is no chat completion; see whether the address is right, it mostly "
    "ends in /v1"
)
DECLINED = ("content_filter", "context_length_exceeded")  # errors about one question


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model answers, how it is asked, and how much may be asked."""

    url: str  # up to and with /v1, as a rule
    model: str
    request: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(REQUEST))
    key_variable: str = "OPENAI_API_KEY"  # of the environment; unset where none is needed
    workers: int = 8  # calls at once
    retries: int = 6  # of a call, each after a longer pause, or the one that the server names
    timeout: float = 60.0  # seconds a try
    max_calls: int | None = None  # that are not in the cache
    max_tokens: int | None = None  # read and written, over all calls; those under way may pass it
    cache: Path = paths.CACHE / "judgments"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise KitError("endpoint: an address such as http://localhost:8000/v1 is expected")
        if parts.username or parts.password or parts.query:
            raise KitError(
                "endpoint: the address holds credentials or a query, which files would keep; put "
                f"the key into the environment variable {self.key_variable}"
            )
        if taken := OURS & set(self.request):
            raise KitError(f"request: '{min(taken)}' is not to be set; leave it out")
        for name in ("workers", "timeout"):
            if getattr(self, name) <= 0:
                raise KitError(f"{name} = {getattr(self, name)}: it should be above 0")

    def question(self, text: str) -> dict[str, Any]:
        """Everything that decides the answer to one question: the server, and what it is sent."""
        sent = {name: value for name, value in self.request.items() if value is not None}
        messages = [{"role": "user", "content": text}]
        return {"url": self.url.rstrip("/"), "model": self.model, **sent, "messages": messages}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said to one question."""

    text: str
    finish: str  # as the server names it: stop, length, content_filter; or an error's code
    tokens: int  # read and written, as the server counts them; 0 where it does not


class Asker:
    """Asks an endpoint, several questions at once, within a budget.

    `counts` has: asked, cached, tokens.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._client: OpenAI | None = None

    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """The answer to each question; a question that comes twice is asked once.

        Raises:
            KitError: where the budget is used up, or the endpoint has given no answer after all
                retries; answers that came are kept, and the same call goes on from there.
        """
        found: dict[str, Answer] = {}
        with ThreadPoolExecutor(self.endpoint.workers) as pool:
            waiting = {pool.submit(self._one, text): text for text in dict.fromkeys(questions)}
            try:
                for done in progress(as_completed(waiting), "asking", total=len(waiting)):
                    found[waiting[done]] = done.result()
            except BaseException:  # calls under way end and are kept; no other begins
                pool.shutdown(cancel_futures=True)
                raise
        return [found[text] for text in questions]

    def file_of(self, question: dict[str, Any]) -> Path:
        """Where the answer to a question is kept."""
        name = digest(question)
        return Path(self.endpoint.cache) / name[:2] / f"{name}.json"

    def _one(self, text: str) -> Answer:
        question = self.endpoint.question(text)
        file = self.file_of(question)
        if file.exists():
            self._count(cached=1)
            return Answer(**read_json(file)["answer"])
        self._begin_call()
        answer = self._call(question)
        answer = dataclasses.replace(answer, text=self._without_key(answer.text))
        if answer.text.strip() or answer.finish != "stop":  # one that is empty is asked for again
            write_json(file, {"question": question, "answer": answer})
        self._count(tokens=answer.tokens)
        return answer

    def _count(self, **amounts: int) -> None:
        with self._lock:
            self.counts.update(amounts)

    def _begin_call(self) -> None:
        """Count a call, unless the budget is used up."""
        budget = {"asked": self.endpoint.max_calls, "tokens": self.endpoint.max_tokens}
        with self._lock:
            for name, most in budget.items():
                if most is not None and self.counts[name] >= most:
                    words = {"asked": "calls", "tokens": "tokens"}[name]
                    raise KitError(
                        f"endpoint: the budget of {most} {words} is used up; all answers are kept: "
                        "run again with a larger one"
                    )
            self.counts["asked"] += 1

    def _call(self, question: dict[str, Any]) -> Answer:
        import openai

        sent = {name: value for name, value in question.items() if name != "url"}
        try:
            answer = self._made_client().chat.completions.create(**sent)
        except openai.APIStatusError as error:
            if error.code in DECLINED:
                return Answer("", str(error.code), 0)
            raise KitError(self._said(error)) from None
        except openai.OpenAIError as error:
            kind = "no answer in time" if isinstance(error, openai.APITimeoutError) else "no answer"
            raise KitError(
                f"endpoint: {kind}, after {self.endpoint.retries} retries; answers that came are "
                "kept: see whether the server is up and run again"
            ) from None
        except ValueError:  # a body that is not JSON
            raise KitError(NO_COMPLETION) from None
        return _read(answer)

    def _made_client(self) -> "OpenAI":
        with self._lock:
            if self._client is None:
                self._client = _client(self.endpoint)
            return self._client

    def _said(self, error: Any) -> str:
        """One line about an HTTP status; without the key, which a server may repeat."""
        code = error.status_code
        if code in (401, 403):
            return (
                f"endpoint: status {code}, the key is refused or missing; set the environment "
                f"variable {self.endpoint.key_variable}"
            )
        said = self._without_key(" ".join(str(error.message).split()))[:200]
        return (
            f"endpoint: status {code} for model '{self.endpoint.model}' ({said}); answers that "
            "came are kept: run again when it is mended"
        )

    def _without_key(self, text: str) -> str:
        """The text, in which a server may have repeated the key."""
        key = _key(self.endpoint)
        return text.replace(key, "***") if key else text


class Planner(Asker):
    """Asks nothing, and notes which calls would be made: `missing`, by the files of answers."""

    def __init__(self, endpoint: Endpoint, answer: str) -> None:
        super().__init__(endpoint)
        self.answer, self.missing = Answer(answer, "stop", 0), set[Path]()

    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """The same answer to every question."""
        files = {self.file_of(self.endpoint.question(text)) for text in questions}
        self.missing |= {file for file in files if not file.exists()}
        return [self.answer] * len(questions)


def _key(endpoint: Endpoint) -> str:
    """The key in the environment, as a header can carry it; empty where there is none."""
    return os.environ.get(endpoint.key_variable, "").strip()


def _client(endpoint: Endpoint) -> "OpenAI":
    try:
        from openai import OpenAI
    except ImportError:
        raise KitError("endpoint: the package openai is missing; `pip install openai`") from None

    client = OpenAI(
        base_url=endpoint.url,
        api_key=_key(endpoint) or "none",
        max_retries=endpoint.retries,
        timeout=endpoint.timeout,
    )
    known = inspect.signature(client.chat.completions.create).parameters
    for name in endpoint.request:
        if name not in known:
            raise KitError(
                f"request: '{name}' is no field of the openai client's; what only this server "
                f'knows goes into extra_body: extra_body={{"{name}": ...}}'
            )
    return client


def _read(completion: Any) -> Answer:
    """The one choice of a chat completion."""
    choices: Any = getattr(completion, "choices", None) or [None]
    message = getattr(choices[0], "message", None)
    if message is None:
        raise KitError(NO_COMPLETION)
    usage = getattr(completion, "usage", None)
    refusal = getattr(message, "refusal", None)
    finish = "refusal" if refusal else str(choices[0].finish_reason)
    return Answer(
        refusal or message.content or "", finish, int(getattr(usage, "total_tokens", 0) or 0)
    )
