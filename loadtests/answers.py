"""What came of a request: times, tokens and the draft's record, read from an answer's events as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from loadtests.schedule import Request
from loadtests.settings import Objective
from loadtests.sse import DONE


@dataclass(frozen=True)
class Speculation:
    """One request's acceptance record as the server gave it."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True)
class Outcome:
    """One request and what came of it.

    Attributes:
        due_s: when it was to be sent, in seconds after the turn began; in a closed loop when it was.
        sent_s: when it was.
        ttft_s: from when it was due to the first output; None of an answer in one piece.
        e2e_s: from when it was due to the last output, so that waiting for the server is not hidden.
        completion_tokens: from the server's usage; None where it gives none.
        chunk_s: when chunks with output came, in seconds after it was due.
        error: why it failed, empty if it did not.
    """

    place: int
    kind: str
    name: str
    tenant: str
    due_s: float
    sent_s: float
    e2e_s: float
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    chunk_s: tuple[float, ...] = ()
    speculation: Speculation | None = None
    error: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None without usage, and of answers of one token or in one piece."""
        if self.error or self.ttft_s is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.completion_tokens - 1)

    @property
    def late_s(self) -> float:
        """What the load generator itself was late."""
        return self.sent_s - self.due_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Times between chunks; a chunk may carry several tokens."""
        return tuple(b - a for a, b in zip(self.chunk_s, self.chunk_s[1:], strict=False))

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted of proposed tokens; None without a record, or where nothing was proposed."""
        record = self.speculation
        return record.num_accepted_tokens / record.num_draft_tokens if record and record.num_draft_tokens else None

    def is_good(self, objective: Objective) -> bool:
        """Whether it kept the objective.

        An answer in one piece has neither time of its own: it may take what a stream of as many tokens may take in all.
        An answer without usage is judged by its first token alone.
        """
        if self.error:
            return False
        if self.ttft_s is None:
            return self.e2e_s <= objective.ttft_s + objective.tpot_s * max(0, (self.completion_tokens or 1) - 1)
        return self.ttft_s <= objective.ttft_s and (self.tpot_s is None or self.tpot_s <= objective.tpot_s)


def parse_speculation(event: dict[str, Any]) -> Speculation | None:
    """The acceptance record of a last chunk or a body; None if it carries none that can be read."""
    try:
        record = event["metrics"]["speculative_decoding"]
        return Speculation(
            int(record["num_spec_steps"]), int(record["num_draft_tokens"]), int(record["num_accepted_draft_tokens"])
        )
    except (KeyError, TypeError, ValueError):
        return None


OUTPUT = ("content", "reasoning_content", "reasoning", "tool_calls")


def carries_output(choice: Any) -> bool:
    """Whether a choice adds something: text, reasoning or a call; that an answer begins or ends is no output."""
    if not isinstance(choice, dict):
        return False
    said = choice.get("delta") or choice.get("message") or {}
    return bool(choice.get("text")) or (isinstance(said, dict) and any(said.get(key) for key in OUTPUT))


def describe_error(value: Any) -> str:
    """A server's error in a few words: its type and code; its message might repeat a prompt."""
    error = value.get("error", value) if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return "without an error object"
    said = dict.fromkeys(str(error[key]) for key in ("type", "code") if error.get(key))
    return " ".join(said)[:120] or "without a type"


@dataclass
class Reading:
    """An answer while it comes. Times are seconds after the turn began."""

    request: Request
    due_s: float
    sent_s: float
    error: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    speculation: Speculation | None = None
    chunks_s: list[float] = field(default_factory=list)
    last_s: float | None = None
    ended: bool = False

    def note(self, data: bytes, now_s: float) -> None:
        """Takes one event of a stream."""
        if data == DONE:
            self.ended = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.error = self.error or "an event of the stream is no JSON object"
        elif "error" in event:
            self.error = self.error or f"stream: {describe_error(event)}"
        else:
            self._take(event, now_s)

    def note_whole(self, body: bytes, now_s: float) -> None:
        """Takes an answer that came in one piece."""
        self.note(body, now_s)
        self.ended, self.chunks_s = True, []

    def _take(self, event: dict[str, Any], now_s: float) -> None:
        choices = event.get("choices") or ()
        if choices:
            self.last_s = now_s
        if any(carries_output(choice) for choice in choices):
            self.chunks_s.append(now_s)
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        self.speculation = parse_speculation(event) or self.speculation

    def outcome(self, now_s: float) -> Outcome:
        """What came of it, now that nothing more comes."""
        request = self.request
        error = self.error or ("" if self.ended else "broke off before its end")
        end_s = self.last_s if self.last_s is not None and not error else now_s
        first_s = self.chunks_s[0] if self.chunks_s else end_s
        return Outcome(
            place=request.place, kind=request.prompt.kind, name=request.name, tenant=request.tenant,
            due_s=self.due_s, sent_s=self.sent_s, e2e_s=end_s - self.due_s,
            ttft_s=first_s - self.due_s if request.stream and not error else None,
            prompt_tokens=_count(self.usage, "prompt_tokens"), completion_tokens=_count(self.usage, "completion_tokens"),
            chunk_s=tuple(at_s - self.due_s for at_s in self.chunks_s), speculation=self.speculation, error=error,
        )  # fmt: skip


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
