"""LoRA: what is trained, what stays bit-identical, what is saved, and what is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_models import logits, same_logits, small_model, small_tokenizer
from test_loop import Bench, _here  # noqa: F401  (the fixture sets the cache folder)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.errors import UserError
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.fields import Model
from hfbsz.recipe.load import load
from hfbsz.system.signals import Interrupt
from hfbsz.train.checkpoint import collect, read, restore, save
from hfbsz.train.lora import merged
from hfbsz.train.model import build_model
from hfbsz.train.progress import Progress

RATES = {"adamw": 3e-3, "sgd": 0.1, "lamb": 1e-2, "adafactor": 3e-2, "schedule_free": 3e-3}
WORDS = ["model.shape=null", "model.lora.rank=4", "model.lora.dropout=0.1", "duration=12steps"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make_bench(ragged, base):
    def make(*words, path=base):
        return Bench(ragged, *WORDS, f"model.path={path}", f"data.tokenizer={path}", *words)

    return make


def parted(model):
    """Copies of the trainable weights and of the frozen weights, by name."""
    copies = [{}, {}]
    for name, weight in model.named_parameters():
        copies[weight.requires_grad][name] = weight.detach().clone()
    return copies[True], copies[False]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", RATES)
def test_frozen_weights_stay_bit_identical_and_the_others_learn(make_bench, name):
    bench = make_bench(f"optim.name={name}", f"optim.lr={RATES[name]}", "schedule.shape=constant", "duration=20steps")
    adapters, frozen = parted(bench.model)
    assert all("lora_" in part for part in adapters) and len(adapters) == 2 * 2 * 7
    losses = [step.loss for step in bench.steps()]
    adapters_after, frozen_after = parted(bench.model)
    assert same(frozen, frozen_after)
    assert not any(torch.equal(adapters[part], adapters_after[part]) for part in adapters_after)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_merged_model_predicts_like_the_trained_one_and_leaves_it_unchanged(make_bench, tmp_path):
    bench, unmerged = make_bench(), make_bench()
    steps, others = bench.steps(), unmerged.steps()
    for _ in range(6):
        next(steps), next(others)
    before = parted(bench.model)
    plain = merged(bench.model)
    assert type(plain).__name__ == "LlamaForCausalLM" and merged(plain) is plain
    assert torch.allclose(logits(plain), logits(bench.model), rtol=0, atol=1e-6)
    assert all(map(same, before, parted(bench.model)))
    plain.save_pretrained(tmp_path)
    original = AutoModelForCausalLM.from_pretrained(bench.recipe.model.path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.state_dict().keys() == original.state_dict().keys()
    assert torch.equal(logits(saved), logits(plain)) and not torch.allclose(logits(saved), logits(original), atol=1e-4)
    for step, other in zip(steps, others, strict=True):  # trained on as if it had not been merged
        assert (step.loss, step.grad_norm) == (other.loss, other.grad_norm)


def test_merging_copies_only_weights_that_lora_updates(base):
    spec = Model(path=str(base), lora={"rank": 4, "targets": "q_proj"})
    model = build_model(spec, small_tokenizer(), 0, 16)
    plain = merged(model)
    pointers = {weight.data_ptr() for weight in model.parameters()}
    copied = {name for name, weight in plain.named_parameters() if weight.data_ptr() not in pointers}
    assert copied == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


@pytest.mark.parametrize("name", RATES)
def test_a_checkpoint_holds_only_adapters_and_a_run_resumes_from_it(make_bench, tmp_path, name):
    words = [f"optim.name={name}", f"optim.lr={RATES[name]}"]
    unbroken, first, second = (make_bench(*words) for _ in range(3))
    expected = list(unbroken.steps())
    progress = Progress(first.accelerator.device)
    for step in first.steps(progress=progress):
        if step.at.step == 5:
            break
    state = {"progress": progress.to_dict([progress.loss.item()])}
    path = save(tmp_path, 5, collect(first.model, first.optimizer), state)
    weights, moments = (load_file(path / f"{part}.safetensors") for part in ("model", "optimizer"))
    layer = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert layer in weights and len(weights) == 28 and all(".lora_" in part for part in (*weights, *moments))
    checkpoint = read(path)
    restore(checkpoint, second.model, second.optimizer)
    resumed = list(second.steps(progress=Progress(second.accelerator.device, checkpoint.state["progress"])))
    for one, other in zip(resumed, expected[5:], strict=True):
        assert (one.at.sequences, one.loss, one.grad_norm) == (other.at.sequences, other.loss, other.grad_norm)
    assert all(map(same, parted(second.model), parted(unbroken.model)))


def test_other_frozen_weights_are_refused(make_bench, base, tmp_path):
    """One weight in the model's folder has changed by one bit since the checkpoint was saved."""
    first = make_bench()
    next(first.steps())
    checkpoint = read(save(tmp_path, 1, collect(first.model, first.optimizer), {}))
    other = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        weight = other.get_parameter("model.norm.weight")
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    other.save_pretrained(tmp_path / "other")
    small_tokenizer().save_pretrained(tmp_path / "other")
    second = make_bench(path=tmp_path / "other")
    before = parted(second.model)
    with pytest.raises(UserError, match=r"frozen weights.* have changed"):
        restore(checkpoint, second.model, second.optimizer)
    assert all(map(same, before, parted(second.model)))


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("llama", {"score"}),
        ("gpt2", {"score"}),
        ("bert", {"classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
    ],
)
def test_a_classifier_head_is_trained_in_full(tmp_path, kind, head):
    small_model(tmp_path / "base", kind, labels=3 if kind == "distilbert" else 0)
    spec = Model(path=str(tmp_path / "base"), lora={"rank": 2})
    model = build_model(spec, small_tokenizer(), 0, 16, ["no", "yes"])
    trained, _ = parted(model)
    in_full = {name.split(".")[2] for name in trained if "lora_" not in name}
    assert in_full == head and any("lora_B" in name for name in trained)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    plain = merged(model)
    assert torch.allclose(logits(plain), logits(model), rtol=0, atol=1e-6)
    plain.save_pretrained(tmp_path / "merged")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert same_logits(saved, plain) and saved.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["q_proj", "vproj"]}, "targets: no linear layer is called 'vproj'; did you mean 'v_proj'?"),
        ({"targets": "lm_head"}, "no linear layer is called 'lm_head'; there are q_proj, k_proj"),
        ({"targets": "embed_tokens"}, "no linear layer is called 'embed_tokens'; there are q_proj"),
        (
            {"rank": 20, "targets": "k_proj"},
            "rank: 20 is not a low rank for model.layers.0.self_attn.k_proj, which is 16 × 32",
        ),
    ],
)
def test_wrong_targets_and_ranks_are_reported_in_one_line(base, lora, message):
    with pytest.raises(UserError) as caught:
        build_model(Model(path=str(base), lora=lora), small_tokenizer(), 0, 16)
    (line,) = caught.value.lines
    assert message in line


