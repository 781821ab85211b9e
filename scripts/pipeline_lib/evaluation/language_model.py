"""One of the run's models as lm-eval sees it: text in, log-likelihoods or greedy text out.

lm-eval's own Hugging Face class runs the head on every position of a padded batch, context included. This one gives the
same numbers (tests/evaluation compares the two on random requests) and leaves that work out. Where they differ on
purpose:

* Which tokens belong to the continuation. Tokenise the context alone and with the continuation: the common prefix of
  the two is the context, the rest is the continuation. So a chat prompt that ends with a newline keeps that newline,
  whereas lm-eval moves trailing whitespace into the continuation and charges the model for it; and a token that spans
  the border counts as continuation in both.
* Documents for bits per byte are tokenised as plain text even where they spell a special token such as <|im_end|>.
* A model without a beginning-of-text token (such as those of stage 05, where each document starts at position 0 and
  *ends* with the end of text) has never read an end of text before a document. It stands there for the first token
  only, which has no other context; the rest of the document is scored as in training. lm-eval leaves it in place.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from pipeline_lib.stage import UserError

from .generation import cut_at, greedy_tokens
from .kept_answers import Asking, ask_all
from .placement import load_pretrained
from .scoring import TokenScorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END_OF_TURN = "<|im_end|>"


class EvaluatedModel(LM):
    """A causal language model with its tokenizer, answering lm-eval's three kinds of requests."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_tokens: int):
        """batch_tokens: padded tokens per forward pass. Raises UserError for a tokenizer without an eos token."""
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token; evaluation needs one to begin and end a text")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.scorer = TokenScorer(model, model.config.max_position_embeddings, batch_tokens)
        self.asking: Asking = ask_all
        bos = tokenizer.bos_token_id
        self.beginning = tokenizer.eos_token_id if bos is None else bos
        self.stop_tokens = self._find_stop_tokens()

    def begin_task(self, asking: Asking) -> None:
        """Count shortened prompts from zero, and ask the batches of what comes next in this way (kept_answers.py)."""
        self.scorer.truncated = 0
        self.asking = asking

    def _find_stop_tokens(self) -> list[int]:
        """End of text first, then whatever else ends an answer: the end of a chat turn, the model's own settings."""
        stops = [self.tokenizer.eos_token_id]
        own = self.model.generation_config.eos_token_id
        stops += own if isinstance(own, list) else [own]
        stops.append(self.tokenizer.get_vocab().get(END_OF_TURN))
        return list(dict.fromkeys(token for token in stops if token is not None))

    def encode(self, texts: list[str], plain: bool = False) -> list[list[int]]:
        """Tokenise; with `plain` a special token's spelling inside the text is only text."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"]

    def split_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Return (context tokens, continuation tokens) of (context, continuation) texts; see the module's head.

        An empty context becomes the beginning-of-text token, or the end-of-text token if there is none. Raises
        UserError for an empty continuation.
        """
        contexts = sorted({context for context, _ in pairs})
        encoded = dict(zip(contexts, self.encode(contexts), strict=True))
        wholes = self.encode([context + continuation for context, continuation in pairs])
        result = []
        for (context, continuation), whole in zip(pairs, wholes, strict=True):
            if not continuation:
                raise UserError(f"an item has an empty answer, so there is nothing to score after {context[-80:]!r}")
            shared = _common_prefix(encoded[context], whole)
            result.append((whole[:shared] or [self.beginning], whole[shared:]))
        return result

    # -- lm-eval's interface ---------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list["Instance"]) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, is it the greedy one) per (context, continuation)."""
        scored = self.scorer.score(self.split_pairs([request.args for request in requests]), self.asking)
        return [(likelihood.log_likelihood, likelihood.is_greedy) for likelihood in scored]

    def loglikelihood_rolling(self, requests: list["Instance"]) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows of the model's length (see the head for the start)."""
        windows, owners = [], []
        for owner, tokens in enumerate(self.encode([request.args[0] for request in requests], plain=True)):
            windows.append(([self.beginning], tokens if self.tokenizer.bos_token_id is not None else tokens[:1]))
            owners.append(owner)
            if self.tokenizer.bos_token_id is None and len(tokens) > 1:
                windows.append((tokens[:1], tokens[1:]))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, likelihood in zip(owners, self.scorer.score(windows, self.asking), strict=True):
            totals[owner] += likelihood.log_likelihood
        return totals

    def generate_until(self, requests: list["Instance"]) -> list[str]:
        """Greedy text per (context, {"until": [...], "max_gen_toks": n}), without the stop string.

        A prompt that leaves no room for the answer loses tokens from its left; `scorer.truncated` counts those. Raises
        ValueError for settings that ask for sampling.
        """
        answers: list[str] = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_settings.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in by_settings.values():
            settings = _generation_settings(requests[indices[0]].args[1])
            prompts = self.encode([requests[index].args[0] for index in indices])
            room = self.scorer.max_length - settings["max_new_tokens"]
            if room < 1:
                raise UserError(
                    f"max_gen_toks {settings['max_new_tokens']} leaves no room in {self.scorer.max_length} tokens"
                )
            self.scorer.truncated += sum(len(prompt) > room for prompt in prompts)
            made = greedy_tokens(
                self.model,
                [prompt[-room:] for prompt in prompts],
                settings["max_new_tokens"],
                self.stop_tokens,
                self.batch_tokens,
                self.asking,
            )
            for index, text in zip(indices, self.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                answers[index] = cut_at(text, settings["until"])
        return answers

    def apply_chat_template(
        self,
        chat_history: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """Render messages as the prompt the model was fine-tuned on; tools: functions that it offers, if any."""
        return render_chat(self.tokenizer, chat_history, tools, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in lm-eval's cache keys (no cache is used)."""
        return type(self.tokenizer).__name__


def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Return messages, and the functions they offer, as the tokenizer's chat template writes them."""
    return tokenizer.apply_chat_template(
        messages,
        tools=tools,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )


def _common_prefix(first: list[int], second: list[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def _generation_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    known = {"until", "max_gen_toks", "do_sample", "temperature"}
    if strange := sorted(set(arguments) - known):
        raise ValueError(f"unknown generation setting {strange[0]!r}; known: {', '.join(sorted(known))}")
    if arguments.get("do_sample") or arguments.get("temperature"):
        raise ValueError("answers are generated greedily; remove do_sample and temperature")
    until = arguments.get("until") or []
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "max_new_tokens": int(arguments.get("max_gen_toks", 256)),
    }


def load_model(folder: Path, device: str, dtype: str, batch_tokens: int) -> EvaluatedModel:
    """Load a Hugging Face model folder as `load_pretrained` does. Raises UserError when it is not one."""
    return EvaluatedModel(*load_pretrained(folder, device, dtype), batch_tokens)
