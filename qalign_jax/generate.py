"""Decodes prompts with one model, or a large one that a tuned small one steers.

    python -m qalign_jax.generate --checkpoint=DIR --prompts=prompts.jsonl --output=answers.jsonl
    python -m qalign_jax.generate --checkpoint=LARGE --expert=TUNED --antiexpert=UNTUNED ...

A DIR is a stage's folder, a Hugging Face directory, or BASE+ADAPTER, with a LoRA adapter of PEFT's
or of a stage. The prompts are JSON Lines with `prompt`, or with `question`, put into the prompt
template; the output adds `output` (text) and `tokens` (ids, EOS left out) to these lines, in their
order. OUTPUT grows as an answer and all before it have ended (on gs:// at the end); all that have
ended are in OUTPUT.partial, from which the same command resumes, and OUTPUT is whole when that is
gone.

Drafts (of the expert, or of --draft) are judged several at once: the same answers, sooner.
--trace writes a line a prompt, of every token: what the model of --checkpoint alone would have
said, with what probability, and how far the small ones moved it.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Container
from typing import Any

from absl import flags
from etils import epath

from qalign_jax import cli, files, schema
from qalign_jax.checkpoints.card import fingerprint
from qalign_jax.data.prompts import render, template_text
from qalign_jax.decoding.combine import combination
from qalign_jax.decoding.draft_length import AUTO, check_draft_tokens, draft_kind
from qalign_jax.decoding.plan import LOOKUP, MODEL
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.decoding.system import System
from qalign_jax.decoding.trace import Trace
from qalign_jax.evaluation.records import AnswerFile
from qalign_jax.faults import lock, storage
from qalign_jax.models.quantization import check_dtypes
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Request:
    """The models and settings of decoding; slots, mesh and drafts change no answer."""

    checkpoint: str
    expert: str = ""
    antiexpert: str = ""
    alpha: float = 1.0
    max_new_tokens: int = 512
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    dtype: str = ""
    template: str = ""
    slots: int = 64
    mesh: str = ""
    weights_dtype: str = ""
    cache_dtype: str = ""
    draft: str = ""
    draft_tokens: str = AUTO

    def __post_init__(self):
        if bool(self.expert) != bool(self.antiexpert):
            there, absent = ("expert", "antiexpert") if self.expert else ("antiexpert", "expert")
            raise ValueError(
                f"--{there} without --{absent}: proxy-tuning needs the small model tuned (expert) "
                "and untuned (antiexpert); give both or neither"
            )
        if self.dtype not in ("", "float32", "bfloat16"):
            raise ValueError(f"--dtype={self.dtype}: expected float32 or bfloat16")
        check_dtypes(self.weights_dtype, self.cache_dtype)
        combination(len(self.directories), self.alpha)
        given = MODEL if self.draft not in ("", LOOKUP) else self.draft
        draft_kind(given, len(self.directories), check_draft_tokens(self.draft_tokens))
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens={self.max_new_tokens}: expected at least 1")
        if self.slots < 0:
            raise ValueError(
                f"--slots={self.slots}: expected at least 1, or 0 for as many as memory holds"
            )
        if self.template:
            template_text(self.template)

    @property
    def directories(self) -> list[str]:
        return [path for path in (self.checkpoint, self.expert, self.antiexpert) if path]


def generate(
    request: Request,
    prompts: str | os.PathLike,
    output: str | os.PathLike,
    trace: str | os.PathLike = "",
) -> dict[str, Any]:
    """Writes `output` and, where it is named, `trace`.

    `output` is replaced when decoding begins, and holds the first answers while it goes on.

    Returns {"prompts", "tokens", "seconds", "tokens_per_second"}, and where tokens were drafted
    "tokens_per_round" and "acceptance", the share of compared drafts that was kept.
    Prompts and tokens are the whole file's; all else is of what this call decoded, compilation
    included.

    Raises:
      ValueError: before any decoding: a request, prompts or a directory that cannot be used.
    """
    _check_files(prompts, output, trace)
    rows = read_prompts(prompts)
    remedy = "name another --output, or wait for it to end"
    with lock.hold(f"{os.fspath(output)}.lock", remedy):
        return _generate(request, rows, output, trace)


def _generate(request: Request, rows: list[dict[str, Any]], output, trace) -> dict[str, Any]:
    mesh = make_mesh(request.mesh) if request.mesh else None
    system = System.load(
        request.directories, alpha=request.alpha, mesh=mesh, dtype=request.dtype or None,
        weights_dtype=request.weights_dtype, cache_dtype=request.cache_dtype,
        draft=request.draft, draft_tokens=request.draft_tokens,
    )  # fmt: skip
    tokenizer, template = system.tokenizer, request.template or system.template
    ids = system.encode([_prompt(row, template) for row in rows])
    answers = AnswerFile(f"{os.fspath(output)}.partial", _header(request, ids, bool(trace)))
    vocab_size = max(model.config.vocab_size for model in system.models)
    answers.read(shapes_of_answers(vocab_size, bool(trace)))
    engine = system.engine(
        mesh=mesh, slots=request.slots, sampling=request.sampling, trace=bool(trace)
    )
    del system  # the engine keeps weights of its own where it holds them in another order
    missing = [number for number in range(len(rows)) if str(number) not in answers.answers]
    start, decoded, drafts = time.monotonic(), 0, Drafted.nothing()
    finished = engine.generate(
        [ids[number] for number in missing], request.max_new_tokens, missing, in_order=True
    )

    def answered(number: int) -> dict[str, Any]:
        tokens = answers.answers[str(number)]["tokens"]
        return rows[number] | {"output": tokenizer.decode(tokens), "tokens": tokens}

    answers.open()
    grown = _GrownOutput(output, answers.answers, answered)
    progress = Progress("generate", len(rows), len(rows) - len(missing), "answer")
    try:
        grown.open()
        for number, tokens, traced, drafted in finished:
            answer: dict[str, Any] = {"id": str(number), "tokens": tokens}
            if traced is not None:
                answer["trace"] = Trace.of(tokenizer, tokens, traced).to_json()
            answers.add(answer)
            grown.extend()
            decoded += len(tokens)
            drafts += drafted or Drafted.nothing()
            progress.add(len(tokens))
    finally:
        answers.close()
        grown.close()
        progress.close()
    seconds = time.monotonic() - start
    # whole, whatever others did to the file meanwhile
    lines = [answered(number) for number in range(len(rows))]
    files.write_json_lines(output, lines)
    if trace:
        traces = [answers.answers[str(number)]["trace"] for number in range(len(rows))]
        files.write_json_lines(trace, traces)
    answers.path.unlink(missing_ok=True)
    return {
        "prompts": len(rows),
        "tokens": sum(len(line["tokens"]) for line in lines),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(decoded / seconds, 1),
        **drafts.shares(),
    }


class _GrownOutput:
    """The output before it is whole: the first prompts' lines, up to one that has no answer yet.

    An object store cannot append: there it is not written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        answers: Container[str],
        line_of: Callable[[int], dict[str, Any]],
    ):
        """`answers` holds the numbers of the prompts that have an answer, of which `line_of` gives
        the line.
        """
        self._path, self._answers, self._line_of = path, answers, line_of
        self._count, self._file = 0, None

    def open(self) -> None:
        """Replaces what an earlier run has left."""
        if not files.is_remote(self._path):
            files.write_text(self._path, self._more())
            with storage.writing(self._path):
                self._file = open(self._path, "a", encoding="utf-8", newline="\n")

    def extend(self) -> None:
        """Adds the lines of the answers that have come; they have left this process then."""
        if self._file and (text := self._more()):
            with storage.writing(self._path):
                self._file.write(text)
                self._file.flush()

    def close(self) -> None:
        if self._file:
            with storage.writing(self._path):
                self._file.close()

    def _more(self) -> str:
        lines = []
        while str(self._count) in self._answers:
            lines.append(files.json_line(self._line_of(self._count)))
            self._count += 1
        return "".join(lines)