def test_what_lora_cannot_be_combined_with_is_reported_in_one_line(base, monkeypatch):
    loaded = load(["recipe=tests/tiny.yaml", "model.shape=null", f"model.path={base}", "model.lora={}"])
    with pytest.raises(UserError, match=r"optim\.name: muon"):
        muon = loaded.recipe.optim.model_copy(update={"name": "muon"})
        resolve(loaded.recipe.model_copy(update={"optim": muon}), 1)
    with pytest.raises(UserError, match=r"model\.lora: it needs pretrained weights"):
        build_model(load(["model=tiny", "model.lora={}"]).recipe.model, small_tokenizer(), 0, 16)
    from hfbsz.run.session import run

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"model\.lora: .*FSDP2"):
        run(loaded, "pretrain", Interrupt())


def test_lora_can_be_set_field_by_field():
    lora = load(["model.path=x", "model.lora.rank=8", "model.lora.targets=[q_proj,v_proj]"]).recipe.model.lora
    assert (lora.rank, lora.alpha, lora.targets) == (8, 32, ["q_proj", "v_proj"])
    assert load(["model.path=x", "model.lora.rank=8", "model.lora=null"]).recipe.model.lora is None
    with pytest.raises(UserError, match=r"model\.lora\.rnk: no such field .*did you mean 'model\.lora\.rank'"):
        load(["model.lora.rnk=8"])
    with pytest.raises(UserError, match=r"model\.lora\.rank: .*greater than or equal to 1, not 0"):
        load(["model.lora.rank=0"])


def test_two_processes_train_the_same_model_as_one_and_save_it_merged(hfbsz, ragged, base, tmp_path):
    words = ["recipe=tests/tiny.yaml", *WORDS, f"model.path={base}", f"data.tokenizer={base}", f"data.files={ragged}"]
    words += ["model.lora.dropout=0", "batch.micro_max=2", "threads=1", "checkpoint.every=5steps"]
    models = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ended = hfbsz("pretrain.py", *words, f"output_dir={folder}", processes=processes)
        assert ended.code == 0, ended.err
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        models.append(AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True))
        names = {part.name for part in folder.iterdir()}
        assert "adapter_config.json" not in names and "lora" not in str(models[-1].state_dict().keys())
        size = (folder / "checkpoint-10" / "model.safetensors").stat().st_size
        assert size < (folder / "model.safetensors").stat().st_size / 2
    assert torch.allclose(logits(models[0]), logits(models[1]), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(models[0]), logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-3)
