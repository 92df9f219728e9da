"""FSDP2 trains the same as DDP and as one process: on two gloo processes, through the launcher."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, records
from safetensors.numpy import load_file

from hfbsz.errors import UserError
from hfbsz.train.fsdp import Sharding, fsdp_from_env

REQUEST = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HESSIAN = "measure.sharpness.method=hessian"
MODELS = ("tiny-fp32", "tiny_gpt2-fp32", "loaded-fp32")  # two families, tied embeddings, and weights from a folder


def test_an_optimizer_that_was_not_tested_with_sharding_is_refused(monkeypatch, tmp_path):
    from hfbsz.recipe.load import load
    from hfbsz.run.session import run

    for name, value in REQUEST.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"lamb .*FSDP2"):
        run(load([TINY, "optim.name=lamb", f"output_dir={tmp_path}/run"]), "pretrain", lambda: False)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A preset that names a folder of saved weights, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=256, **shape))
    model.save_pretrained(folder)
    preset = folder / "loaded.yaml"
    preset.write_text(f"path: {folder}\n")
    return preset


@pytest.fixture(scope="module")
def first_steps(hfbsz, ragged, loaded, tmp_path_factory):
    """Folders with the output of tests/first_steps.py for each launcher configuration."""

    models = ("tiny", "tiny_gpt2", loaded)

    def run(config, *models, split="batch.micro_max=2", more=(), **options):
        out = tmp_path_factory.mktemp("steps")
        every = ["measure.noise.every=1step", "measure.sharpness.every=1step"]
        words = [out, *models, "--", TINY, f"data.files={ragged}", split, *every, *more]
        ended = hfbsz(str(ROOT / "tests" / "first_steps.py"), *words, config=config, **options)
        assert ended.code == 0, ended.err
        return out

    return {
        "one process": run(None, *models),
        "one process by 4": run(None, "tiny", split="batch.micro_max=4", more=[HESSIAN]),
        "DDP with Hessian": run("cpu_2proc.yaml", "tiny", more=[HESSIAN]),
        "DDP": run("cpu_2proc.yaml", *models),
        "FSDP2": run("fsdp2_cpu_2proc.yaml", *models, "tiny:bf16"),
        "DDP by tokens": run("cpu_2proc.yaml", "tiny", split="batch.micro_tokens=100"),
        "FSDP2 by tokens": run("fsdp2_cpu_2proc.yaml", "tiny", split="batch.micro_tokens=100"),
    }


def gradient(folder, model):
    """The full gradient as one vector, in an order that does not depend on the launcher."""
    weights = np.load(folder / f"{model}.npz")
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}
    return np.concatenate([weights[name].ravel().astype(np.float64) for name in sorted(weights)])


def apart(one, other) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_that_of_ddp_and_of_one_process(first_steps, model):
    """float32, ragged rows, two micro-batches (four on one process): 1e-6 relative L2."""
    sharded, ddp, single = (gradient(first_steps[name], model) for name in ("FSDP2", "DDP", "one process"))
    assert apart(sharded, single) < 1e-6 and apart(sharded, ddp) < 1e-6 and apart(ddp, single) < 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_the_noise_scale_is_that_of_ddp_and_of_one_process(first_steps, model):
    """The same micro-batches on one process, and on two with DDP and FSDP2; and the same on every rank."""
    noise = {
        (name, rank): json.loads((first_steps[name] / f"{model}-{rank}.json").read_text())["noise"]
        for name, ranks in (("one process", 1), ("DDP", 2), ("FSDP2", 2))
        for rank in range(ranks)
    }
    single = noise["one process", 0]
    assert single["two_batch"]["noise"] > 0 and len(single["layers"]) >= 5
    for other in noise.values():
        for estimate in ("two_batch", "per_sequence"):
            assert other[estimate] == pytest.approx(single[estimate], rel=1e-4)
        for layer, sums in single["layers"].items():
            assert other["layers"][layer] == pytest.approx(sums, rel=1e-3, abs=1e-9)
    for name in ("DDP", "FSDP2"):
        assert noise[name, 0] == noise[name, 1]


def test_the_sharpness_is_that_of_ddp_and_of_one_process(first_steps):
    """The same four rows on one process, and on two with DDP and FSDP2; and the same on every rank."""
    found = {
        (name, rank): json.loads((first_steps[name] / f"{MODELS[0]}-{rank}.json").read_text())["sharpness"]
        for name, ranks in (("one process by 4", 1), ("DDP with Hessian", 2), ("FSDP2", 2))
        for rank in range(ranks)
    }
    single = found["one process by 4", 0]
    assert single["sharpness/critical_rate"] > 0 and single["sharpness/eigenvalue"] > 0
    for name in ("DDP with Hessian", "FSDP2"):
        assert found[name, 0] == found[name, 1]
        assert found[name, 0] == pytest.approx({key: single[key] for key in found[name, 0]}, rel=1e-3)
    assert found["DDP with Hessian", 0].keys() == single.keys() and "sharpness/critical" in found["FSDP2", 0]


def test_micro_batches_of_tokens_have_the_same_gradient(first_steps):
    """float32: 1e-6 relative L2. Under DDP each rank makes as many passes as it needs; under FSDP2, whose passes are
    collective, all make as many as the rank that needs most."""
    model = MODELS[0]
    single, ddp = (gradient(first_steps[name], model) for name in ("one process", "DDP"))
    passes = {}
    for name in ("DDP by tokens", "FSDP2 by tokens"):
        ranks = [json.loads((first_steps[name] / f"{model}-{rank}.json").read_text()) for rank in (0, 1)]
        passes[name] = [rank["passes"] for rank in ranks]
        assert ranks[0]["third"] == ranks[1]["third"]
        assert apart(gradient(first_steps[name], model), single) < 1e-6
        assert apart(gradient(first_steps[name], model), ddp) < 1e-6
    assert min(passes["DDP by tokens"]) > 1 and passes["FSDP2 by tokens"] == [max(passes["DDP by tokens"])] * 2


def test_bf16_computes_in_bf16_and_keeps_float32_gradients(first_steps):
    """Computed in bfloat16 (8 bits of mantissa): close to the float32 gradient, but not equal."""
    rough, exact = gradient(first_steps["FSDP2"], "tiny-bf16"), gradient(first_steps["FSDP2"], "tiny-fp32")
    assert 1e-4 < apart(rough, exact) < 3e-2


@pytest.mark.parametrize("model", [*MODELS, "tiny-bf16"])
def test_each_rank_holds_half_and_a_non_finite_step_moves_no_weight_on_any(first_steps, model):
    ranks = [json.loads((first_steps["FSDP2"] / f"{model}-{rank}.json").read_text()) for rank in (0, 1)]
    layers = 2 if "loaded" in model else 4
    for rank in ranks:
        assert rank["sharded"] and rank["units"] == layers + 1 and rank["share"] == pytest.approx(0.5, abs=0.01)
        assert rank["skipped"] == 1 and rank["unchanged"]
        assert rank["third"][0] == 1 and rank["moved"] and rank["finite"]
    assert ranks[0]["third"] == ranks[1]["third"]
    if model != "tiny-bf16":
        ddp = json.loads((first_steps["DDP"] / f"{model}-0.json").read_text())
        assert not ddp["sharded"] and ddp["unchanged"]
        assert ranks[0]["third"] == pytest.approx(ddp["third"], rel=1e-5)


@pytest.fixture(scope="module", params=["adamw", "muon"])
def trained(hfbsz, ragged, tmp_path_factory, request):
    """The same run in float64 with FSDP2 and with DDP, through the command line, with averaged weights."""

    def run(config):
        folder = tmp_path_factory.mktemp("run") / "run"
        words = [
            f"data.files={ragged}",
            "batch.micro_max=2",
            "precision=fp64",
            "optim.average=0.2",
            f"optim.name={request.param}",
            f"output_dir={folder}",
        ]
        ended = hfbsz("pretrain.py", TINY, *words, config=config)
        assert ended.code == 0, ended.err
        return folder

    return run("fsdp2_cpu_2proc.yaml"), run("cpu_2proc.yaml")


def test_a_run_equals_one_with_ddp(trained):
    """float64: losses and norms of 50 steps, and both evaluations, to 1e-9."""
    assert [json.loads((folder / "machine.json").read_text())["parallel"] for folder in trained] == ["FSDP2", "DDP"]
    for event, names in (("step", ("train/loss", "train/grad_norm")), ("eval", ("eval/loss",))):
        sharded, ddp = (records(folder, event) for folder in trained)
        assert len(sharded) == len(ddp) == (50 if event == "step" else 3)
        for one, other in zip(sharded, ddp, strict=True):
            assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-9)


def test_the_saved_model_equals_that_of_ddp_and_loads(trained):
    """Unsharded, in Hugging Face format, tied weights once."""
    from transformers import AutoModelForCausalLM

    sharded, ddp = (load_file(folder / "model.safetensors") for folder in trained)
    assert sharded.keys() == ddp.keys()
    for name, weight in ddp.items():
        assert sharded[name].dtype == weight.dtype and apart(sharded[name], weight) <= 1e-9
    configs = [(folder / "config.json").read_text() for folder in trained]
    assert configs[0] == configs[1]
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_request_is_removed_from_the_environment():
    """Accelerate would use DDP for it on a CPU; transformers would initialize missing weights on rank 0 only."""
    environment = dict(REQUEST)
    assert fsdp_from_env(environment) == Sharding() and "ACCELERATE_USE_FSDP" not in environment
    assert fsdp_from_env(REQUEST | {"FSDP_RESHARD_AFTER_FORWARD": "false"}) == Sharding(reshard_after_forward=False)
    assert fsdp_from_env({}) is None and fsdp_from_env({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OFFLOAD_PARAMS", "true"),
        ("ACTIVATION_CHECKPOINTING", "true"),
        ("AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer"),
        ("SHARDING_STRATEGY", "HYBRID_SHARD"),
        ("RESHARD_AFTER_FORWARD", "NO_SHARD"),
        ("IGNORED_MODULES", "lm_head"),
    ],
)
def test_options_that_would_be_ignored_are_refused_in_one_line(name, value):
    with pytest.raises(UserError) as caught:
        fsdp_from_env(REQUEST | {f"FSDP_{name}": value})
    assert len(caught.value.lines) == 1 and f"fsdp_{name.lower()}: {value.lower()}" in str(caught.value)


def test_version_1_is_refused_with_advice():
    for version in ({"FSDP_VERSION": "1"}, {}):
        with pytest.raises(UserError, match="set fsdp_version: 2"):
            fsdp_from_env({"ACCELERATE_USE_FSDP": "true", **version})
