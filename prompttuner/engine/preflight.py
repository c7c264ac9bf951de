"""What a worker would find out in its first minute, before anything is asked of the site.

``python -m prompttuner.engine.preflight`` reads resolved specs as JSON lines and answers each with ``{"kind", "error",
"notes"}``. It is a process of its own, since tokenizers bring torch with them. No weight is read: names and shapes are
compared.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompttuner.errors import DataError, ModelError, PromptTunerError, SpecError
from prompttuner.protocol.spec import ResolvedSpec
from prompttuner.spec.job import DEFAULT_PROMPT_LENGTH
from prompttuner.spec.weights import stored_tensors

__all__ = ["Verdict", "inspect", "main"]


@dataclass
class Verdict:
    """What came of one spec: an error with its kind (``data``, ``model`` or ``spec``), or none; and notes."""

    kind: str = ""
    error: str = ""
    notes: list[str] = field(default_factory=list)


def inspect(spec: ResolvedSpec) -> Verdict:
    """Check model, template and data of a resolved spec against each other; what is wrong is said, not raised."""
    verdict = Verdict()
    try:
        _inspect(spec, verdict.notes)
    except DataError as error:
        verdict.kind, verdict.error = "data", str(error)
    except ModelError as error:
        verdict.kind, verdict.error = "model", str(error)
    except PromptTunerError as error:
        verdict.kind, verdict.error = "spec", str(error)
    return verdict


def _inspect(spec: ResolvedSpec, notes: list[str]) -> None:
    from prompttuner.engine.llm.encoding import encode
    from prompttuner.engine.llm.survival import check_targets
    from prompttuner.spec.data import read_samples

    model, tokenizer = _look_at_model(spec)
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    limit = int(limit) if isinstance(limit, int) and limit > 0 else None
    reserve = prompt_tokens(spec, tokenizer)
    if limit is not None and reserve >= limit:
        raise SpecError(
            f"the soft prompt of {reserve} virtual tokens leaves no room in the model's {limit} positions; lower "
            "prompt_length"
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    allow = spec.allow_unknown_tokens
    for source in (spec.train, spec.eval):
        samples = read_samples(source, spec.eval_samples if source == spec.eval else None)
        note = check_targets(samples, tokenizer, source, allow)
        notes += [note] if note else []
        encode(samples, spec.template, tokenizer, reserve=reserve, max_positions=limit, rows=rows, source=source)


def _look_at_model(spec: ResolvedSpec) -> tuple[Any, Any]:
    """The model without weights, and its tokenizer.

    Raises:
        ModelError: it cannot be loaded, or is none that a prompt can be tuned on.
    """
    import torch
    from transformers import AutoTokenizer

    from prompttuner.engine.llm.loading import load_weights, unused_text
    from prompttuner.spec.models import trusts_own_code

    source, label, trusted = spec.model, spec.model_name or spec.model, trusts_own_code(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)
        model, unused = load_weights(source, label, torch.float32, trusted, meta=True)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers, or the model's own code, says of a folder it cannot load
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {label!r} cannot be loaded: {reason}") from None
    if unused and not spec.allow_unused_weights:
        raise ModelError(unused_text(label, unused))
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise ModelError(
            f"model {label!r} ({type(model).__name__}) has embeddings in each layer that are found by token, so a soft "
            "prompt cannot stand before its input"
        )
    if model.get_output_embeddings() is None or model.get_input_embeddings() is None:
        raise ModelError(f"model {label!r} ({type(model).__name__}) has no language-model head or no word embeddings")
    return model, tokenizer


def prompt_tokens(spec: ResolvedSpec, tokenizer: Any) -> int:
    """Virtual tokens that the job's prompt will have, as far as can be known now."""
    if spec.prompt_length:
        return spec.prompt_length
    kind = str(spec.initial_prompt)
    if kind.startswith("text:"):
        return len(tokenizer(kind.removeprefix("text:").strip(), add_special_tokens=False)["input_ids"])
    if kind.endswith(".safetensors"):
        shapes = stored_tensors(Path(kind))
        shape = next((shapes[key] for key in ("prompt", "prompt_embeddings") if key in shapes), None)
        return int((shape or next(iter(shapes.values()), [DEFAULT_PROMPT_LENGTH]))[0])
    return DEFAULT_PROMPT_LENGTH


def main() -> int:
    """One answer a line, in the order of the specs; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        spec = ResolvedSpec.read(json.loads(line))
        verdict = inspect(spec) if isinstance(spec, ResolvedSpec) else Verdict("spec", f"no resolved spec: {spec}")
        answers.write(json.dumps({"kind": verdict.kind, "error": verdict.error, "notes": verdict.notes}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
