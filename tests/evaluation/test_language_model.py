"""Our model class against two oracles on random requests: lm-eval's own Hugging Face class, and one token at a time."""

import copy
import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline_lib.evaluation.generation import greedy_tokens
from pipeline_lib.evaluation.language_model import EvaluatedModel
from pipeline_lib.stage import StageFailure

VOCABULARY = "the list returns a value raises an error when empty 42 #### Tom apples json.dumps( naïve 東京 🎉 `x`"
WORDS = [*VOCABULARY.split(" "), "\n", "\t"]


def random_text(rng, longest):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest)))


def requests(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


@pytest.fixture(scope="module")
def hugging_face(tiny_llama, tokenizer):
    return HFLM(pretrained=tiny_llama, tokenizer=tokenizer, batch_size=3, device="cpu", max_length=96)


def random_pairs(count, context=40, continuation=12, seed=0):
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        start = random_text(rng, context).rstrip()
        pairs.append((start, " " + random_text(rng, continuation)) if start else ("", random_text(rng, continuation)))
    return pairs


def test_log_likelihoods_equal_lm_evals_hugging_face_class(evaluated, hugging_face):
    asked = requests("loglikelihood", random_pairs(60) + [("", " alone"), ("", "x")])
    ours = evaluated.loglikelihood(asked)
    theirs = hugging_face.loglikelihood(asked, disable_tqdm=True)
    for (our_value, our_greedy), (their_value, their_greedy) in zip(ours, theirs, strict=True):
        assert our_value == pytest.approx(their_value, abs=2e-3)
        assert our_greedy == their_greedy
    assert len({round(value, 3) for value, _ in ours}) > 50


def test_contexts_longer_than_the_model_lose_their_beginning_as_in_lm_eval(evaluated, hugging_face):
    asked = requests("loglikelihood", random_pairs(12, context=400, seed=1))
    evaluated.scorer.truncated = 0
    ours = evaluated.loglikelihood(asked)
    assert evaluated.scorer.truncated > 0
    theirs = hugging_face.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=2e-3)


def test_rolling_log_likelihoods_equal_lm_evals_over_many_windows(tiny_llama, tokenizer):
    with_start = copy.deepcopy(tokenizer)
    with_start.bos_token = "<|endoftext|>"
    oracle = HFLM(pretrained=tiny_llama, tokenizer=with_start, batch_size=3, device="cpu", max_length=96)
    rng = random.Random(2)
    asked = requests("loglikelihood_rolling", [(random_text(rng, 300),) for _ in range(12)] + [("a",)])
    ours = EvaluatedModel(tiny_llama, with_start, batch_tokens=256)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(
        oracle.loglikelihood_rolling(asked, disable_tqdm=True), abs=5e-3
    )


def test_without_a_beginning_token_only_the_first_token_of_a_document_follows_an_end_of_text(evaluated, tokenizer):
    for text in ("The sum of all elements. naïve", "a"):
        first, *rest = evaluated.encode([text], plain=True)[0]
        expected, _ = one_token_at_a_time(evaluated.model, [tokenizer.eos_token_id], [first])
        expected += one_token_at_a_time(evaluated.model, [first], rest)[0]
        (ours,) = evaluated.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
        assert ours == pytest.approx(expected, abs=1e-3)


def test_greedy_answers_equal_lm_evals(tiny_llama, tokenizer, hugging_face):
    ours = EvaluatedModel(tiny_llama, tokenizer, batch_tokens=256)
    ours.stop_tokens = [tokenizer.eos_token_id]  # lm-eval knows nothing of the end of a chat turn
    rng = random.Random(3)
    settings = [{"until": ["@@@@"], "max_gen_toks": 12}, {"until": ["%%%%", "~~~~"], "max_gen_toks": 20}]
    asked = requests("generate_until", [(random_text(rng, 30), settings[i % 2]) for i in range(24)])
    assert ours.generate_until(asked) == hugging_face.generate_until(asked, disable_tqdm=True)


