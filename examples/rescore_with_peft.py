"""Score a finished job's adapter with plain PEFT and transformers, none of prompttuner's code, and compare.

    python examples/rescore_with_peft.py RESULT_FOLDER [RESULT_FOLDER ...] [--device cuda]

A result folder is what ``prompttuner result JOB`` shows: ``adapter_model.safetensors``, ``adapter_config.json`` and
``result.json``. The evaluation data must still lie where the job's spec says. Exit 0 only if every
reported number holds.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


def encode(rows, template, tokenizer):
    """(ids of the given part, ids of the part to be learned, target text) of each sample."""
    encoded = []
    for row in rows:
        if template == "chat":
            user = {"role": "user", "content": row["input"]}
            given = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
            answer = {"role": "assistant", "content": row["target"]}
            whole = tokenizer.apply_chat_template([user, answer], tokenize=False)
            fits = whole.startswith(given) and row["target"] in whole[len(given) :]
            learned = whole[len(given) :].rstrip("\n") if fits else row["target"] + (tokenizer.eos_token or "")
        else:
            head, _, rest = template.partition("{input}")
            between, _, tail = rest.partition("{target}")
            text = head + row["input"] + between
            given = text.rstrip(" ") or text
            learned = text[len(given) :] + row["target"] + tail
        given = tokenizer(given, add_special_tokens=template != "chat")["input_ids"]
        learned = tokenizer(learned, add_special_tokens=False)["input_ids"]
        end = tokenizer.eos_token_id
        if template != "chat" and end is not None:
            given = given[:-1] if len(given) > 1 and given[-1] == end else given
            learned = learned if learned[-1] == end else [*learned, end]
        encoded.append((given, learned, row["target"]))
    return encoded


@torch.no_grad()
def mean_loss(model, encoded, device):
    """Mean negative log likelihood of a target token, one sample at a time."""
    total, count = 0.0, 0
    for given, learned, _ in encoded:
        ids = torch.tensor([given + learned], device=device)
        labels = torch.tensor([[-100] * len(given) + learned], device=device)
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        total += loss.item() * len(learned)
        count += len(learned)
    return total / count


@torch.no_grad()
def answers(model, tokenizer, encoded, limit, device):
    """Greedy answers. Prompts of one length make a batch, so that nothing is padded."""
    by_length = defaultdict(list)
    for index, (given, _, _) in enumerate(encoded):
        by_length[len(given)].append(index)
    texts = [""] * len(encoded)
    for indices in by_length.values():
        ids = torch.tensor([encoded[index][0] for index in indices], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        for index, text in zip(
            indices, tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True), strict=True
        ):
            texts[index] = text
    return texts


def score_answers(metric, texts, encoded):
    """Mean score of greedy answers, by the metric of the job."""
    if metric == "exact_match":
        return sum(text.strip() == target.strip() for text, (_, _, target) in zip(texts, encoded, strict=True)) / len(
            encoded
        )
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores = [
        scorer.score(target, text)["rougeL"].fmeasure for text, (_, _, target) in zip(texts, encoded, strict=True)
    ]
    return sum(scores) / len(scores)


def rescore(folder, device):
    """Score one result folder; True if the reported loss and metric hold."""
    result = json.loads((folder / "result.json").read_text())
    spec = result["spec"]
    lines = [line for line in Path(spec["eval"]).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    rows = [json.loads(line) for line in lines][: spec.get("eval_samples")]
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, result["weights_dtype"])).to(device)
    if tokenizer.eos_token is None and model.generation_config.eos_token_id is not None:
        end = model.generation_config.eos_token_id  # as prompttuner takes it where the tokenizer names none
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    model = PeftModel.from_pretrained(model, folder).eval()
    encoded = encode(rows, spec["template"], tokenizer)
    tolerance = TOLERANCE[result["weights_dtype"]]
    checks = [("loss", result["loss"], mean_loss(model, encoded, device), tolerance)]
    metric = spec["target"]["metric"]
    if metric != "loss":
        texts = answers(model, tokenizer, encoded, result["max_new_tokens"], device)
        # A tie between two tokens may fall either way: one sample in a hundred may differ.
        checks.append((metric, result["metric"], score_answers(metric, texts, encoded), max(tolerance, 0.01)))
    good = True
    for name, reported, found, allowed in checks:
        holds = abs(reported - found) <= allowed
        good = good and holds
        verdict = "ok" if holds else "DIFFERS"
        print(f"{folder}  {name:12} reported {reported:.5f}  plain PEFT {found:.5f}  {verdict}")
    return good


def main():
    """Score a result folder with PEFT alone and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULT_FOLDER")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    held = [rescore(folder, options.device) for folder in options.folders]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