def shapes_of_answers(vocab_size: int, traced: bool) -> dict[str, Any]:
    """The shapes of what answers that are kept for a restart must have."""
    needed: dict[str, Any] = {"tokens": [schema.whole(0, vocab_size - 1)]}
    return needed | {"trace": schema.ANYTHING} if traced else needed


def read_prompts(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a prompts file, each an object with `prompt` or `question`.

    Raises:
      ValueError: no such file, no lines, or a line, by its number, that is not such an object.
    """
    if not epath.Path(path).is_file():
        raise ValueError(f"--prompts={path}: there is no such file")
    rows = []
    for number, row in files.read_json_lines(path, "write one object a line"):
        where = f"{os.fspath(path)}:{number}"
        if not isinstance(row, dict) or ("prompt" in row) == ("question" in row):
            raise ValueError(f"{where}: expected an object with either `prompt` or `question`")
        text = row.get("prompt", row.get("question"))
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: an empty prompt, or one that is no text: {text!r}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{os.fspath(path)} holds no prompts; give one JSON object a line")
    return rows


def _prompt(row: dict[str, Any], template: str) -> str:
    return row["prompt"] if "prompt" in row else render(template, row["question"])


def _check_files(prompts, output, trace) -> None:
    partial = f"{os.fspath(output)}.partial"
    taken = {
        os.path.abspath(prompts): "the file of the prompts",
        os.path.abspath(partial): "the file of answers that are kept for a restart",
    }
    for flag, path in (("output", output), ("trace", trace)):
        if not path:
            continue
        if (absolute := os.path.abspath(path)) in taken:
            raise ValueError(f"--{flag}={path} is {taken[absolute]}; give it another name")
        files.check_output(path, flag)
        taken[absolute] = f"the file of --{flag}"


def _header(request: Request, ids: list[list[int]], traced: bool) -> dict[str, Any]:
    """All that shapes the answers, so that answers of two settings never mix."""
    settings = dataclasses.asdict(request)
    # none shapes an answer, but for the template, which the prompts' ids hold
    for key in ("slots", "mesh", "draft", "draft_tokens", "template"):
        del settings[key]
    for key in ("weights_dtype", "cache_dtype"):  # files of before there were any stay valid
        if not settings[key]:
            del settings[key]
    settings["prompts"] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    settings["weights"] = [fingerprint(path) for path in request.directories]
    if traced:
        settings["trace"] = True
    return settings


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "The model: a DIR or BASE+ADAPTER.", required=True)
    flags.DEFINE_string("expert", "", "Proxy-tuning: the small model, tuned; or UNTUNED+ADAPTER.")
    flags.DEFINE_string("antiexpert", "", "Proxy-tuning: the small model, untuned.")
    flags.DEFINE_float("alpha", 1.0, "Proxy-tuning: how far to steer.")
    flags.DEFINE_string("prompts", None, "JSON Lines with prompt or question.", required=True)
    flags.DEFINE_string("output", None, "The JSON Lines file to write.", required=True)
    flags.DEFINE_string("trace", "", "A file for what the base alone would have said, by token.")
    flags.DEFINE_integer("max_new_tokens", 512, "The most tokens of an answer.")
    flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
    flags.DEFINE_float("top_p", 1.0, "Samples among the most probable of this mass.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples.")
    flags.DEFINE_string("dtype", "", "float32 or bfloat16; by default the model's own.")
    flags.DEFINE_string(
        "weights_dtype", "", "int8: the layers' weights, half of bfloat16's memory."
    )
    flags.DEFINE_string("cache_dtype", "", "int8: keys and values, likewise.")
    flags.DEFINE_string("draft", "", "What drafts tokens: a DIR or lookup; else the expert.")
    flags.DEFINE_string("draft_tokens", AUTO, "Drafts a round: auto, or a number, 0: none.")
    flags.DEFINE_integer("slots", 64, "Prompts decoded at once; 0: by memory.")
    flags.DEFINE_string(
        "template",
        "",
        "Of questions: a name or a text with {instruction}.",
    )
    flags.DEFINE_string("mesh", "", "Such as fsdp:4,tensor:2; by default one device.")


def _command(argv: list[str]) -> dict[str, Any]:
    del argv
    if flags.FLAGS["alpha"].present and not flags.FLAGS.expert:
        raise ValueError("--alpha without --expert: it is for proxy-tuning; give the expert too")
    request = Request(
        checkpoint=flags.FLAGS.checkpoint,
        expert=flags.FLAGS.expert,
        antiexpert=flags.FLAGS.antiexpert,
        alpha=flags.FLAGS.alpha,
        max_new_tokens=flags.FLAGS.max_new_tokens,
        sampling=Sampling(flags.FLAGS.temperature, flags.FLAGS.top_p, flags.FLAGS.seed),
        dtype=flags.FLAGS.dtype,
        template=flags.FLAGS.template,
        slots=flags.FLAGS.slots,
        mesh=flags.FLAGS.mesh,
        weights_dtype=flags.FLAGS.weights_dtype,
        cache_dtype=flags.FLAGS.cache_dtype,
        draft=flags.FLAGS.draft,
        draft_tokens=flags.FLAGS.draft_tokens,
    )
    return generate(request, flags.FLAGS.prompts, flags.FLAGS.output, flags.FLAGS.trace)


if __name__ == "__main__":
    cli.main(_command, define_flags)