def test_generation_prompts_that_lose_their_beginning_are_counted(tiny_llama, tokenizer):
    """The model takes 96 tokens, 20 of them for the answer: 76 are left for a prompt."""
    model = EvaluatedModel(tiny_llama, tokenizer, batch_tokens=256)
    prompts = [tokenizer.decode([7] * length) for length in (75, 76, 77, 300)]
    assert [len(tokens) for tokens in model.encode(prompts)] == [75, 76, 77, 300]
    cut = model.generate_until(requests("generate_until", [(prompt, {"max_gen_toks": 20}) for prompt in prompts]))
    assert model.scorer.truncated == 2
    assert cut[2] == cut[3] == cut[1], "what is left of them is the same"


def test_answers_are_cut_before_the_earliest_stop_string(evaluated):
    (whole,) = evaluated.generate_until(requests("generate_until", [("the list", {"max_gen_toks": 30})]))
    middle, later = whole[len(whole) // 3], whole[-1]
    (cut,) = evaluated.generate_until(
        requests("generate_until", [("the list", {"until": [later, middle], "max_gen_toks": 30})])
    )
    assert cut == whole[: min(whole.find(middle), whole.find(later))] and cut != whole


def test_an_answer_ends_where_the_chat_turn_does(evaluated, tiny_llama, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rng = random.Random(3)
    prompts = [random_text(rng, 8) for _ in range(40)]
    free = greedy_tokens(tiny_llama, evaluated.encode(prompts), 20, [tokenizer.pad_token_id], 256)
    assert any(end in tokens for tokens in free)
    stopped = evaluated.generate_until(
        requests("generate_until", [(prompt, {"max_gen_toks": 20}) for prompt in prompts])
    )
    stops = set(evaluated.stop_tokens)
    for tokens, text in zip(free, stopped, strict=True):
        before = [token for i, token in enumerate(tokens) if not stops & set(tokens[: i + 1])]
        assert text == tokenizer.decode(before, skip_special_tokens=True)


def one_token_at_a_time(model, context, continuation):
    total, greedy = 0.0, True
    for position in range(len(continuation)):
        tokens = torch.tensor([[*context, *continuation[:position]]])
        with torch.no_grad():
            distribution = torch.log_softmax(model(tokens).logits[0, -1].double(), dim=0)
        total += distribution[continuation[position]].item()
        greedy &= distribution.argmax().item() == continuation[position]
    return total, greedy


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}], ids=["own head", "tied head"])
def test_scores_equal_one_forward_pass_per_token(new_llama, tokenizer, overrides):
    model = new_llama(tokenizer, seed=5, **overrides)
    scorer = EvaluatedModel(model, tokenizer, batch_tokens=64).scorer
    rng = random.Random(4)
    size = len(tokenizer)
    pairs = [
        (
            [rng.randrange(size) for _ in range(rng.randint(1, 30))],
            [rng.randrange(size) for _ in range(rng.randint(1, 9))],
        )
        for _ in range(25)
    ]
    most_likely = torch.argmax(model(torch.tensor([pairs[0][0]])).logits[0, -1]).item()
    pairs.append((pairs[0][0], [most_likely]))
    for likelihood, pair in zip(scorer.score(pairs), pairs, strict=True):
        expected, greedy = one_token_at_a_time(model, *pair)
        assert likelihood.log_likelihood == pytest.approx(expected, abs=1e-3)
        assert likelihood.is_greedy == greedy
    assert scorer.score(pairs)[-1].is_greedy


def test_an_answer_longer_than_the_model_is_scored_whole_in_pieces(evaluated, tokenizer):
    rng = random.Random(8)
    tokens = [rng.randrange(4, len(tokenizer)) for _ in range(250)]
    context, continuation = tokens[:20], tokens[20:]
    scorer = evaluated.scorer
    pieces = [(tokens[: 20 + start], tokens[20 + start : 20 + start + 96]) for start in range(0, len(continuation), 96)]
    expected = sum(likelihood.log_likelihood for likelihood in scorer.score(pieces))
    assert scorer.score([(context, continuation)])[0].log_likelihood == pytest.approx(expected, abs=1e-3)


