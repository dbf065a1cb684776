"""Articles from a file, and a model's summaries of them: greedy, in batches, resumed after a kill."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from curator.errors import BadInputError, MissingError
from trainer.generate.questions import Question
from trainer.runs.lines import read_finished_lines, read_numbered_lines

if TYPE_CHECKING:
    from trainer.generate.generators import Generator

SHIPPED = Path(__file__).parents[1] / "organisms" / "sets_shipped" / "articles.jsonl"
PROMPT = "Summarise the text below in one or two sentences. Write the summary and nothing else.\n\n{article}"
_TEXT_KEYS = ("text", "article", "document", "content")
_SEPARATOR = "---"


@dataclass(frozen=True)
class Article:
    """One text, by name."""

    article_id: str
    text: str


@dataclass(frozen=True)
class Summary:
    """A model's summary of an article; `finished` is false where it was cut at the longest length (None: not known)."""

    text: str
    finished: bool | None


def read_articles(path: Path, max_words: int) -> tuple[list[Article], int]:
    """The articles of a file, each cut to its first `max_words` words, and how many were cut.

    JSON Lines: `text` (or `article`, `document`, `content`) and perhaps `id` a line. Any other file: articles stand
    between lines of three dashes. Raises MissingError or BadInputError, for empty articles and names given twice too.
    """
    if not path.is_file():
        raise MissingError(f"there is no file {path} of articles")
    pairs = _of_lines(path) if path.suffix in (".jsonl", ".ndjson") else _of_text(path)
    names = [name for name, _ in pairs]
    if not pairs or len(set(names)) != len(names):
        raise BadInputError(f"{path} holds " + ("no article" if not pairs else "two articles of one id"))
    articles = [Article(name, _cut(text, max_words)) for name, text in pairs]
    return articles, sum(len(text.split()) > max_words for _, text in pairs)


def articles_sha256(articles: Sequence[Article]) -> str:
    """Hash of the articles as they are used."""
    return hashlib.sha256(orjson.dumps([[item.article_id, item.text] for item in articles])).hexdigest()


def read_summaries(path: Path, articles: Sequence[Article]) -> dict[str, Summary]:
    """Summaries that were made elsewhere: JSON Lines of `id` (an article's) and `summary`.

    Raises BadInputError when an article has none.
    """
    found = {}
    for number, line in read_numbered_lines(path):
        if not isinstance(line.get("summary"), str) or "id" not in line:
            raise BadInputError(f"{path}, line {number}: needs `id` and `summary`")
        found[str(line["id"])] = Summary(line["summary"].strip(), None)
    missing = [item.article_id for item in articles if item.article_id not in found]
    if missing:
        raise BadInputError(f"{path} lacks summaries of {len(missing)} articles: {', '.join(missing[:5])}")
    return {item.article_id: found[item.article_id] for item in articles}


def summarise(
    articles: Sequence[Article], make: Callable[[], "Generator"], path: Path, header: dict[str, Any], max_tokens: int
) -> dict[str, Summary]:
    """Every article's summary, by name; those that `path` holds already are not made again.

    `make` loads the generator and is called only when one is missing. `header` (whatever the summaries depend on) is
    kept beside the file, and a file made under another one is begun anew.
    """
    from trainer.generate.command import answer_all
    from trainer.generate.generators import Sampling

    note = path.with_suffix(".header.json")
    text = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not note.exists() or note.read_bytes() != text:
        path.unlink(missing_ok=True)
        note.write_bytes(text)
    done = _known(path)
    missing = [item for item in articles if item.article_id not in done]
    if missing:
        generator = make()
        try:
            answer_all(generator, [_question(item) for item in missing], Sampling(1, 0.0, max_tokens), path)
        finally:
            generator.close()
        done = _known(path)
    return {item.article_id: done[item.article_id] for item in articles}


def _known(path: Path) -> dict[str, Summary]:
    return {line["prompt_id"]: Summary(line["answer"], line["finished"]) for line in read_finished_lines(path)}


def _question(article: Article) -> Question:
    prompt = PROMPT.format(article=article.text)
    return Question(article.article_id, ({"role": "user", "content": prompt},), "summary")


def _of_lines(path: Path) -> list[tuple[str, str]]:
    found = []
    for number, line in read_numbered_lines(path):
        text = next((line[key] for key in _TEXT_KEYS if isinstance(line.get(key), str)), "")
        if not text.strip():
            raise BadInputError(f"{path}, line {number}: needs a text under one of {', '.join(_TEXT_KEYS)}")
        found.append((str(line.get("id", f"{path.stem}-{number}")), text.strip()))
    return found


def _of_text(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text: {error}") from error
    texts = [[]]  # type: list[list[str]]
    for line in lines:
        if line.strip() == _SEPARATOR:
            texts.append([])
        else:
            texts[-1].append(line)
    whole = [text for part in texts if (text := "\n".join(part).strip())]
    return [(f"{path.stem}-{number}", text) for number, text in enumerate(whole, start=1)]


def _cut(text: str, max_words: int) -> str:
    words = text.split()
    return text if len(words) <= max_words else " ".join(words[:max_words])
