"""Talk to a model of a run in the terminal.

    python -m pipeline_lib.reporting.chat --config configs/demo.yaml [--model dpo] [--prompt "What does json.dumps do?"]

The conversation goes through the tokenizer's own chat template. Without `--prompt` it is interactive; an empty line or
the end of the input leaves.
"""

import argparse
import sys
from pathlib import Path

from pipeline_lib.config.run_choice import read_run_choice
from pipeline_lib.stage.errors import UserError

from .run_facts import MODEL_FOLDERS, gather


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(MODEL_FOLDERS), help="which model (default: the last one made)")
    parser.add_argument("--prompt", help="ask this one thing and leave")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="int", help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="float", help="0 takes the likeliest token")


def choose_folder(run_folder: Path, name: str | None) -> Path:
    """Return the model's folder. Raises UserError when it has not been made yet."""
    folder = run_folder / MODEL_FOLDERS[name] if name else gather(run_folder).last_model
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"{folder or run_folder} holds no model yet; make it with `make all`")
    return folder


class Conversation:
    """A model, its tokenizer, and what has been said so far."""

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self.messages: list[dict[str, str]] = []

    def ask(self, text: str) -> str:
        """Add the user's words, return the model's answer and remember both."""
        self.messages.append({"role": "user", "content": text})
        inputs = self._tokenizer.apply_chat_template(
            self.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        sampling = (
            {"do_sample": True, "temperature": self._temperature} if self._temperature > 0 else {"do_sample": False}
        )
        output = self._model.generate(
            **inputs,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=self._tokenizer.convert_tokens_to_ids(["<|im_end|>", self._tokenizer.eos_token]),
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        answer = self._tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": answer})
        return answer


def main(argv: list[str]) -> None:
    """Hold the conversation that the command line asks for."""
    try:
        choice = read_run_choice("Talk to a model of a run.", argv, _flags)
        folder = choose_folder(choice.run_folder, choice.flags.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    conversation = Conversation(folder, choice.flags.max_new_tokens, choice.flags.temperature)
    if choice.flags.prompt is not None:
        print(conversation.ask(choice.flags.prompt))
        return
    print(f"{folder}; an empty line leaves")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not text:
            break
        print(conversation.ask(text))


if __name__ == "__main__":
    main(sys.argv[1:])