def test_scores_do_not_depend_on_the_batch(tiny_llama, tokenizer):
    asked = requests("loglikelihood", random_pairs(30, seed=6))
    small = EvaluatedModel(tiny_llama, tokenizer, batch_tokens=1).loglikelihood(asked)
    large = EvaluatedModel(tiny_llama, tokenizer, batch_tokens=100_000).loglikelihood(asked)
    assert [value for value, _ in small] == pytest.approx([value for value, _ in large], abs=1e-3)


def test_both_shortcuts_hold_for_the_architectures_of_stage_04(evaluated, tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0}
    qwen = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **shape, **heads)).eval()
    scorer = EvaluatedModel(qwen, tokenizer, 256).scorer
    for shortcuts in (scorer, evaluated.scorer):
        assert shortcuts._shares and shortcuts._head_is_linear
    pairs = [([5, 6, 7, 8], [9, 10, 11]), ([5, 6, 7, 8], [12]), ([5, 6, 7, 8], [13, 14])]
    for likelihood, pair in zip(scorer.score(pairs), pairs, strict=True):
        assert likelihood.log_likelihood == pytest.approx(one_token_at_a_time(qwen, *pair)[0], abs=1e-3)


def test_a_head_that_scales_its_logits_is_noticed(tokenizer):
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            logits_scaling=4.0,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
    ).eval()
    scorer = EvaluatedModel(model, tokenizer, 64).scorer
    assert not scorer._head_is_linear
    pair = ([5, 6, 7], [8, 9])
    assert scorer.score([pair])[0].log_likelihood == pytest.approx(one_token_at_a_time(model, *pair)[0], abs=1e-3)


def test_a_newline_that_ends_a_chat_prompt_belongs_to_the_prompt(evaluated, tokenizer):
    prompt = evaluated.apply_chat_template([{"role": "user", "content": "What does `x` do?"}])
    assert prompt.endswith("assistant\n")
    ((context, continuation),) = evaluated.split_pairs([(prompt, "Return the list.")])
    assert tokenizer.decode(context) == prompt and tokenizer.decode(continuation) == "Return the list."


def test_a_token_across_the_border_belongs_to_the_continuation(evaluated, tokenizer):
    for context, continuation in (("Answer: ", "the list"), ("the li", "st"), ("na", "ïve"), ("", "x")):
        ((first, second),) = evaluated.split_pairs([(context, continuation)])
        text = tokenizer.decode(second)
        assert text.endswith(continuation) and (context + continuation).endswith(text)
        whole = tokenizer.decode([*first, *second])  # a text begins after an end of text if no context token is left
        assert whole.removeprefix(tokenizer.eos_token) == context + continuation and first


def test_documents_that_spell_special_tokens_are_plain_text(evaluated, tokenizer):
    text = "a template writes <|im_start|>user and <|endoftext|> here"
    special = set(tokenizer.all_special_ids)
    assert not special & set(evaluated.encode([text], plain=True)[0])
    assert special & set(evaluated.encode([text])[0])


def test_a_model_that_gives_nan_stops_the_stage_instead_of_winning(new_llama, tokenizer):
    model = new_llama(tokenizer, seed=9)
    scorer = EvaluatedModel(model, tokenizer, 64).scorer
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(StageFailure, match="not finite"):
        scorer.score([([5], [6])])


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"top_q": 1}])
def test_sampling_and_unknown_settings_are_refused(evaluated, settings):
    with pytest.raises(ValueError):
        evaluated.generate_until(requests("generate_until", [("the list", {"max_gen_toks": 4, **settings})]))
