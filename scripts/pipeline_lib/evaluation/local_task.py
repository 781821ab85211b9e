"""An lm-eval task over records in memory, in which whatever does not fit is one line that names the record.

lm-eval fills the templates of a task in with one record after the other, and what it makes of a misfit is a traceback
from deep inside, a division by zero, or an answer that counts as wrong. Here every prompt, choice and target is looked
at when it is made. Two more differences:

* Answers with a prompt (loglikelihood) are scored in bits per byte, which lm-eval knows of whole texts only.
* Texts to be scored stay texts. lm-eval would take one that a template makes and that reads "[1]" for a Python list.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import env

from pipeline_lib.stage import UserError

from .few_shot import Example
from .items import ID, shorten

# What a template that can be read raises over a record that it does not fit.
_MISFITS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_SHOWN = 80


class LocalTask(ConfigurableTask):
    """The task of an lm-eval configuration whose data set is given in it (`custom_dataset`)."""

    def __init__(self, config: dict[str, Any], document_bytes: int | None):
        """document_bytes: length to which whole texts are cut. Raises UserError when the first record does not fit."""
        self._document_bytes = document_bytes
        self.examples: tuple[Example, ...] = ()
        self.left_out: tuple[str, ...] = ()  # ids of examples that ask the same as an item
        super().__init__(config=config)

    def check_every_record(self) -> None:
        """Fill in every template with every record. Raises UserError naming the first one that does not fit."""
        for doc in self.task_docs:
            self.doc_to_text(doc)
            self.doc_to_target(doc)
        for example in self.examples:
            self.doc_to_text(example, self.fewshot_cfg.doc_to_text)
            self.doc_to_target(example, self.fewshot_cfg.doc_to_target)

    def right_choice(self, doc: dict[str, Any], target: Any) -> str:
        """Return the choice that `target` names by number or text.

        lm-eval only warns when there is none, and counts every answer as wrong. Raises UserError.
        """
        choices = self.doc_to_choice(doc, self.fewshot_cfg.doc_to_choice if isinstance(doc, Example) else None)
        if isinstance(target, int) and 0 <= target < len(choices):
            return choices[target]
        if isinstance(target, str) and target in choices:
            return target
        raise self._misfit(doc, f"no choice number {target!r} among {len(choices)}")

    # -- lm-eval's interface ---------------------------------------------------------------------------------------

    # A template that is passed is that of examples, where it differs from what is asked.

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        """Return the prompt of a record. Raises UserError when it is no text, or there is nothing to answer."""
        text = self._filled_in(doc, "doc_to_text", doc_to_text)
        if not isinstance(text, str):
            raise self._misfit(doc, f"doc_to_text is not a text: {_spell(text)}")
        if self.OUTPUT_TYPE == "generate_until" and not text.strip():
            raise self._misfit(doc, "doc_to_text is empty, so there is nothing to answer")
        return text

    def doc_to_choice(self, doc: dict[str, Any], doc_to_choice: Any = None) -> list[str]:
        """Return the choices of a record. Raises UserError when they are not a list of texts that can be scored."""
        choices = given = self.config.doc_to_choice if doc_to_choice is None else doc_to_choice
        if isinstance(given, str):
            choices = self._filled_in(doc, "doc_to_choice", given)
        if isinstance(given, str) and given not in doc:
            choices = self._literal(doc, choices)
        if not isinstance(choices, list | tuple) or not choices:
            raise self._misfit(doc, f"doc_to_choice is not a list of choices: {_spell(choices)}")
        for number, choice in enumerate(choices):
            if not isinstance(choice, str):
                raise self._misfit(doc, f"choice number {number} is not a text: {_spell(choice)}")
            if not choice:
                raise self._misfit(doc, f"choice number {number} is empty, so there is nothing to score")
        return list(choices)

    def doc_to_target(self, doc: dict[str, Any], doc_to_target: Any = None) -> int | str | list:
        """Return the reference of a record. Raises UserError when it is no choice, or no text that can be scored."""
        if self.OUTPUT_TYPE not in ("loglikelihood", "loglikelihood_rolling"):
            given = self.config.doc_to_target if doc_to_target is None else doc_to_target
            with self._about(doc, "doc_to_target"):
                is_key = isinstance(given, str) and given in doc
                target = doc[given] if is_key else super().doc_to_target(doc, given)
            if self.OUTPUT_TYPE == "multiple_choice":
                self.right_choice(doc, target)
            elif isinstance(doc, Example):
                self._check_shown_answer(doc, target)
            return target
        text = self._filled_in(doc, "doc_to_target", doc_to_target)
        if not isinstance(text, str) or not text:
            raise self._misfit(doc, f"doc_to_target is not a text: {_spell(text)}")
        return shorten(text, self._document_bytes) if self.OUTPUT_TYPE == "loglikelihood_rolling" else text

    def process_results(self, doc: dict[str, Any], results: Any) -> dict[str, Any]:
        """Return {metric: score}; bits per byte as (log-likelihood in nats, UTF-8 bytes)."""
        if self.OUTPUT_TYPE != "loglikelihood":
            return super().process_results(doc, results)
        ((log_likelihood, is_greedy),) = results
        size = len(self.doc_to_target(doc).encode("utf-8"))
        scores = {"bits_per_byte": (log_likelihood, size), "acc": float(is_greedy)}
        return {metric: scores[metric] for metric in self._metric_fn_list}

    # --------------------------------------------------------------------------------------------------------------

    def _check_shown_answer(self, doc: Example, target: Any) -> None:
        """lm-eval shows an example the first of several answers, and one without an answer as half an example."""
        shown = target[0] if isinstance(target, list) and target else target
        if not isinstance(shown, str) or not shown:
            raise self._misfit(doc, f"doc_to_target is not a text that a prompt can show: {_spell(target)}")

    def _filled_in(self, doc: dict[str, Any], field: str, given: Any = None) -> Any:
        """Return the value of the record's key that the task file names, or the text that its template makes."""
        template = getattr(self.config, field) if given is None else given
        if template in doc:
            return doc[template]
        with self._about(doc, field):
            return _compiled(template).render(**doc)

    def _literal(self, doc: dict[str, Any], text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise self._misfit(
                doc,
                f"doc_to_choice makes {_spell(text)}, which does not read as a list; name a key of the records, or"
                " write a template such as {{[chosen, rejected]}}",
            ) from None

    @contextmanager
    def _about(self, doc: dict[str, Any], field: str) -> Iterator[None]:
        try:
            yield
        except _MISFITS as error:
            problem = error.message if isinstance(error, TemplateError) else repr(error)
            raise self._misfit(doc, f"{field} cannot be filled in: {problem}") from None

    def _misfit(self, doc: dict[str, Any], problem: str) -> UserError:
        kind = "example" if isinstance(doc, Example) else "item"
        return UserError(f"task {self.config.task}: {kind} {doc[ID]}: {problem}")


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    """Return the template in lm-eval's dialect. Compiling costs more than filling in; lm-eval always does both."""
    return env.from_string(template)


def _spell(value: Any) -> str:
    return repr(value)[:_SHOWN]
