"""A model's chat template: its prompts, and why it cannot make the prompts of a recipe.

transformers' own environment renders the templates, wherever they are read from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aent.data.question import Turn
from aent.recipe.schema import Recipe

Message = dict[str, str]
# variables that aent and transformers themselves give to a template
RESERVED = frozenset({
    "messages", "add_generation_prompt", "tools", "documents", "strftime_now", "raise_exception",
})  # fmt: skip


@dataclass(frozen=True)
class ChatTemplate:
    """A template with everything it is given besides the messages."""

    text: str
    special: Mapping[str, str]  # bos_token, eos_token, ...
    variables: Mapping[str, Any] = field(default_factory=dict)  # task.template
    now: datetime | None = None  # the date for templates that write one; None: from the clock

    def prompt(self, prompt: str, system_prompt: str | None, earlier: Sequence[Turn] = ()) -> str:
        """The user's turn, the turns before it (the first one a user's) and the beginning of the
        answer.

        Without ``system_prompt`` there is no system turn, even if the template would insert its own
        (as SmolLM2's does).

        Raises ValueError naming the recipe's field if the template refuses a system turn, or if its
        default system turn cannot be separated from the rest.
        """
        turns = [{"role": role, "content": text} for role, text in (*earlier, ("user", prompt))]
        if system_prompt is None:
            special = self.special.get
            return without_system_turn(
                self.render, turns, special("bos_token", ""), special("eos_token", "")
            )
        try:
            return self.render([{"role": "system", "content": system_prompt}, *turns], True)
        except ValueError as error:
            raise ValueError(
                f"task.system_prompt: the model's chat template refuses a system turn ({error}): "
                "put it into task.instruction"
            ) from error

    def render(self, messages: list[Message], answer: bool) -> str:
        """Raises ValueError with the template's own message if it refuses or fails."""
        values = {**self.special, **self.variables}
        if self.now is not None:
            values["strftime_now"] = self.now.strftime
        try:
            return _compiled(self.text).render(
                messages=messages,
                add_generation_prompt=answer,
                tools=None,
                documents=None,
                **values,
            )
        except Exception as error:  # a template is a program and can raise anything
            raise ValueError(str(error)) from error

    def known_variables(self) -> list[str]:
        """The variables that the template takes besides messages and special tokens."""
        return sorted(self._names() - RESERVED - self._tokens())

    def missing_tokens(self) -> set[str]:
        """Special tokens that the template writes and that are not among ``special``."""
        return self._tokens() - set(self.special)

    def _tokens(self) -> set[str]:
        return {name for name in self._names() if name.endswith("_token")}

    def _names(self) -> set[str]:
        from jinja2 import meta

        return meta.find_undeclared_variables(_compiled(self.text).environment.parse(self.text))


def _compiled(text: str) -> Any:
    """Raises ValueError if the text is not a template."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(text)
    except TemplateError as error:
        raise ValueError(f"the chat template cannot be read: {error}") from error


def without_system_turn(
    render: Callable[[list[Message], bool], str], turns: list[Message], bos: str, eos: str
) -> str:
    """The turns as the template writes them if the first of them, a user's, is not the first turn.

    Raises ValueError if that part cannot be found.
    """
    whole = render(turns, True)
    other = {"role": "user", "content": "?"}
    for history in ([other], [other, {"role": "assistant", "content": "!"}]):
        try:
            before, after = render(history, False), render([*history, *turns], True)
        except ValueError:  # templates refuse turns that do not alternate
            continue
        # Phi's templates end a text without a generation prompt with the end-of-sequence token
        for beginning in (before, before.removesuffix(eos)):
            turn = after.removeprefix(beginning)
            if turn != after and whole.endswith(turn):
                # kept, unless every turn begins with it (as SmolLM2's)
                begins = bos and whole.startswith(bos) and not turn.startswith(bos)
                return bos + turn if begins else turn
    raise ValueError(
        "task.system_prompt: the model's chat template writes the first turn differently from "
        "later ones, so its default system turn cannot be removed: set one"
    )


def find(folder: Path) -> ChatTemplate | None:
    """The template of a Hugging Face tokenizer's folder; None if it has none.

    Raises ValueError if a file cannot be read.
    """
    config: dict[str, Any] = {}
    try:
        # older folders have their special tokens in a separate file
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config.update(json.loads((folder / name).read_text()))
        text: Any
        if (folder / "chat_template.jinja").is_file():
            text = (folder / "chat_template.jinja").read_text()
        else:
            text = config.get("chat_template")
        if isinstance(text, list):  # several, by name
            text = {entry["name"]: entry["template"] for entry in text}.get("default")
        if not isinstance(text, str | None):
            raise TypeError(f"it is not text but a {type(text).__name__}")
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: the chat template cannot be read: {error}") from error
    return None if text is None else ChatTemplate(text, special)


def faults(recipe: Recipe) -> list[str]:
    """One sentence if the model's chat template cannot make the recipe's prompts, naming the field.

    A bundled model's template makes every prompt and takes no variable.
    """
    model, given = recipe.model, recipe.task.template
    place = model.tokenizer_path or model.path
    if place is None or model.tokenizer_library != "huggingface":
        return [f"task.template: {_no_variables(model.bundled)}"] if given else []
    try:
        template = find(Path(place).expanduser())
        if template is None:
            return ["task.template: the model has no chat template"] if given else []
        return [*_faults(template, recipe)]
    except ValueError as error:
        field = "model.path" if model.tokenizer_path is None else "model.tokenizer_path"
        told = str(error)
        return [told if told.startswith("task.") else f"{field}: {told}"]


def _no_variables(bundled: str | None) -> str:
    return f"{bundled}'s has no variables" if bundled else "the tokenizer has no chat template"


def _faults(template: ChatTemplate, recipe: Recipe) -> list[str]:
    given = recipe.task.template
    known = template.known_variables()
    unknown = sorted(set(given) - set(known))
    if unknown:
        has = f"its variables are {', '.join(known)}" if known else "it has none"
        return [f"task.template.{unknown[0]} is not a variable of the model's chat template: {has}"]
    if template.missing_tokens():  # the tokenizer's class may have one; unknown without loading it
        return []
    filled = ChatTemplate(template.text, template.special, given)
    filled.prompt("?", recipe.task.system_prompt)
    return []
