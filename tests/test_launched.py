"""What forked ranks are told is what the launcher tells them (tests/fork_server.py)."""

import json

import pytest
from conftest import ROOT
from fork_server import CONFIGS, rank_variables

DUMP = "import json, os\nopen(os.environ['DUMP'] + os.environ['RANK'], 'w').write(json.dumps(dict(os.environ)))\n"


@pytest.mark.parametrize("config", CONFIGS)
def test_forked_ranks_have_the_launchers_environment(hfbsz, environment, tmp_path, config):
    script = tmp_path / "dump.py"
    script.write_text(DUMP)
    ended = hfbsz(script, config=config, launcher=True, env={"DUMP": tmp_path / "rank"})
    assert ended.code == 0, ended.err
    for rank in (0, 1):
        there = json.loads((tmp_path / f"rank{rank}").read_text())
        told = {name: value for name, value in there.items() if environment.get(name) != value}
        prefixes = ("ACCELERATE_", "FSDP_", "OMP_", "MASTER_ADDR", "RANK", "LOCAL_", "WORLD_")
        assert {name: value for name, value in told.items() if name.startswith(prefixes)} == {
            **{name: value for name, value in CONFIGS[config].items() if not name.startswith("TORCHELASTIC_")},
            **rank_variables(rank, 2),
        }
        assert CONFIGS[config].items() <= there.items()
    assert (ROOT / "accelerate_configs" / config).is_file()
