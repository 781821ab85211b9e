"""Talk to a model of a run in the terminal.

    python -m pipeline_lib.reporting.chat --config configs/demo.yaml [--model dpo] [--prompt "What does json.dumps do?"]

The conversation goes through the tokenizer's own chat template, and an answer ends where the model's generation
settings say, or where that template ends a turn if they say nothing. The models of stages 04 and 05 are models of text,
also when they grew from one that knows conversations: they continue what is typed as plain text, each time anew, up to
the end of a document.

Without `--prompt` it is interactive; an empty line or the end of the input leaves; Ctrl-C during an answer, or running
out of memory, costs the question alone. Answers are all that goes to standard output; which model gives them is told on
standard error. The model runs where stage 11 evaluates it and in that number format: `evaluate.device` and
`evaluate.dtype` of the configuration. `--device` says another place, without a change to the configuration, which would
evaluate anew.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.run_choice import read_run_choice
from pipeline_lib.evaluation.placement import choose_device, load_pretrained
from pipeline_lib.oom_handler import free_memory, is_out_of_memory
from pipeline_lib.post_training.chat_tokens import end_of_turn_id, load_chat_tokenizer
from pipeline_lib.stage.errors import StageFailure, UserError
from pipeline_lib.stage.inputs import StageInput, repairing_command

from .run_facts import MODEL_FOLDERS, gather

if TYPE_CHECKING:
    from transformers import BatchEncoding

TEXT_STAGES = ("04_init", "05_pretrain")
"""What their models are trained on, or will be, is text, whatever the model that they grew from knows."""


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(MODEL_FOLDERS), help="which model (default: the last one made)")
    parser.add_argument("--prompt", help="ask this one thing and leave")
    parser.add_argument("--max-new-tokens", type=_positive, default=128, metavar="int", help="longest answer in tokens")
    parser.add_argument(
        "--temperature", type=_not_negative, default=0.0, metavar="float", help="0 takes the likeliest token"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where it runs (default: evaluate.device)")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def choose_model(run_folder: Path, name: str | None, arguments: str = "") -> tuple[str, Path]:
    """Return the model's stage and its folder, every file verified. Raises UserError when it is missing or damaged."""
    if name is None:
        last = gather(run_folder, arguments).last_model
        if last is None:
            first = repairing_command(MODEL_FOLDERS["init"], arguments)
            raise UserError(f"{run_folder} holds no model yet; make the first with: {first}")
        name = next(name for name, place in MODEL_FOLDERS.items() if run_folder / place == last)
    stage, _, inside = MODEL_FOLDERS[name].partition("/")
    made = StageInput(run_folder, stage, arguments)
    if inside:
        return stage, made.folder(inside)
    made.files("*")
    return stage, made.path


