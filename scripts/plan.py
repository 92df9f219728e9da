"""Print the plan of a recipe for any number of processes, without torch, data or GPUs.

    python scripts/plan.py recipe=large_batch [world_size=64] [rows=N] [parameters=N] [format=text|json] [key=value …]

rows: the training rows (an epoch), where they are known. parameters: the model's weights outside its embeddings, which
scaling laws ask for; counted from the recipe's model where it is not given (that takes some seconds).
"""

import json
import sys

from hfbsz.cli import asks_for_help, read_words
from hfbsz.errors import UserError, complain
from hfbsz.explain import explain
from hfbsz.plan import Facts
from hfbsz.resolve import resolve


def main(words: list[str]) -> int:
    options = {"world_size": "1", "rows": "", "parameters": "", "format": "text"}
    options |= {key: value for key, _, value in (w.partition("=") for w in words) if key in options}
    try:
        loaded = read_words("python scripts/plan.py", [w for w in words if w.partition("=")[0] not in options])
        if loaded is None:
            return 0 if asks_for_help(words) else 2
        for name in ("world_size", "rows", "parameters"):
            if options[name] and not (options[name].isdigit() and int(options[name]) > 0):
                raise UserError(f"{name}: {options[name]!r} is not a whole number above 0")
        if options["format"] not in ("text", "json"):
            raise UserError(f"format: {options['format']!r} is neither text nor json")
        rows, parameters = (int(options[name] or 0) or None for name in ("rows", "parameters"))
        if parameters is None and loaded.recipe.uses_law():
            from hfbsz.model import count_parameters  # torch and transformers, only where a law asks for the size

            parameters = count_parameters(loaded.recipe.model, loaded.recipe.data.vocab_size)
        plan = resolve(loaded.recipe, int(options["world_size"]), Facts(rows=rows, parameters=parameters))
    except UserError as problem:
        return complain(problem.lines)
    print(json.dumps(plan.to_dict(), indent=1) if options["format"] == "json" else explain(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
