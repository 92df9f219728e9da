"""The examples in docs/python.md run unchanged."""

import os
import re
import subprocess
import sys

from conftest import ROOT


def test_the_examples_in_python_run_in_the_order_of_the_page(hfbsz, environment, tmp_path):
    for size in ("4seq", "8seq"):
        words = ["recipe=tests/tiny.yaml", "duration=4steps", f"batch.size={size}", "data.vocab_size=300", "threads=1"]
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("a line of text\n" * 2000)
        folder = tmp_path / "runs" / f"debug-{size}"
        ended = hfbsz("pretrain.py", *words, f"data.files={corpus}", f"output_dir={folder}")
        assert ended.code == 0, ended.err
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    code = "\n".join(blocks)
    env = environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "debug-4seq 4 sequences" in done.stdout and "debug-8seq 8 sequences" in done.stdout
    assert (tmp_path / "my_model" / "model.safetensors").is_file() and "processes 8 = 64 sequences" in done.stdout


def test_importing_the_package_imports_nothing():
    code = "import sys, hfbsz; print([m for m in ('torch', 'pydantic', 'numpy', 'omegaconf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