class Continuation:
    """A model and its tokenizer, which continue a text as if it were the beginning of a document."""

    manner = "continues text, without its chat template"

    def __init__(
        self, folder: Path, max_new_tokens: int, temperature: float, device: str = "auto", dtype: str = "auto"
    ):
        """Load the model in `folder`; device and dtype are as in the section `evaluate`.

        Raises UserError for a device that is not there, and when the tokenizer cannot end an answer; StageFailure when
        the model does not fit into memory.
        """
        self._device = choose_device(device)
        try:
            model, self._tokenizer = load_pretrained(folder, self._device, dtype)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise StageFailure(f"{folder} does not fit into memory; {self._remedy('free some memory')}") from None
        self._model = model.eval()
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._end_answers(folder)

    def _end_answers(self, folder: Path) -> None:
        """Make sure that the model knows which token ends an answer: in text, that which ends a document."""
        end = self._tokenizer.eos_token_id
        if end is None:
            raise UserError(f"{folder}: the tokenizer has no eos token, so no text would end; give it one")
        if self._model.generation_config.eos_token_id is None:
            self._model.generation_config.eos_token_id = end

    def _remedy(self, smaller: str) -> str:
        """Say what to do when memory ran out; smaller: what helps wherever the model runs."""
        elsewhere = "run it on the CPU with --device cpu or " if self._device == "cuda" else ""
        return f"{elsewhere}{smaller} (it ran on {self._device})"

    def _room(self) -> int:
        """How many tokens of context an answer leaves."""
        return self._model.config.max_position_embeddings - self._max_new_tokens

    def _too_long(self, length: int) -> UserError:
        return UserError(
            f"these {length} tokens and an answer of {self._max_new_tokens} do not fit into the model's context"
            f" of {self._model.config.max_position_embeddings}; ask shorter or lower --max-new-tokens"
        )

    def ask(self, text: str) -> str:
        """Return what the model answers.

        Raises UserError when these words alone leave no room in the model's context for an answer, StageFailure when
        memory runs out.
        """
        try:
            answer = self._respond(text)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            answer = None
        if answer is None:  # Outside of the except block, whose traceback holds the activations.
            free_memory()
            raise StageFailure(f"out of memory; {self._remedy('ask shorter or lower --max-new-tokens')}")
        return answer

    def _respond(self, text: str) -> str:
        """Return the text that goes on from this one; no spelling in it is a special token, as in pretraining.

        Documents begin without a token of their own there; for an empty text, the end of the one before it stands in.
        """
        import torch

        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = ids or [self._tokenizer.eos_token_id]
        if len(ids) > self._room():
            raise self._too_long(len(ids))
        tokens = torch.tensor([ids], device=self._device)
        return self._answer({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    def _answer(self, inputs: "BatchEncoding | dict[str, Any]") -> str:
        """Return the model's continuation of `input_ids` [1, tokens] as text."""
        sampling = (
            {"do_sample": True, "temperature": self._temperature} if self._temperature > 0 else {"do_sample": False}
        )
        output = self._model.generate(
            **inputs,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        return self._tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class Conversation(Continuation):
    """A model that answers in turns, and what has been said so far; the oldest words go when the context is full."""

    manner = "answers in turns of its chat template"

    def __init__(self, *arguments: Any, **settings: Any):
        """As `Continuation`. Raises UserError also when the tokenizer cannot spell a conversation or its end."""
        self.messages: list[dict[str, str]] = []
        super().__init__(*arguments, **settings)

    def _end_answers(self, folder: Path) -> None:
        if not self._tokenizer.chat_template:
            raise UserError(f"{folder}: the tokenizer has no chat template; give it one (chat_template.jinja)")
        if self._model.generation_config.eos_token_id is None:
            self._model.generation_config.eos_token_id = end_of_turn_id(load_chat_tokenizer(folder))

    def _encode(self, messages: list[dict[str, str]]) -> "BatchEncoding":
        """Return the conversation as ids; the oldest exchanges that leave no room for an answer are taken out of it."""
        whole = len(messages)
        while True:
            inputs = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            length = inputs["input_ids"].shape[1]
            if length <= self._room():
                if len(messages) < whole:
                    print(
                        "(the oldest words no longer fit into the model's context and are forgotten)", file=sys.stderr
                    )
                return inputs.to(self._device)
            if len(messages) == 1:
                raise self._too_long(length)
            del messages[:2]

    def _respond(self, text: str) -> str:
        """Return the answer to the user's words and remember both; without an answer nothing is remembered."""
        messages = [*self.messages, {"role": "user", "content": text.strip()}]
        answer = self._answer(self._encode(messages)).strip()
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer


def main(argv: list[str]) -> None:
    """Hold the conversation that the command line asks for."""
    try:
        choice = read_run_choice("Talk to a model of a run.", argv, _flags)
        stage, folder = choose_model(choice.run_folder, choice.flags.model, choice.arguments)
        place = choice.config.evaluate
        flags = choice.flags
        device = choose_device(flags.device, "--device") if flags.device else place.device
        from transformers.utils import logging

        logging.disable_progress_bar()
        kind = Continuation if stage in TEXT_STAGES else Conversation
        model = kind(folder, flags.max_new_tokens, flags.temperature, device, place.dtype)
        print(f"{folder} (made by {stage}) {model.manner}", file=sys.stderr, flush=True)
        if choice.flags.prompt is not None:
            print(model.ask(choice.flags.prompt))
            return
    except (UserError, StageFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, StageFailure) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    print("an empty line leaves", file=sys.stderr, flush=True)
    talk(model)


def talk(model: Continuation) -> None:
    """Answer line by line until an empty one or the end of the input."""
    sign = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""  # answers that go to a file are alone there
    while True:
        try:
            text = input(sign)
        except (EOFError, KeyboardInterrupt):
            break
        if not text.strip():
            break
        try:
            print(model.ask(text))
        except (UserError, StageFailure) as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(interrupted; the question is forgotten, the conversation before it is not)", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
